package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"postbus/internal/bus"
	"postbus/internal/domain"
)

type planted struct {
	ID string `json:"id"`
}

func (planted) EventType() string  { return "tree.planted" }
func (e planted) EventKey() string { return e.ID }

type felled struct {
	ID   string `json:"id"`
	Tons int    `json:"tons"`
}

func (felled) EventType() string { return "tree.felled" }

// impostor has the type of another event.
type impostor struct{}

func (impostor) EventType() string { return "tree.planted" }

type pointed struct{}

func (*pointed) EventType() string { return "tree.pointed" }

func TestHandlersRunInRegistrationOrder(t *testing.T) {
	t.Parallel()
	b := bus.New(slog.New(slog.DiscardHandler))
	var calls []string
	for _, name := range []string{"c", "a", "b"} {
		must(t, bus.Register(b, name, func(_ context.Context, e planted) error {
			calls = append(calls, name+e.ID)
			return nil
		}))
	}
	must(t, bus.Register(b, "axe", func(context.Context, felled) error { calls = append(calls, "axe"); return nil }))
	must(t, b.PublishAll(t.Context(), []domain.Event{planted{"1"}, felled{}, planted{"2"}}))
	if want := []string{"c1", "a1", "b1", "axe", "c2", "a2", "b2"}; !slices.Equal(calls, want) {
		t.Errorf("called %v, want %v", calls, want)
	}
}

func TestNoHandlerIsNoError(t *testing.T) {
	t.Parallel()
	b := bus.New(slog.New(slog.DiscardHandler))
	must(t, b.Publish(t.Context(), planted{}))
	must(t, bus.Register(b, "a", func(context.Context, planted) error { return errors.New("never called") }))
	b.ClearHandlers()
	must(t, b.Publish(t.Context(), planted{}))
}

// TestClearHandlersBetweenTests has two tests share a bus, one after the other: the second finds nothing of the first, and
// may use its names.
func TestClearHandlersBetweenTests(t *testing.T) {
	t.Parallel()
	b := bus.New(slog.New(slog.DiscardHandler))
	var calls []string
	for _, test := range []string{"first", "second"} {
		must(t, bus.Register(b, "a", func(context.Context, planted) error { calls = append(calls, test+" a"); return nil }))
		must(t, bus.Register(b, "b", func(context.Context, felled) error { calls = append(calls, test+" b"); return nil }))
		must(t, b.PublishAll(t.Context(), []domain.Event{planted{}, felled{}}))
		b.ClearHandlers()
		must(t, b.PublishAll(t.Context(), []domain.Event{planted{}, felled{}}))
	}
	if want := []string{"first a", "first b", "second a", "second b"}; !slices.Equal(calls, want) {
		t.Errorf("called %q, want %q", calls, want)
	}
}

func TestFirstFailureIsLoggedReturnedAndTheLast(t *testing.T) {
	t.Parallel()
	refusal := errors.New("no water")
	for name, fail := range map[string]func() error{
		"error": func() error { return refusal },
		"panic": func() error { panic(refusal) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var logs bytes.Buffer
			b := bus.New(slog.New(slog.NewTextHandler(&logs, nil)))
			after := false
			must(t, bus.Register(b, "gardener", func(context.Context, planted) error { return fail() }))
			must(t, bus.Register(b, "second", func(context.Context, planted) error { after = true; return nil }))
			err := b.PublishAll(t.Context(), []domain.Event{planted{}, planted{}})
			var failure *bus.HandlerError
			if !errors.As(err, &failure) || failure.Handler != "gardener" || failure.Type != "tree.planted" {
				t.Fatalf("PublishAll returned %v", err)
			}
			var panicked *bus.PanicError
			if name == "panic" && (!errors.As(err, &panicked) || !bytes.Contains(panicked.Stack, []byte("bus_test.go"))) {
				t.Errorf("the panic came as %v", err)
			}
			if name == "error" && !errors.Is(err, refusal) {
				t.Errorf("the error came as %v", err)
			}
			if after {
				t.Error("a handler after the failing one was called")
			}
			if n := strings.Count(logs.String(), "handler=gardener"); n != 1 {
				t.Errorf("logged %d times: %s", n, &logs)
			}
		})
	}
}

// TestPanicDoesNotTellItsValue: it may hold a payload, and the error ends up in a log.
func TestPanicDoesNotTellItsValue(t *testing.T) {
	t.Parallel()
	if text := (&bus.PanicError{Value: "ada@example.com"}).Error(); text != "panic with a string" {
		t.Error(text)
	}
	defer func() {
		if text := (&bus.PanicError{Value: recover()}).Error(); !strings.Contains(text, "nil map") {
			t.Error(text)
		}
	}()
	var m map[string]int
	m["x"] = 1 //nolint:govet,staticcheck // on purpose
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	b := bus.New(slog.New(slog.DiscardHandler))
	must(t, bus.Register(b, "a", func(context.Context, planted) error { return nil }))
	if err := bus.Register(b, "a", func(context.Context, planted) error { return nil }); !errors.Is(err, bus.ErrDuplicate) {
		t.Errorf("a second handler of the name: %v", err)
	}
	must(t, bus.Register(b, "a", func(context.Context, felled) error { return nil })) // another event's
	if err := bus.Register(b, "p", func(context.Context, *pointed) error { return nil }); !errors.Is(err, bus.ErrEventShape) {
		t.Errorf("a pointer: %v", err)
	}
	if err := bus.Register(b, "i", func(context.Context, domain.Event) error { return nil }); !errors.Is(err, bus.ErrEventShape) {
		t.Errorf("an interface: %v", err)
	}
	if err := b.Publish(t.Context(), impostor{}); !errors.Is(err, bus.ErrEventShape) {
		t.Errorf("another Go type of the same name: %v", err)
	}
}

// TestBusIsSafeForManyGoroutines is for the race detector; handlers register, publish and clear while others do.
func TestBusIsSafeForManyGoroutines(t *testing.T) {
	t.Parallel()
	b := bus.New(slog.New(slog.DiscardHandler))
	var calls atomic.Int32
	must(t, bus.Register(b, "outer", func(ctx context.Context, _ planted) error {
		calls.Add(1)
		return b.Publish(ctx, felled{})
	}))
	var users sync.WaitGroup
	for i := range 8 {
		users.Go(func() {
			for j := range 50 {
				if err := bus.Register(b, fmt.Sprint(i, "/", j), func(context.Context, felled) error { return nil }); err != nil {
					t.Error(err)
				}
				if err := b.Publish(t.Context(), planted{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
	b.ClearHandlers()
	if calls.Load() != 400 {
		t.Errorf("called %d times", calls.Load())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
