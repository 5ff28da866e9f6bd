package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"
)

// testLogger logs JSON at every level and lets through, beside the usual keys, those named.
func testHandler(b *bytes.Buffer, keys ...string) *handler {
	list := map[string]struct{}{}
	for k := range allowed {
		list[k] = struct{}{}
	}
	for _, k := range keys {
		list[k] = struct{}{}
	}
	return &handler{out: newJSONOutput(b, LevelTrace), allowed: list}
}

func decode(t *testing.T, line []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(line, &m); err != nil {
		t.Fatalf("not one JSON object a line: %v\n%s", err, line)
	}
	return m
}

// TestHandlerContract runs the standard library's suite. Groups are written as dotted keys, so they are nested again
// before they are judged.
func TestHandlerContract(t *testing.T) {
	keys := []string{"a", "b", "c", "d", "e", "f", "k", "G.a", "G.b", "G.c", "G.d", "G.H.e"}
	var b bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		b.Reset()
		return testHandler(&b, keys...)
	}, func(t *testing.T) map[string]any {
		t.Helper()
		nested := map[string]any{}
		for key, value := range decode(t, b.Bytes()) {
			m := nested
			path := strings.Split(key, ".")
			for _, group := range path[:len(path)-1] {
				if _, ok := m[group]; !ok {
					m[group] = map[string]any{}
				}
				m = m[group].(map[string]any)
			}
			m[path[len(path)-1]] = value
		}
		return nested
	})
}

func TestOnlyAllowedKeysComeThrough(t *testing.T) {
	const marker = "marker-4711"
	tests := map[string]func(l *slog.Logger){
		"attribute":           func(l *slog.Logger) { l.Info("x", "payload", marker) },
		"with":                func(l *slog.Logger) { l.With("payload", marker).Info("x") },
		"group":               func(l *slog.Logger) { l.Info("x", slog.Group("http", "body", marker)) },
		"allowed key, inside": func(l *slog.Logger) { l.Info("x", slog.Group("payload", "topic", marker)) },
		"open group":          func(l *slog.Logger) { l.WithGroup("payload").Info("x", "topic", marker) },
		"with in open group":  func(l *slog.Logger) { l.WithGroup("payload").With("topic", marker).Info("x") },
		"inline group":        func(l *slog.Logger) { l.Info("x", slog.Group("", "email", marker)) },
		"value of group":      func(l *slog.Logger) { l.Info("x", "user", userLike{marker}) },
		"odd name":            func(l *slog.Logger) { l.Info("x", "my "+marker, 1) },
		"no key":              func(l *slog.Logger) { l.Info("x", []any{marker}...) }, // slog calls it !BADKEY
		"struct":              func(l *slog.Logger) { l.Info("x", "topic", struct{ Email string }{marker}) },
		"pointer":             func(l *slog.Logger) { l.Info("x", "topic", &struct{ Email string }{marker}) },
		"map":                 func(l *slog.Logger) { l.Info("x", "topic", map[string]string{"email": marker}) },
		"bytes":               func(l *slog.Logger) { l.Info("x", "topic", []byte(marker)) },
		"json":                func(l *slog.Logger) { l.Info("x", "topic", json.RawMessage(`"`+marker+`"`)) },
	}
	for name, log := range tests {
		for _, format := range []string{FormatText, FormatJSON} {
			t.Run(name+" "+format, func(t *testing.T) {
				var b bytes.Buffer
				log(NewLogger(&b, LevelTrace, format))
				if b.Len() == 0 || strings.Contains(b.String(), marker) {
					t.Errorf("got %q", b.String())
				}
			})
		}
	}
}

type userLike struct{ email string }

func (u userLike) LogValue() slog.Value { return slog.GroupValue(slog.String("email", u.email)) }

func TestNamesOfDroppedKeysAreShownAtDebugOnly(t *testing.T) {
	log := func(level slog.Level) map[string]any {
		var b bytes.Buffer
		l := NewLogger(&b, level, FormatJSON)
		l.With("metadata", 1).WithGroup("http").Info("x", []any{"body", 2, "status", 200, "a b", 3}...)
		return decode(t, b.Bytes())
	}
	if got := log(slog.LevelDebug)["dropped"]; got != "?,http.body,metadata" {
		t.Errorf("at debug: dropped = %v", got)
	}
	if got, ok := log(slog.LevelInfo)["dropped"]; ok {
		t.Errorf("at info: dropped = %v", got)
	}
	if got := log(slog.LevelInfo)["http.status"]; got != 200.0 {
		t.Errorf("http.status = %v", got)
	}
}

type word string

type number int

type named struct{ secret string }

func (named) String() string { return "[named]" }

type broken struct{}

func (*broken) String() string { panic("no") }

func TestValues(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tests := []struct {
		name string
		in   any
		want any
	}{
		{"string", "plain", "plain"},
		{"address", "for bob@example.org", "for [address]"},
		{"bool", true, true},
		{"int", 3, 3.0},
		{"uint", uint8(3), 3.0},
		{"float", 1.5, 1.5},
		{"named string", word("a@b"), "[address]"},
		{"named int", number(7), 7.0},
		{"duration", 1500 * time.Millisecond, "1.5s"},
		{"time", at, "2026-01-02T03:04:05Z"},
		{"list", []string{"a", "b@c"}, "a,[address]"},
		{"stringer", named{"x"}, "[named]"},
		{"broken stringer", (*broken)(nil), "[panic in String]"},
		{"error", errors.New("no b@c"), "no [address]"},
		{"nil", nil, nil},
		{"struct", struct{ A int }{1}, "[struct { A int }]"},
		{"bytes", []byte("x"), "[[]uint8]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			NewLogger(&b, slog.LevelInfo, FormatJSON).Info("x", "topic", tt.in)
			if got := decode(t, b.Bytes())["topic"]; got != tt.want {
				t.Errorf("got %#v, want %#v", got, tt.want)
			}
		})
	}
}

type brokenValuer struct{}

func (*brokenValuer) LogValue() slog.Value { panic("no") }

// slog itself recovers a panic in LogValue, with the stack as the value; neither may end the program.
func TestPanickingLogValueIsNoPanic(t *testing.T) {
	var b bytes.Buffer
	NewLogger(&b, slog.LevelInfo, FormatJSON).Info("x", "topic", (*brokenValuer)(nil))
	if got := decode(t, b.Bytes())["topic"]; got == nil {
		t.Errorf("got %#v", got)
	}
}

func TestInnermostAttributeOfANameCounts(t *testing.T) {
	var b bytes.Buffer
	base := NewLogger(&b, slog.LevelInfo, FormatJSON).With("topic", "user", "count", 1)
	base.With("topic", "order").Info("x", "count", 2)
	if got := decode(t, b.Bytes()); got["topic"] != "order" || got["count"] != 2.0 {
		t.Errorf("got %v", got)
	}
	if n := strings.Count(b.String(), `"count"`); n != 1 {
		t.Errorf("count stands %d times: %s", n, b.String())
	}
	b.Reset()
	base.Info("x")
	if got := decode(t, b.Bytes()); got["topic"] != "user" || got["count"] != 1.0 {
		t.Errorf("the logger that others were made of has changed: %v", got)
	}
}

func TestManyGoroutinesWriteWholeLines(t *testing.T) {
	for _, format := range []string{FormatText, FormatJSON} {
		t.Run(format, func(t *testing.T) {
			w := &lines{}
			l := NewLogger(w, slog.LevelInfo, format).With("topic", "user")
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for i := range 50 {
						l.With("lane", i).Info("handled", "count", i, "email", "bob@example.org")
					}
				})
			}
			wg.Wait()
			if len(w.got) != 16*50 {
				t.Errorf("%d writes", len(w.got))
			}
			for _, line := range w.got {
				if strings.Count(line, "\n") != 1 || strings.Contains(line, "bob") || !strings.Contains(line, "handled") {
					t.Fatalf("line %q", line)
				}
			}
		})
	}
}

// lines keeps each Write. Both formats promise not to call it from two goroutines at once, which the race detector checks.
type lines struct{ got []string }

func (l *lines) Write(p []byte) (int, error) {
	l.got = append(l.got, string(p))
	return len(p), nil
}
