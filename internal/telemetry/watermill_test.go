package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
)

const payloadMarker = "marker-of-the-payload"

// failing publishes nothing.
type failing struct{}

func (failing) Publish(string, ...*message.Message) error { return errors.New("broker is gone") }
func (failing) Close() error                              { return nil }

// TestPayloadNeverReachesTheLog lets Watermill's router fail in the ways in which it logs messages, at every level, and
// through a logger that is not ours too.
func TestPayloadNeverReachesTheLog(t *testing.T) {
	loggers := map[string]func(b *buffer) *slog.Logger{
		"json": func(b *buffer) *slog.Logger { return NewLogger(b, LevelTrace, FormatJSON) },
		"text": func(b *buffer) *slog.Logger { return NewLogger(b, LevelTrace, FormatText) },
		"not ours": func(b *buffer) *slog.Logger {
			return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: LevelTrace}))
		},
		"with":      func(b *buffer) *slog.Logger { return NewLogger(b, LevelTrace, FormatText).With("component", "bus") },
		"debugging": func(b *buffer) *slog.Logger { return NewLogger(b, slog.LevelDebug, FormatJSON) },
		"info":      func(b *buffer) *slog.Logger { return NewLogger(b, slog.LevelInfo, FormatJSON) },
	}
	handlers := map[string]struct {
		handle message.HandlerFunc
		logged string // the line that shows that the router came as far as this
	}{
		"handler fails": {
			func(m *message.Message) ([]*message.Message, error) {
				return nil, fmt.Errorf("greet %s@example.org", m.Payload)
			},
			"Handler returned error",
		},
		"handler panics": {
			func(m *message.Message) ([]*message.Message, error) { panic("no such " + string(m.Payload)) },
			"Panic recovered in handler.",
		},
		"publisher fails": {
			func(m *message.Message) ([]*message.Message, error) { return []*message.Message{m.Copy()}, nil },
			"Cannot publish messages",
		},
	}
	for logName, newLogger := range loggers {
		for name, h := range handlers {
			t.Run(logName+" "+name, func(t *testing.T) {
				b := &buffer{awaited: h.logged, found: make(chan struct{})}
				runRouter(t, NewWatermill(newLogger(b)), h.handle, b.found)
				got := b.String()
				if strings.Contains(got, payloadMarker) {
					t.Errorf("the payload is in the log:\n%s", got)
				}
				if !strings.Contains(got, "message_uuid") || !strings.Contains(got, "error") {
					t.Errorf("the log does not say which message and why:\n%s", got)
				}
				if name == "handler panics" && !strings.Contains(got, "watermill_test.go:") {
					t.Errorf("the log does not say where:\n%s", got)
				}
			})
		}
	}
}

// runRouter sends one message with the marker in payload and metadata through a real router and stops it once done is
// closed.
func runRouter(t *testing.T, l watermill.LoggerAdapter, h message.HandlerFunc, done <-chan struct{}) {
	t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, l)
	if err != nil {
		t.Fatal(err)
	}
	pubsub := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, l)
	router.AddHandler("welcome-email", "user", pubsub, "out", failing{}, h)
	m := message.NewMessage(watermill.NewUUID(), []byte(payloadMarker))
	m.Metadata.Set("subject", payloadMarker)
	if err := pubsub.Publish("user", m); err != nil {
		t.Fatal(err)
	}

	stopped := make(chan error, 1)
	go func() { stopped <- router.Run(context.Background()) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("the router never logged what was waited for")
	}
	if err := errors.Join(router.Close(), <-stopped, pubsub.Close()); err != nil {
		t.Error(err)
	}
}

// buffer is a writer for many goroutines that tells when a text has been written.
type buffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	awaited string
	found   chan struct{}
	told    bool
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.told && bytes.Contains(p, []byte(b.awaited)) {
		b.told = true
		close(b.found)
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestWatermillFieldsPassTheSameList(t *testing.T) {
	var b bytes.Buffer
	l := NewWatermill(NewLogger(&b, slog.LevelDebug, FormatJSON))
	l = l.With(watermill.LogFields{"topic": "user", "metadata": payloadMarker})
	l.Error("Could not unwrap a message from an envelope", errors.New("for bob@example.org"), watermill.LogFields{
		"uuid": id, "payload": []byte(payloadMarker), "query_args": payloadMarker, "not_sent_message": payloadMarker,
	})
	got := decode(t, b.Bytes())
	for key, want := range map[string]any{
		"level": "ERROR", "topic": "user", "uuid": id, "error": "for [address]",
		"dropped": "metadata,not_sent_message,payload,query_args",
	} {
		if got[key] != want {
			t.Errorf("%s = %v, want %v", key, got[key], want)
		}
	}
	if strings.Contains(b.String(), payloadMarker) {
		t.Errorf("got %s", b.String())
	}
}

func TestWatermillLevels(t *testing.T) {
	lines := func(level slog.Level) []string {
		var b bytes.Buffer
		l := NewWatermill(NewLogger(&b, level, FormatJSON))
		l.Error("e", errors.New("x"), nil)
		l.Info("i", nil)
		l.Debug("d", nil)
		l.Trace("t", nil)
		var got []string
		for line := range bytes.Lines(b.Bytes()) {
			m := decode(t, line)
			got = append(got, fmt.Sprint(m["msg"], " ", m["level"]))
		}
		return got
	}
	for level, want := range map[slog.Level]string{
		slog.LevelInfo:  "e ERROR",
		slog.LevelDebug: "e ERROR,i DEBUG,d DEBUG",
		LevelTrace:      "e ERROR,i DEBUG,d DEBUG,t TRACE",
	} {
		if got := strings.Join(lines(level), ","); got != want {
			t.Errorf("%v: got %s, want %s", level, got, want)
		}
	}
}

func TestWatermillPanicOfTheRuntimeIsNamed(t *testing.T) {
	var b bytes.Buffer
	l := NewWatermill(NewLogger(&b, slog.LevelInfo, FormatJSON))
	l.Error("Panic recovered in handler. Stack: goroutine 1", errors.New("runtime error: index out of range [1]"), nil)
	if got := decode(t, b.Bytes()); got["error"] != "runtime error: index out of range [1]" || got["msg"] != "Panic recovered in handler." {
		t.Errorf("got %v", got)
	}
}
