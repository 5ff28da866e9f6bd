package relay_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/broker"
	"postbus/internal/broker/memory"
	"postbus/internal/broker/postgres"
	"postbus/internal/relay"
	"postbus/internal/servertest"
)

// watched is a broker that its test looks into: before each message is published, admit says what is to come of it.
type watched struct {
	broker.Broker
	admit func(m *message.Message) error

	mu       sync.Mutex
	underWay map[string]int // by key
	together bool           // two of one key were under way at a time
}

func watch(admit func(*message.Message) error) *watched {
	return &watched{Broker: memory.New(), admit: admit, underWay: make(map[string]int)}
}

func (b *watched) Publisher() message.Publisher { return watchedPublisher{b.Broker.Publisher(), b} }

// keys is of how many keys something is under way.
func (b *watched) keys() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.underWay)
}

type watchedPublisher struct {
	message.Publisher
	watched *watched
}

func (p watchedPublisher) Publish(topic string, messages ...*message.Message) error {
	b, key := p.watched, messages[0].Metadata["partitionkey"]
	b.mu.Lock()
	b.underWay[key]++
	b.together = b.together || b.underWay[key] > 1
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.underWay[key]--; b.underWay[key] == 0 {
			delete(b.underWay, key)
		}
	}()
	if err := b.admit(messages[0]); err != nil {
		return err
	}
	return p.Publisher.Publish(topic, messages...)
}

// outbound relays to the broker in this process, until stop.
func (w *way) outbound(to broker.Broker) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := relay.NewOutbound(w.outbox, to, []string{topic}, quiet).Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	w.t.Cleanup(stop)
	return stop
}

// status is where the relay stands.
func (w *way) status() postgres.Status {
	w.t.Helper()
	s, known, err := w.outbox.Status(w.t.Context(), relay.Subscriptions([]string{topic})[0])
	if err != nil || !known {
		w.t.Fatalf("known %v: %v", known, err)
	}
	return s
}

// TestKeysAreUnderWayTogether, one message of each: the relay does not wait for an acknowledgement before it sends for another key,
// and waits before it sends for the same.
func TestKeysAreUnderWayTogether(t *testing.T) {
	t.Parallel()
	w := newWay(t)
	w.write(5)
	acknowledge := make(chan struct{})
	b := watch(func(m *message.Message) error {
		select {
		case <-acknowledge:
		case <-m.Context().Done():
		}
		return nil
	})
	stop := w.outbound(b)
	eventually(t, "a message of each key under way", func() bool { return b.keys() == doors })
	close(acknowledge)
	eventually(t, "the end of what waits", func() bool { return w.status().Waiting == 0 })
	stop()
	if b.together {
		t.Error("two messages of one key were under way at a time")
	}
}

// TestArrivalsAreStoredInBatches: what has come to the broker meanwhile is stored by few transactions.
func TestArrivalsAreStoredInBatches(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	w := newWay(t)
	w.write(30)
	b := memory.New()
	stop := w.outbound(b)
	eventually(t, "the end of what waits", func() bool { return w.status().Waiting == 0 })
	stop()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.NewInbound(w.inbound, b, []string{topic}, quiet).Run(ctx) }()
	var stored, transactions int
	eventually(t, "all that arrives", func() bool {
		err := w.pool.QueryRow(t.Context(), `select count(*), count(distinct xid) from postbus_inbound.topic_door`).Scan(&stored, &transactions)
		return err == nil && stored == w.total()
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if transactions > 5 {
		t.Errorf("%d events took %d transactions", stored, transactions)
	}
}

var errRefused = errors.New("the broker refuses this message")

// TestMessageThatTheBrokerRefuses holds up its key, and no other, however many events come.
func TestMessageThatTheBrokerRefuses(t *testing.T) {
	t.Parallel()
	w := newWay(t)
	const bad = "door-3"
	refuses := make(chan struct{}) // closed when it does no longer
	b := watch(func(m *message.Message) error {
		select {
		case <-refuses:
		default:
			if m.Metadata["partitionkey"] == bad {
				return errRefused
			}
		}
		return nil
	})
	w.outbound(b)
	const each = 400 // of eight doors: more than a consumer has read and not done
	w.write(each)
	eventually(t, "nothing but the key that is refused", func() bool {
		s := w.status()
		return s.Waiting == 0 && s.Parked == each
	})
	close(refuses)
	eventually(t, "the end of what is parked", func() bool { return w.status().Parked == 0 })
	r, err := b.Reader(t.Context(), topic, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]string)
	for n := 0; n < w.total(); {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		batch, err := r.Next(ctx)
		cancel()
		if err != nil {
			t.Fatalf("after %d of %d events: %v", n, w.total(), err)
		}
		for _, m := range batch.Messages {
			key := m.Metadata["partitionkey"]
			got[key] = append(got[key], string(m.Payload))
		}
		n += len(batch.Messages)
	}
	wantInOrder(t, got[bad], bad)
}

// wantInOrder checks the payloads of a door.
func wantInOrder(t *testing.T, payloads []string, door string) {
	t.Helper()
	for n, got := range payloads {
		want, err := json.Marshal(opened{Door: door, N: n})
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Fatalf("%s: %s where %s should be", door, got, want)
		}
	}
}
