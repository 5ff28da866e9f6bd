package bus_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"postbus/internal/bus"
	"postbus/internal/domain"
)

// queue is a subscriber of jobs and a Refuser in memory.
type queue struct {
	messages chan *message.Message
	closed   chan struct{}
	refused  chan *bus.AttemptError
}

func (q *queue) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return q.messages, nil
}

func (q *queue) Subscriber(string, int) (message.Subscriber, error) {
	return nil, errors.New("no events here")
}

func (q *queue) Close() error {
	close(q.closed)
	close(q.messages)
	return nil
}

func (q *queue) Refuse(_ *message.Message, reason error) {
	var f *bus.AttemptError
	errors.As(reason, &f)
	q.refused <- f
}

// runQueue runs a handler of jobs on a router.
func runQueue(t *testing.T, handle message.NoPublishHandlerFunc, policy bus.Policy) *queue {
	t.Helper()
	q := &queue{messages: make(chan *message.Message), closed: make(chan struct{}), refused: make(chan *bus.AttemptError, 1)}
	catalogue, err := bus.NewCatalogue(bus.Define[planted](1))
	must(t, err)
	router, err := bus.NewRouter(bus.NewCodec(catalogue, "/test"), q, slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil)), watermill.NopLogger{})
	must(t, err)
	must(t, router.AddQueue("default", q, handle, q, policy))
	if err := router.AddQueue("default", q, handle, q, policy); !errors.Is(err, bus.ErrDuplicate) {
		t.Errorf("the queue again: %v", err)
	}
	if err := router.AddQueue("No", q, handle, q, policy); !errors.Is(err, bus.ErrEventShape) {
		t.Errorf("a queue of another name: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		must(t, <-ended)
		<-q.closed
	})
	return q
}

// TestQueueRunsUnderTheRouter: a job's handler sees the job as its cause, under a consumer's name that no consumer can have.
func TestQueueRunsUnderTheRouter(t *testing.T) {
	t.Parallel()
	causes := make(chan domain.Cause, 1)
	q := runQueue(t, func(m *message.Message) error { causes <- domain.CauseOf(m.Context()); return nil }, bus.Policy{})
	id := uuid.Must(uuid.NewV7())
	m := message.NewMessage(id.String(), nil)
	m.Metadata.Set("correlationid", "request-1")
	q.messages <- m
	<-m.Acked()
	if cause := <-causes; cause != (domain.Cause{EventID: id, Consumer: "job:default", Correlation: "request-1"}) {
		t.Errorf("the cause is %+v", cause)
	}
}

// TestQueueTellsWhy: a panic and an overrun deadline of a job are refused with their class, as an event's are.
func TestQueueTellsWhy(t *testing.T) {
	t.Parallel()
	for class, handle := range map[string]message.NoPublishHandlerFunc{
		"panic":     func(*message.Message) error { panic("x") },
		"deadline":  func(m *message.Message) error { <-m.Context().Done(); return m.Context().Err() },
		"permanent": func(*message.Message) error { return bus.Permanent(errors.New("no")) },
	} {
		q := runQueue(t, handle, bus.Policy{Deadline: 20 * time.Millisecond})
		m := message.NewMessage(uuid.NewString(), nil)
		q.messages <- m
		<-m.Nacked()
		if f := <-q.refused; f == nil || f.Class() != class {
			t.Errorf("%s: refused with %v", class, f)
		}
	}
}
