package telemetry

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

func TestFormatFollowsTheWriter(t *testing.T) {
	var b bytes.Buffer
	NewLogger(&b, slog.LevelInfo, FormatAuto).Info("x")
	if !strings.HasPrefix(b.String(), "{") {
		t.Errorf("a writer that is no terminal got %q", b.String())
	}
	if isTerminal(&b) || isTerminal(io.Discard) {
		t.Error("took a buffer for a terminal")
	}
	f, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if isTerminal(f) {
		t.Error("took a file for a terminal")
	}
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here")
	}
	defer func() { _ = tty.Close() }()
	if !isTerminal(tty) {
		t.Error("did not recognise a terminal")
	}
}

func TestColourCanBeRefused(t *testing.T) {
	tests := []struct {
		env  map[string]string
		want bool
	}{
		{map[string]string{}, true},
		{map[string]string{"NO_COLOR": "1"}, false},
		{map[string]string{"NO_COLOR": ""}, true},
		{map[string]string{"TERM": "dumb"}, false},
		{map[string]string{"TERM": "xterm"}, true},
	}
	for _, tt := range tests {
		if got := wantsColour(func(k string) string { return tt.env[k] }); got != tt.want {
			t.Errorf("%v: got %v", tt.env, got)
		}
	}
}

func TestTextLine(t *testing.T) {
	record := slog.NewRecord(time.Date(2026, 1, 2, 15, 4, 5, 6e6, time.Local), slog.LevelInfo, "consumer started", 0)
	record.AddAttrs(slog.String("consumer", "welcome-email"), slog.Int("count", 2), slog.String("reason", "a b"),
		slog.String("state", `x="y"`), slog.String("lane", ""))
	tests := []struct {
		name   string
		colour bool
		want   string
	}{
		{"plain", false, `15:04:05.006 INFO  consumer started  consumer=welcome-email count=2 reason="a b" ` +
			`state="x=\"y\"" lane=""` + "\n"},
		{"colour", true, "\x1b[2m15:04:05.006\x1b[0m \x1b[32mINFO\x1b[0m  consumer started  " +
			"\x1b[2mconsumer=\x1b[0mwelcome-email \x1b[2mcount=\x1b[0m2 \x1b[2mreason=\x1b[0m\"a b\" " +
			"\x1b[2mstate=\x1b[0m\"x=\\\"y\\\"\" \x1b[2mlane=\x1b[0m\"\"\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := newTextOutput(&b, slog.LevelInfo, tt.colour).Handle(context.Background(), record); err != nil {
				t.Fatal(err)
			}
			if b.String() != tt.want {
				t.Errorf("got  %q\nwant %q", b.String(), tt.want)
			}
		})
	}
}

func TestLevels(t *testing.T) {
	for _, format := range []string{FormatText, FormatJSON} {
		t.Run(format, func(t *testing.T) {
			var b bytes.Buffer
			l := NewLogger(&b, LevelTrace, format)
			l.Log(context.Background(), LevelTrace, "traced")
			l.Log(context.Background(), slog.LevelDebug-5, "below")
			if !strings.Contains(b.String(), "TRACE") || strings.Contains(b.String(), "below") {
				t.Errorf("got %q", b.String())
			}
			b.Reset()
			NewLogger(&b, slog.LevelWarn, format).Info("quiet")
			if b.Len() > 0 {
				t.Errorf("info at level warn: %q", b.String())
			}
		})
	}
}

func TestLineInjection(t *testing.T) {
	const evil = "ok\n15:04:05.000 ERROR forged\x1b[31m\u202e"
	for _, format := range []string{FormatText, FormatJSON} {
		t.Run(format, func(t *testing.T) {
			var b bytes.Buffer
			NewLogger(&b, slog.LevelInfo, format).Info(evil, "topic", evil, "reason", "a=b\" c=d")
			if strings.Count(b.String(), "\n") != 1 || strings.ContainsAny(b.String(), "\x1b\u202e") {
				t.Errorf("got %q", b.String())
			}
		})
	}
}

func TestStackIsOneLineOfCalls(t *testing.T) {
	stack := "goroutine 7 [running]:\nruntime/debug.Stack()\n\t/usr/local/go/src/runtime/debug/stack.go:26 +0x5e\n" +
		"postbus/internal/account.(*Service).Register(0xc000, {0x1, 0x2})\n\t/home/x/postbus/internal/account/service.go:42 +0x1d\n" +
		"created by github.com/ThreeDotsLabs/watermill/message.(*handler).run in goroutine 1\n" +
		"\t/root/go/pkg/mod/github.com/!three!dots!labs/watermill@v1.5.1/message/router.go:668 +0xa5\n"
	var b bytes.Buffer
	NewLogger(&b, slog.LevelInfo, FormatJSON).Info("x", "stack", stack)
	want := "account.(*Service).Register service.go:42 < message.(*handler).run router.go:668"
	if got := decode(t, b.Bytes())["stack"]; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	b.Reset()
	NewLogger(&b, slog.LevelInfo, FormatJSON).Info("x", "stack", "secret text of somebody")
	if got := decode(t, b.Bytes())["stack"]; got != "" {
		t.Errorf("text that is no stack: %q", got)
	}
}
