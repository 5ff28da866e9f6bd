package proof_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/pgtest"
)

// TestConformance runs Watermill's suite for Pub/Subs. It leaves out two of its tests:
//
//   - TestNewSubscriberReceivesOldMessages, since a consumer that was not known before starts with what commits from then
//     on.
//   - TestReconnect, which restarts the broker by a command and races with itself; TestSoak does the same and more.
//
// ExactlyOnceDelivery is not claimed: delivery is at least once.
func TestConformance(t *testing.T) {
	t.Parallel()
	l := openLog(t, pgtest.New(t, postgres.Migrations(postgres.DefaultSchema)), postgres.Config{
		Lease: time.Second, Poll: 20 * time.Millisecond,
		Drain:    500 * time.Millisecond,                       // the suite closes subscribers with messages it never answers
		RetryMin: time.Millisecond, RetryMax: time.Millisecond, // and refuses messages a hundred times
	})
	features := tests.Features{ConsumerGroups: true, GuaranteedOrder: true, Persistent: true, ForceShort: true}
	create := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		t.Helper()
		s := &groupSubscriber{log: l, group: group}
		t.Cleanup(func() { _ = s.Close() }) // the suite forgets some
		return publisher{l}, s
	}
	tests.TestPubSub(t, features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		t.Helper()
		return create(t, "test")
	}, create)
}

// log is the log in one database, with the pool that its writers use.
type log struct {
	*postgres.Log
	pool *pgxpool.Pool
}

func openLog(t *testing.T, pool *pgxpool.Pool, config postgres.Config) log {
	t.Helper()
	l, err := postgres.Open(pool, config, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return log{l, pool}
}

// topicName makes a name that the log allows of one that the suite has chosen: "topic-", a UUID, and perhaps a number.
func topicName(name string) string {
	return strings.ReplaceAll(strings.TrimPrefix(name, "topic-"), "-", "")
}

// publisher commits each call's messages in a transaction of their own, as the suite expects of a Publisher. The
// messages of a topic have one key, so that the suite sees the order that is promised for a key.
type publisher struct{ log log }

func (p publisher) Publish(topic string, messages ...*message.Message) error {
	name := "t" + topicName(topic)
	ctx := context.Background()
	for _, m := range messages {
		m.Metadata.Set("partitionkey", "the only one")
	}
	batch := &pgx.Batch{}
	if err := p.log.Append(batch, name, messages...); err != nil {
		return err
	}
	if err := p.log.pool.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	p.log.Wake(name)
	return nil
}

func (publisher) Close() error { return nil }

// groupSubscriber is what the suite takes for one subscriber: a consumer group that may subscribe to many topics. In
// the log a consumer reads one topic, so each topic gets a consumer, and each subscription a subscriber.
type groupSubscriber struct {
	log   log
	group string

	mu     sync.Mutex
	closed bool
	parts  []message.Subscriber
}

func (g *groupSubscriber) SubscribeInitialize(topic string) error {
	name := "t" + topicName(topic)
	return g.log.Provision(context.Background(), []string{name}, []postgres.Subscription{{Consumer: g.consumer(name), Topic: name}})
}

func (g *groupSubscriber) consumer(topic string) string { return g.group + " of " + topic }

func (g *groupSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if err := g.SubscribeInitialize(topic); err != nil {
		return nil, err
	}
	name := "t" + topicName(topic)
	s, err := g.log.Subscriber(g.consumer(name), lanes)
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

// TestSubscriberContract is what message.Subscriber asks for and the suite does not look at.
func TestSubscriberContract(t *testing.T) {
	t.Parallel()
	l := openLog(t, pgtest.New(t, postgres.Migrations(postgres.DefaultSchema)), postgres.Config{})
	if err := l.Provision(t.Context(), []string{"user"}, []postgres.Subscription{{Consumer: "reader", Topic: "user"}}); err != nil {
		t.Fatal(err)
	}
	open := func() message.Subscriber {
		s, err := l.Subscriber("reader", lanes)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	t.Run("closed twice, and by many", func(t *testing.T) {
		s := open()
		messages, err := s.Subscribe(t.Context(), "user")
		if err != nil {
			t.Fatal(err)
		}
		var closing sync.WaitGroup
		for range 8 {
			closing.Go(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if _, opened := <-messages; opened {
					t.Error("Close has returned and the channel is open")
				}
			})
		}
		closing.Wait()
		if _, err := s.Subscribe(t.Context(), "user"); !errors.Is(err, postgres.ErrClosed) {
			t.Errorf("subscribing after Close: %v", err)
		}
	})
	t.Run("closed before it subscribed", func(t *testing.T) {
		if err := open().Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("the end of the context closes the channel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		messages, err := open().Subscribe(ctx, "user")
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		select {
		case _, opened := <-messages:
			if opened {
				t.Error("a message that nobody published")
			}
		case <-time.After(patience):
			t.Error("the channel is still open")
		}
	})
	t.Run("a second subscription is refused", func(t *testing.T) {
		s := open()
		if _, err := s.Subscribe(t.Context(), "user"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Subscribe(t.Context(), "user"); err == nil {
			t.Error("accepted")
		}
	})
}

// patience is how long a test waits for what must come; only a broken build uses it up.
const patience = time.Minute
