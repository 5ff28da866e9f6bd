package domain

import (
	"context"

	"github.com/google/uuid"
)

// Cause is what the work under a context was set off by. A consumer's handler finds the event it is handling; its
// EventID is the same at every delivery and so serves as the idempotency key of effects that no transaction covers.
type Cause struct {
	// EventID is the event being handled; uuid.Nil outside a consumer.
	EventID uuid.UUID
	// Correlation is shared by everything that follows from one beginning, such as a request; "" when nothing set it.
	Correlation string
}

type causeKey struct{}

// WithCause returns a context under which new events name c as their cause.
func WithCause(ctx context.Context, c Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, c)
}

// CauseOf returns the cause that the context carries, or the zero Cause.
func CauseOf(ctx context.Context) Cause {
	c, _ := ctx.Value(causeKey{}).(Cause)
	return c
}
