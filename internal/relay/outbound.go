package relay

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/broker"
	"postbus/internal/broker/postgres"
)

const (
	// consumerPrefix begins the relays' names among those of consumers, which have no colon.
	consumerPrefix = "relay:"
	// underWay is how many messages of a topic are being published at a time, each of another key.
	underWay = 256

	retryFirst = 50 * time.Millisecond
	retryLast  = time.Second
	// refusedMost is how often a message may fail after others were taken behind it, before it is put out of their way.
	refusedMost = 5
	// parkedLast is the longest wait between the attempts then.
	parkedLast = 10 * time.Second
	// tellEvery is how often the log says that the broker takes nothing.
	tellEvery = 30 * time.Second
)

// Outbound publishes a log's topics to a broker.
type Outbound struct {
	log    *postgres.Log
	broker broker.Broker
	// identity is that of a broker.Kind; "" publishes wherever the consumers read.
	identity string
	topics   []string
	logger   *slog.Logger

	taken atomic.Int64 // messages, by the broker

	mu   sync.Mutex
	told time.Time // when it was said that the broker takes nothing
}

// NewOutbound returns the relay of the log's topics. Before it runs, its Subscriptions are provisioned, unless To is called.
func NewOutbound(log *postgres.Log, to broker.Broker, topics []string, logger *slog.Logger) *Outbound {
	return &Outbound{log: log, broker: to, topics: topics, logger: logger}
}

// To has it publish only while the consumers are handed over to the broker of that identity, and wait while they are not; before
// Run.
func (o *Outbound) To(identity string) { o.identity = identity }

// Subscriptions are the relay's places in the topics: a consumer for each.
func Subscriptions(topics []string) []postgres.Subscription {
	all := make([]postgres.Subscription, len(topics))
	for i, topic := range topics {
		all[i] = postgres.Subscription{Consumer: consumerPrefix + topic, Topic: topic}
	}
	return all
}

// IsRelay tells whether a consumer of that name is a relay, and of which topic.
func IsRelay(consumer string) (topic string, ok bool) {
	return strings.CutPrefix(consumer, consumerPrefix)
}

// Run publishes until ctx ends; then it hands over what is under way. It returns an error if a topic was not provisioned.
func (o *Outbound) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, s := range Subscriptions(o.topics) {
		subscriber, err := o.log.RelaySubscriber(s.Consumer, o.identity, underWay)
		if err != nil {
			return fmt.Errorf("relay topic %s: %w", s.Topic, err)
		}
		messages, err := subscriber.Subscribe(context.WithoutCancel(ctx), s.Topic)
		if err != nil {
			return fmt.Errorf("relay topic %s: %w", s.Topic, err)
		}
		for range underWay {
			running.Go(func() {
				for m := range messages {
					o.carry(ctx, s.Topic, m)
				}
			})
		}
		running.Go(func() {
			<-ctx.Done()
			if err := subscriber.Close(); err != nil {
				o.logger.Warn("relay did not hand over", slog.Any("error", err), slog.String("topic", s.Topic))
			}
		})
	}
	<-ctx.Done()
	return nil
}

// carry publishes one message, as often as it takes. It gives it back when this process stops, or has lost its share, and has it
// parked with its key when the broker refuses it while it takes others: in its place it would hold them up in the end, since of
// what follows it only so much is read.
func (o *Outbound) carry(ctx context.Context, topic string, m *message.Message) {
	var failed failures
	for wait := retryFirst; ; wait = min(2*wait, retryLast) {
		err := o.broker.Publisher().Publish(topic, m)
		if err == nil {
			o.taken.Add(1)
			m.Ack()
			return
		}
		if ctx.Err() == nil && m.Context().Err() == nil {
			o.tell(topic, err)
		}
		if failed.again(o.taken.Load()) {
			o.log.Refuse(m, refusedError{err})
			m.Nack()
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			continue
		case <-ctx.Done():
		case <-m.Context().Done():
		}
		timer.Stop()
		m.Nack()
		return
	}
}

// failures tells a message that is refused from one that waits for the broker as all do.
type failures struct {
	count, refused int
	taken          int64 // by the broker, at the second failure
}

// again notes a failure, and how many messages the broker has taken so far. It reports whether the message is in the way of others.
// Those count that were taken after its second failure: at the first, as when a connection is lost, some are still under way.
func (f *failures) again(taken int64) (inTheWay bool) {
	switch f.count++; {
	case f.count == 2:
		f.taken = taken
	case f.count > 2 && taken > f.taken:
		f.refused++
	}
	return f.refused >= refusedMost
}

// refusedError has a message tried again for as long as it takes, with its key behind it and out of the others' way.
type refusedError struct{ error }

// Next is what the log asks: when to try again.
func (refusedError) Next(attempt int) (wait time.Duration, again bool) {
	return min(retryLast<<min(attempt, 10), parkedLast), true
}

// tell says now and then that the broker takes nothing.
func (o *Outbound) tell(topic string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Since(o.told) < tellEvery {
		return
	}
	o.told = time.Now()
	o.logger.Warn("events wait for the broker", slog.String("topic", topic), slog.Any("error", err))
}
