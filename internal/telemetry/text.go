package telemetry

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
)

// ANSI colours, for terminals only.
const (
	colourReset  = "\x1b[0m"
	colourDim    = "\x1b[2m"
	colourRed    = "\x1b[31m"
	colourYellow = "\x1b[33m"
	colourGreen  = "\x1b[32m"
)

// textOutput writes lines for people:
//
//	15:04:05.000 INFO  consumer started  consumer=welcome-email topic=user
type textOutput struct {
	level  slog.Level
	colour bool

	mu sync.Mutex // one Write at a time
	w  io.Writer
}

func newTextOutput(w io.Writer, level slog.Level, colour bool) *textOutput {
	return &textOutput{w: w, level: level, colour: colour}
}

func (t *textOutput) Enabled(_ context.Context, level slog.Level) bool { return level >= t.level }

func (t *textOutput) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if !r.Time.IsZero() {
		t.paint(&b, colourDim, r.Time.Format("15:04:05.000"))
		b.WriteByte(' ')
	}
	name := levelName(r.Level)
	t.paint(&b, levelColour(r.Level), name)
	b.WriteString(strings.Repeat(" ", max(1, len("ERROR ")-len(name))))
	b.WriteString(r.Message)
	sep := "  "
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(sep)
		t.paint(&b, colourDim, a.Key+"=")
		b.WriteString(quoteIfNeeded(textOf(a.Value)))
		sep = " "
		return true
	})
	b.WriteByte('\n')

	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := io.WriteString(t.w, b.String())
	return err
}

func (t *textOutput) paint(b *strings.Builder, colour, s string) {
	if !t.colour || colour == "" {
		b.WriteString(s)
		return
	}
	b.WriteString(colour)
	b.WriteString(s)
	b.WriteString(colourReset)
}

func levelColour(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return colourRed
	case l >= slog.LevelWarn:
		return colourYellow
	case l >= slog.LevelInfo:
		return colourGreen
	default:
		return colourDim
	}
}

func textOf(v slog.Value) string {
	if v.Kind() == slog.KindTime {
		return v.Time().Format(time.RFC3339)
	}
	return v.String()
}

// quoteIfNeeded keeps a line unambiguous: a value cannot look like the next key.
func quoteIfNeeded(s string) string {
	odd := func(r rune) bool { return r == ' ' || r == '"' || r == '=' || !unicode.IsPrint(r) }
	if s == "" || strings.ContainsFunc(s, odd) {
		return strconv.Quote(s)
	}
	return s
}
