package telemetry

import (
	"io"
	"log/slog"
	"os"

	"golang.org/x/term"
)

// LevelTrace is the level of what is only of interest to somebody who debugs the bus itself. It is slog.LevelDebug - 4,
// as in Watermill.
const LevelTrace = slog.LevelDebug - 4

// The formats that NewLogger knows.
const (
	FormatAuto = ""     // text if the writer is a terminal, JSON otherwise
	FormatText = "text" // one short line for people
	FormatJSON = "json" // one object a line, as slog.JSONHandler writes it
)

// NewLogger returns a logger that writes one line a record to w, of records at the level or above.
//
// It guarantees that only allow-listed attributes are written and that all text is scrubbed (see the package's
// documentation). Each record is one Write; many goroutines may log at once. The text is coloured if w is a terminal and
// neither NO_COLOR nor TERM=dumb is set. An unknown format is FormatAuto.
func NewLogger(w io.Writer, level slog.Level, format string) *slog.Logger {
	tty := isTerminal(w)
	var out output
	switch {
	case format == FormatText, format != FormatJSON && tty:
		out = newTextOutput(w, level, tty && wantsColour(os.Getenv))
	default:
		out = newJSONOutput(w, level)
	}
	return slog.New(&handler{out: out, allowed: allowed})
}

func newJSONOutput(w io.Writer, level slog.Level) output {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if l, ok := a.Value.Any().(slog.Level); ok && a.Key == slog.LevelKey {
				a.Value = slog.StringValue(levelName(l))
			}
			return a
		},
	})
}

// levelName is slog's name of the level, except that LevelTrace has one of its own.
func levelName(l slog.Level) string {
	if l == LevelTrace {
		return "TRACE"
	}
	return l.String()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// wantsColour follows https://no-color.org: NO_COLOR set to anything but nothing means no colour.
func wantsColour(getenv func(string) string) bool {
	return getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}
