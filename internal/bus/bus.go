package bus

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"

	"postbus/internal/domain"
)

// Bus calls handlers in the same process, synchronously, in the order of their registration. It is fail-fast: the first
// handler that fails ends the call. Nothing is stored, nothing is tried again; what must not be missed belongs in a
// Consumer.
//
// A Bus may be used from many goroutines. A handler may itself publish and register.
type Bus struct {
	logger *slog.Logger

	mu       sync.RWMutex
	handlers map[string][]handler
}

type handler struct {
	name   string
	handle func(context.Context, domain.Event) error
}

// New returns a Bus without handlers. Failing handlers are logged to logger.
func New(logger *slog.Logger) *Bus {
	return &Bus{logger: logger, handlers: make(map[string][]handler)}
}

// Register adds a handler for the event type E under a name of its own, which errors and logs will carry. It returns
// ErrEventShape when E is not a value type and ErrDuplicate when E has a handler of that name already.
func Register[E domain.Event](b *Bus, name string, h func(context.Context, E) error) error {
	eventType, err := typeOf[E]()
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.handlers[eventType], func(other handler) bool { return other.name == name }) {
		return fmt.Errorf("handler %s of %s: %w", name, eventType, ErrDuplicate)
	}
	b.handlers[eventType] = append(b.handlers[eventType], handler{
		name: name,
		handle: func(ctx context.Context, e domain.Event) error {
			typed, ok := e.(E)
			if !ok {
				return fmt.Errorf("%w: %s came as %T, the handler takes %T", ErrEventShape, eventType, e, typed)
			}
			return h(ctx, typed)
		},
	})
	return nil
}

// Publish calls the handlers of e's type. No handler is no error. The first failure, a panic included, is logged and
// returned as a *HandlerError; handlers after it are not called.
func (b *Bus) Publish(ctx context.Context, e domain.Event) error {
	b.mu.RLock()
	handlers := slices.Clone(b.handlers[e.EventType()])
	b.mu.RUnlock()
	for _, h := range handlers {
		if err := h.call(ctx, e); err != nil {
			failure := &HandlerError{Handler: h.name, Type: e.EventType(), Err: err}
			b.logger.ErrorContext(ctx, "in-process handler failed",
				slog.String("handler", h.name), slog.String("event_type", e.EventType()), slog.Any("error", err))
			return failure
		}
	}
	return nil
}

// PublishAll publishes the events in the order given and stops at the first failure.
func (b *Bus) PublishAll(ctx context.Context, events []domain.Event) error {
	for _, e := range events {
		if err := b.Publish(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// ClearHandlers removes all handlers; tests begin with it.
func (b *Bus) ClearHandlers() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.handlers)
}

func (h handler) call(ctx context.Context, e domain.Event) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return h.handle(ctx, e)
}
