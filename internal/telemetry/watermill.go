package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// NewWatermill returns a Watermill logger that writes to l. It may be used by many goroutines at once.
//
// Watermill logs payloads, metadata and whole messages as fields; the allow-list drops them, also if l was not made by
// NewLogger. Watermill's Info tells of its own affairs (handlers added, subscribers closed) and is written at level debug,
// its Trace at LevelTrace.
func NewWatermill(l *slog.Logger) watermill.LoggerAdapter {
	h, ok := l.Handler().(*handler)
	if !ok {
		h = &handler{out: l.Handler(), allowed: allowed}
	}
	return watermillLogger{to: h}
}

// watermillLogger makes its own records, because slog.Logger is for constant messages, and Watermill brings its own.
type watermillLogger struct{ to slog.Handler }

func (w watermillLogger) Error(msg string, err error, fields watermill.LogFields) {
	// The router glues the stack to its message and the panic's value, whatever it is, to the error.
	msg, stack, panicked := strings.Cut(msg, " Stack: ")
	attrs := make([]slog.Attr, 0, 2)
	if panicked {
		attrs = append(attrs, slog.String("stack", stack))
		err = withoutPanicValue(err)
	}
	w.write(slog.LevelError, msg, fields, append(attrs, slog.Any("error", err))...)
}

func (w watermillLogger) Info(msg string, fields watermill.LogFields) {
	w.write(slog.LevelDebug, msg, fields)
}

func (w watermillLogger) Debug(msg string, fields watermill.LogFields) {
	w.write(slog.LevelDebug, msg, fields)
}

func (w watermillLogger) Trace(msg string, fields watermill.LogFields) {
	w.write(LevelTrace, msg, fields)
}

func (w watermillLogger) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return watermillLogger{to: w.to.WithAttrs(attrsOf(fields))}
}

func (w watermillLogger) write(level slog.Level, msg string, fields watermill.LogFields, attrs ...slog.Attr) {
	ctx := context.Background() // Watermill's logger has none
	if !w.to.Enabled(ctx, level) {
		return
	}
	r := slog.NewRecord(time.Now(), level, msg, 0)
	r.AddAttrs(attrsOf(fields)...)
	r.AddAttrs(attrs...)
	_ = w.to.Handle(ctx, r) // slog.Logger ignores it too: there is nowhere left to say so
}

// attrsOf orders the fields by name, so that lines can be compared.
func attrsOf(fields watermill.LogFields) []slog.Attr {
	attrs := make([]slog.Attr, 0, len(fields))
	for key, value := range fields {
		attrs = append(attrs, slog.Any(key, value))
	}
	slices.SortFunc(attrs, func(a, b slog.Attr) int { return strings.Compare(a.Key, b.Key) })
	return attrs
}

// withoutPanicValue keeps the text of the runtime's own panics. Any other value may be made of the message.
func withoutPanicValue(err error) error {
	if err != nil && strings.HasPrefix(err.Error(), "runtime error: ") {
		return err
	}
	return errors.New("a panic whose value is not shown")
}
