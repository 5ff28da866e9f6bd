package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/domain"
)

// Subscribers gives each consumer its own subscriber. The bus closes what it was given.
//
// A subscriber delivers the messages of one key one after another, waits for each to be acknowledged, and brings a
// message that was refused again. Its Close waits for what is being handled.
type Subscribers interface {
	Subscriber(consumer string) (message.Subscriber, error)
}

// closeTimeout is the router's patience beyond the subscribers' own; they end first.
const closeTimeout = time.Minute

// Router runs consumers on Watermill's router.
type Router struct {
	router    *message.Router
	processor *cqrs.EventGroupProcessor
	logger    *slog.Logger
	consumers int
}

// NewRouter returns a router without consumers. Watermill's own log lines go to adapter, the bus's to logger.
func NewRouter(codec *Codec, from Subscribers, logger *slog.Logger, adapter watermill.LoggerAdapter) (*Router, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: closeTimeout}, adapter)
	if err != nil {
		return nil, fmt.Errorf("make router: %w", err)
	}
	processor, err := cqrs.NewEventGroupProcessorWithConfig(router, cqrs.EventGroupProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.EventGroupProcessorGenerateSubscribeTopicParams) (string, error) {
			name := codec.Name(p.EventGroupHandlers[0].NewEvent())
			definition, ok := codec.catalogue.Lookup(name)
			if !ok {
				return "", fmt.Errorf("%w: %s", ErrUnknownType, name)
			}
			return definition.Topic, nil
		},
		SubscriberConstructor: func(p cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return from.Subscriber(p.EventGroupName)
		},
		AckOnUnknownEvent: true, // a topic carries event types that this consumer does not take
		Marshaler:         codec,
		Logger:            adapter,
	})
	if err != nil {
		return nil, fmt.Errorf("make event group processor: %w", err)
	}
	r := &Router{router: router, processor: processor, logger: logger}
	router.AddMiddleware(r.recoverPanics, underCause)
	return r, nil
}

// Add subscribes consumers; all before Run. It returns ErrUnknownType for a handler whose event type is not in the
// catalogue, and an error for a consumer without handlers or one added twice.
func (r *Router) Add(consumers ...*Consumer) error {
	for _, c := range consumers {
		if err := r.processor.AddHandlersGroup(c.name, c.handlers...); err != nil {
			return fmt.Errorf("add consumer %s: %w", c.name, err)
		}
		r.consumers++
	}
	return nil
}

// Run handles events until ctx ends. Then it stops fetching, lets what is being handled finish, for as long as the
// subscribers grant it, and returns. It is called once.
func (r *Router) Run(ctx context.Context) error {
	if r.consumers == 0 {
		<-ctx.Done()
		return nil
	}
	// The router would hand an ended context to the handlers at once; closing it lets them finish.
	ended := make(chan error, 1)
	go func() { ended <- r.router.Run(context.WithoutCancel(ctx)) }()
	select {
	case err := <-ended:
		return endedEarly(err)
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return endedEarly(err)
	case <-r.router.Running(): // closing a router that is just starting blocks both
	}
	if err := r.router.Close(); err != nil {
		return fmt.Errorf("close router: %w", err)
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("run router: %w", err)
	}
	return nil
}

func endedEarly(err error) error {
	if err == nil {
		err = errors.New("all subscriptions ended")
	}
	return fmt.Errorf("run router: %w", err)
}

// recoverPanics is the one place where a durable handler's panic ends. It becomes an error like any other.
func (r *Router) recoverPanics(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) (produced []*message.Message, err error) {
		defer func() {
			if v := recover(); v != nil {
				failure := &PanicError{Value: v, Stack: debug.Stack()}
				r.logger.ErrorContext(m.Context(), "handler panicked", slog.Any("error", failure),
					slog.String("stack", string(failure.Stack)), slog.String("message_uuid", m.UUID),
					slog.String("event_type", Type(m)))
				produced, err = nil, failure
			}
		}()
		return next(m)
	}
}

// underCause lets the handler see which event it handles, and what it publishes tell it.
func underCause(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		cause, err := causeOf(m)
		if err != nil {
			return nil, err
		}
		cause.Consumer = message.HandlerNameFromCtx(m.Context())
		m.SetContext(domain.WithCause(m.Context(), cause))
		return next(m)
	}
}
