package domain

import (
	"context"
	"sync/atomic"

	"github.com/google/uuid"
)

// Cause is what the work under a context was set off by. A consumer's handler finds the event it is handling; its
// EventID is the same at every delivery and so serves as the idempotency key of effects that no transaction covers.
type Cause struct {
	// EventID is the event being handled; uuid.Nil outside a consumer.
	EventID uuid.UUID
	// Consumer is the name of the consumer that handles it; "" outside of one.
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
