package relay_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"postbus/internal/broker"
	"postbus/internal/broker/nats"
	"postbus/internal/broker/postgres"
	"postbus/internal/natstest"
	"postbus/internal/pgtest"
	"postbus/internal/relay"
	"postbus/internal/servertest"
)

// TestWatermillsSuite runs Watermill's suite for Pub/Subs over the whole way: published to NATS, stored in a log, read from there.
func TestWatermillsSuite(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	runSuite(t, nats.Kind(), natstest.Start(t).URL()+"?prefix=suite")
}

// runSuite runs it over a broker. What it leaves out is what the log's own run leaves out (internal/broker/postgres/proof).
func runSuite(t *testing.T, kind broker.Kind, url string) {
	t.Helper()
	address, err := broker.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	b, err := kind.Open(address, quiet)
	if err != nil {
		t.Fatal(err)
	}
	log, err := postgres.Open(pgtest.New(t, postgres.Migrations(postgres.DefaultSchema)), postgres.Config{
		Lease: time.Second, Poll: 20 * time.Millisecond,
		Drain:    500 * time.Millisecond,                       // the suite closes subscribers with messages it never answers
		RetryMin: time.Millisecond, RetryMax: time.Millisecond, // and refuses messages a hundred times
	}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{broker: b, log: log, topics: make(map[string]bool)}
	ctx, stop := context.WithCancel(context.Background())
	s.ctx = ctx
	t.Cleanup(func() {
		stop()
		s.running.Wait()
		_ = b.Close()
	})
	features := tests.Features{ConsumerGroups: true, GuaranteedOrder: true, Persistent: true, ForceShort: true}
	create := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		t.Helper()
		g := &groupSubscriber{suite: s, group: group}
		t.Cleanup(func() { _ = g.Close() }) // the suite forgets some
		return suitePublisher{s}, g
	}
	tests.TestPubSub(t, features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		t.Helper()
		return create(t, "test")
	}, create)
}

// suiteLanes is how many keys are handled at the same time.
const suiteLanes = 16

// suite makes topics, and what stores their arrivals, as the suite names them.
type suite struct {
	broker  broker.Broker
	log     *postgres.Log
	ctx     context.Context //nolint:containedctx // of what stores arrivals
	running sync.WaitGroup

	mu     sync.Mutex
	topics map[string]bool
}

// topicName makes a name that the log allows of one that the suite has chosen: "topic-", a UUID, and perhaps a number.
func topicName(name string) string {
	return "t" + strings.ReplaceAll(strings.TrimPrefix(name, "topic-"), "-", "")
}

func (s *suite) provision(topic string, subscriptions ...postgres.Subscription) error {
	if err := s.log.Provision(s.ctx, []string{topic}, subscriptions); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.topics[topic] {
		return nil
	}
	deadline := time.Now().Add(patience)
	for {
		err := s.broker.Provision(s.ctx, topic)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
		<-time.After(10 * time.Millisecond) // until it is connected
	}
	s.topics[topic] = true
	inbound := relay.NewInbound(s.log, s.broker, []string{topic}, quiet)
	s.running.Go(func() { _ = inbound.Run(s.ctx) })
	return nil
}

// suitePublisher gives the messages of a topic one key, so that the suite sees the order that is promised for a key.
type suitePublisher struct{ *suite }

func (p suitePublisher) Publish(topic string, messages ...*message.Message) error {
	name := topicName(topic)
	if err := p.provision(name); err != nil {
		return err
	}
	for _, m := range messages {
		m.Metadata.Set("partitionkey", "the only one")
	}
	return p.broker.Publisher().Publish(name, messages...)
}

func (suitePublisher) Close() error { return nil }

// groupSubscriber is what the suite takes for one subscriber: a consumer group that may subscribe to many topics.
type groupSubscriber struct {
	*suite
	group string

	mu     sync.Mutex
	closed bool
	parts  []message.Subscriber
}

func (g *groupSubscriber) SubscribeInitialize(topic string) error {
	name := topicName(topic)
	return g.provision(name, postgres.Subscription{Consumer: g.consumer(name), Topic: name})
}

func (g *groupSubscriber) consumer(topic string) string { return g.group + " of " + topic }

func (g *groupSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if err := g.SubscribeInitialize(topic); err != nil {
		return nil, err
	}
	name := topicName(topic)
	s, err := g.log.Subscriber(g.consumer(name), suiteLanes)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.parts = append(g.parts, s)
	if g.closed {
		err = s.Close() // the subscriber's own answer to what follows is what counts
	}
	g.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.Subscribe(ctx, name)
}

func (g *groupSubscriber) Close() error {
	g.mu.Lock()
	g.closed = true
	parts := g.parts
	g.mu.Unlock()
	errs := make([]error, len(parts))
	var closing sync.WaitGroup
	for i, s := range parts {
		closing.Go(func() { errs[i] = s.Close() })
	}
	closing.Wait()
	return errors.Join(errs...)
}
