package domain

import (
	"context"
	"sync/atomic"

	"github.com/google/uuid"
)

// Cause is what the work under a context was set off by. A consumer's handler finds the event that it is handling, a job's
// handler the job.
type Cause struct {
	// EventID is the event being handled, or the job; uuid.Nil outside of a handler. See IdempotencyKey.
	EventID uuid.UUID
	// Consumer is the name of the consumer that handles it, or "job:" and the queue's; "" outside of a handler.
	Consumer string
	// Correlation is shared by everything that follows from one beginning, such as a request; "" when nothing set it.
	Correlation string
}

type causeKey struct{}

// caused is what the context holds: one delivery, by its address.
type caused struct {
	Cause
	effect atomic.Bool
}

// WithCause returns a context under which new events name c as their cause. Each call begins a delivery of its own, which
// may have one effect (MarkEffect).
func WithCause(ctx context.Context, c Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, &caused{Cause: c})
}

// CauseOf returns the cause that the context carries, or the zero Cause.
func CauseOf(ctx context.Context) Cause {
	if c := causedBy(ctx); c != nil {
		return c.Cause
	}
	return Cause{}
}

// IdempotencyKey is what an effect that no transaction covers can be known by: a mail, a payment, a call to somebody else. In a
// consumer's handler it is the event's id, in a job's the job's id, and so the same at every delivery of it, in whatever process,
// also after a crash or when an operator has it tried again. ok is false outside of a handler.
//
// It says what is handled, and not by whom: two consumers of one event have the same key, and so has everything that one
// handler does. Where such effects go to one place, add what the effect is: key.String() + ".welcome".
func IdempotencyKey(ctx context.Context) (key uuid.UUID, ok bool) {
	key = CauseOf(ctx).EventID
	return key, key != uuid.Nil
}

// MarkEffect notes that the delivery which ctx belongs to has had its effect: the transaction that the inbox knows it by.
// It does nothing outside of a delivery.
func MarkEffect(ctx context.Context) {
	if c := causedBy(ctx); c != nil {
		c.effect.Store(true)
	}
}

// HasEffect tells whether MarkEffect was called in this delivery.
func HasEffect(ctx context.Context) bool {
	c := causedBy(ctx)
	return c != nil && c.effect.Load()
}

func causedBy(ctx context.Context) *caused {
	c, _ := ctx.Value(causeKey{}).(*caused)
	return c
}
