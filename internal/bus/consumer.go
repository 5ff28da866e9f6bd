package bus

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/components/cqrs"

	"postbus/internal/domain"
)

var consumerPattern = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// consumerBytesMax bounds a consumer's name.
const consumerBytesMax = 60

// Consumer is a named unit of work: typed handlers, one for each event type it takes of one topic. Its name is a durable
// identity: its place in the topic is stored under it. A Consumer is put together while wiring, by one goroutine.
type Consumer struct {
	name     string
	policy   Policy
	topic    string
	types    []string
	handlers []cqrs.GroupEventHandler
	refuser  Refuser // nil where nobody asks; set by the router
	jobs     bool    // it is a queue of jobs
}

// ConsumerOption changes one setting of a Consumer.
type ConsumerOption func(*Consumer)

// WithPolicy says what becomes of events whose handler fails. Default: Policy's zero value.
func WithPolicy(p Policy) ConsumerOption { return func(c *Consumer) { c.policy = p } }

// NewConsumer returns a consumer without handlers. The name is lower case, words joined by dashes, the noun first:
// "welcome-email". It returns ErrEventShape for another name, and ErrPolicy for a policy that cannot be kept.
func NewConsumer(name string, options ...ConsumerOption) (*Consumer, error) {
	if len(name) > consumerBytesMax || !consumerPattern.MatchString(name) {
		return nil, fmt.Errorf("%w: a consumer is named like welcome-email, not %q", ErrEventShape, name)
	}
	c := &Consumer{name: name}
	for _, option := range options {
		option(c)
	}
	c.policy = c.policy.withDefaults()
	if err := c.policy.validate(); err != nil {
		return nil, fmt.Errorf("consumer %s: %w", name, err)
	}
	return c, nil
}

// Handle adds the handler for event type E. Events of the topic that the consumer has no handler for are passed over.
//
// The handler is called at least once for each event, for one key one after another in the order of the commits, for
// different keys at the same time. The context carries the event's id (domain.IdempotencyKey); it ends with the policy's deadline,
// when the process is told to stop and its time is up, or when another process has taken over. An error or a panic parks
// the event with its key; Permanent and RetryAfter say more than "again later". Handle returns ErrDuplicate for a second handler of
// E, and ErrEventShape when E is of another topic than the handlers before.
func Handle[E domain.Event](c *Consumer, h func(context.Context, E) error) error {
	eventType, err := typeOf[E]()
	if err != nil {
		return err
	}
	topic, _, _ := strings.Cut(eventType, ".")
	switch {
	case c.topic != "" && c.topic != topic:
		return fmt.Errorf("%w: consumer %s takes events of %s, not %s", ErrEventShape, c.name, c.topic, eventType)
	case slices.Contains(c.types, eventType):
		return fmt.Errorf("consumer %s, %s: %w", c.name, eventType, ErrDuplicate)
	}
	c.topic = topic
	c.types = append(c.types, eventType)
	c.handlers = append(c.handlers, cqrs.NewGroupEventHandler(func(ctx context.Context, e *E) error { return h(ctx, *e) }))
	return nil
}

// Name returns the consumer's durable name.
func (c *Consumer) Name() string { return c.name }

// Topic returns the topic that the consumer reads; "" while it has no handler.
func (c *Consumer) Topic() string { return c.topic }

// Types returns the event types that the consumer handles, in the order of their registration.
func (c *Consumer) Types() []string { return slices.Clone(c.types) }
