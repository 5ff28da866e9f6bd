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
// message that was refused again. It has as many messages out at the same time as concurrency says. Its Close waits for
// what is being handled.
type Subscribers interface {
	Subscriber(consumer string, concurrency int) (message.Subscriber, error)
}

// Refuser is a Subscribers that wants to know why a message is refused. Refuse is called in the handler's goroutine, before
// the Nack; reason is an *AttemptError. Without it a message that is refused comes again as often as the subscriber likes.
type Refuser interface {
	Refuse(m *message.Message, reason error)
}

// closeTimeout is the router's patience beyond the subscribers' own; they end first.
const closeTimeout = time.Minute

// Router runs consumers on Watermill's router.
type Router struct {
	router    *message.Router
	processor *cqrs.EventGroupProcessor
	catalogue *Catalogue
	refuser   Refuser // nil where nobody asks
	logger    *slog.Logger
	consumers map[string]*Consumer
}

// NewRouter returns a router without consumers. Watermill's own log lines go to adapter, the bus's to logger.
func NewRouter(codec *Codec, from Subscribers, logger *slog.Logger, adapter watermill.LoggerAdapter) (*Router, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: closeTimeout}, adapter)
	if err != nil {
		return nil, fmt.Errorf("make router: %w", err)
	}
	r := &Router{router: router, catalogue: codec.catalogue, logger: logger, consumers: make(map[string]*Consumer)}
	r.processor, err = cqrs.NewEventGroupProcessorWithConfig(router, cqrs.EventGroupProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.EventGroupProcessorGenerateSubscribeTopicParams) (string, error) {
			name := codec.Name(p.EventGroupHandlers[0].NewEvent())
			definition, ok := codec.catalogue.Lookup(name)
			if !ok {
				return "", fmt.Errorf("%w: %s", ErrUnknownType, name)
			}
			return definition.Topic, nil
		},
		SubscriberConstructor: func(p cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return from.Subscriber(p.EventGroupName, r.consumers[p.EventGroupName].policy.Concurrency)
		},
		AckOnUnknownEvent: true, // a topic carries event types that this consumer does not take
		Marshaler:         codec,
		Logger:            adapter,
	})
	if err != nil {
		return nil, fmt.Errorf("make event group processor: %w", err)
	}
	r.refuser, _ = from.(Refuser)
	router.AddMiddleware(r.tellWhy, r.limitTime, r.recoverPanics, r.knownTypes, underCause)
	return r, nil
}

// Add subscribes consumers; all before Run. It returns ErrUnknownType for a handler whose event type is not in the
// catalogue, and an error for a consumer without handlers or one added twice.
func (r *Router) Add(consumers ...*Consumer) error {
	for _, c := range consumers {
		if _, ok := r.consumers[c.name]; ok {
			return fmt.Errorf("add consumer %s: %w", c.name, ErrDuplicate)
		}
		c.refuser = r.refuser
		r.consumers[c.name] = c
		if err := r.processor.AddHandlersGroup(c.name, c.handlers...); err != nil {
			return fmt.Errorf("add consumer %s: %w", c.name, err)
		}
	}
	return nil
}

// Use adds middleware inside the bus's own, around each handler of consumers and queues; before Run. The bus treats its errors and
// panics as the handler's.
func (r *Router) Use(middleware ...message.HandlerMiddleware) { r.router.AddMiddleware(middleware...) }

// jobPrefix begins the names of queues of jobs among those of consumers, which have no colon.
const jobPrefix = "job:"

// AddQueue runs a queue of jobs beside the consumers, under the same middleware; before Run. The subscriber is closed with
// the router. refuser is told of failures, with what the policy makes of them, and may know better; the policy's Deadline
// is the longest that a job may run. In the inbox the queue is a consumer of the name "job:" and its own, and a job is known
// by its id: uow.Do in a job's handler takes effect once for the job.
func (r *Router) AddQueue(name string, from message.Subscriber, handle message.NoPublishHandlerFunc, refuser Refuser, policy Policy) error {
	queue, err := NewConsumer(name, WithPolicy(policy))
	if err != nil {
		return fmt.Errorf("add queue: %w", err)
	}
	queue.name, queue.refuser, queue.jobs = jobPrefix+name, refuser, true
	if _, ok := r.consumers[queue.name]; ok {
		return fmt.Errorf("add queue %s: %w", name, ErrDuplicate)
	}
	r.router.AddConsumerHandler(queue.name, name, from, handle)
	r.consumers[queue.name] = queue
	return nil
}

// Run handles events until ctx ends. Then it stops fetching, lets what is being handled finish, for as long as the
// subscribers grant it, and returns. It is called once.
func (r *Router) Run(ctx context.Context) error {
	if len(r.consumers) == 0 {
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

// tellWhy lets the subscriber know why it gets a message back.
func (r *Router) tellWhy(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		produced, err := next(m)
		if err == nil {
			return produced, nil
		}
		c := r.consumer(m)
		failure := newFailure(err, c.policy)
		if c.refuser != nil {
			c.refuser.Refuse(m, failure)
		}
		return nil, failure
	}
}

func (r *Router) consumer(m *message.Message) *Consumer {
	return r.consumers[message.HandlerNameFromCtx(m.Context())]
}

// limitTime ends the context of a handler that overruns, and names one that goes on all the same.
func (r *Router) limitTime(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		handled := m.Context()
		consumer := r.consumer(m)
		ctx := withDeadline(handled, consumer.policy.Deadline, func() {
			logger := r.logger
			if !consumer.jobs { // a job has no type; the work table names its kind
				logger = logger.With(slog.String("event_type", Type(m)))
			}
			logger.Error("handler ignores the end of its context", slog.String("consumer", message.HandlerNameFromCtx(handled)),
				slog.String("message_uuid", m.UUID))
		})
		defer ctx.end()
		m.SetContext(ctx)
		produced, err := next(m)
		if err != nil && errors.Is(context.Cause(ctx), ErrDeadline) {
			err = fmt.Errorf("%w: %w", ErrDeadline, err)
		}
		return produced, err
	}
}

// knownTypes refuses an event of a type that the catalogue does not have, instead of passing over it: the consumer of a
// newer program, which shares this one's work, may have a handler for it.
func (r *Router) knownTypes(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		if _, ok := r.catalogue.Lookup(Type(m)); !ok && !r.consumer(m).jobs {
			return nil, fmt.Errorf("%w: %s", ErrUnknownType, Type(m))
		}
		return next(m)
	}
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
