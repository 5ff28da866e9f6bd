// Package brokertest has the tests that every broker passes.
package brokertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"postbus/internal/broker"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

// Run runs them. open returns a broker without topics, closed by the tests, and again to the same when called again in
// one test.
func Run(t *testing.T, capabilities broker.Capabilities, open func(t *testing.T) func() broker.Broker) {
	t.Helper()
	tests := map[string]func(*testing.T, broker.Capabilities, func() broker.Broker){
		"what is published is read as it was": asItWas,
		"a key keeps its order":               order,
		"reading goes on at a place":          places,
		"nothing waits for what comes next":   however,
		"a topic can be read again":           replay,
		"repeats":                             repeats,
		"topics are made by many at once":     provision,
		"publishing ends with its context":    ended,
		"reading ends with its context":       readingEnds,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, capabilities, open(t)) })
	}
}

// topic is what the tests publish to.
const topic = "user"

func opened(t *testing.T, open func() broker.Broker) broker.Broker {
	t.Helper()
	b := open()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	deadline := time.Now().Add(patience)
	for {
		err := b.Provision(t.Context(), topic)
		if err == nil {
			return b
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond) // until it is connected
	}
}

// New makes an event's message.
func New(key string, n int) *message.Message {
	id := uuid.Must(uuid.NewV7())
	m := message.NewMessage(id.String(), fmt.Appendf(nil, `{"n":%d}`, n))
	m.Metadata = message.Metadata{
		"specversion": "1.0", "id": id.String(), "source": "/test", "type": "user.tested", "datacontenttype": "application/json",
	}
	if key != "" {
		m.Metadata["partitionkey"] = key
	}
	return m
}

func publish(t *testing.T, b broker.Broker, messages ...*message.Message) {
	t.Helper()
	for _, m := range messages {
		m.SetContext(t.Context())
	}
	if err := b.Publisher().Publish(topic, messages...); err != nil {
		t.Fatal(err)
	}
}

// Read reads n messages of a topic, from the places on, and where reading goes on.
func Read(t *testing.T, b broker.Broker, topic string, from map[string]string, n int) ([]*message.Message, map[string]string) {
	t.Helper()
	r, err := b.Reader(t.Context(), topic, from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	places := maps.Clone(from)
	if places == nil {
		places = make(map[string]string)
	}
	var all []*message.Message
	for len(all) < n {
		batch, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of %d messages: %v", len(all), n, err)
		}
		if err := r.Stored(ctx, batch); err != nil {
			t.Fatal(err)
		}
		all = append(all, batch.Messages...)
		places[batch.Partition] = batch.Place
	}
	if len(all) > n {
		t.Errorf("read %d messages, want %d", len(all), n)
	}
	return all, places
}

func ids(messages []*message.Message) []string {
	all := make([]string, len(messages))
	for i, m := range messages {
		all[i] = m.UUID
	}
	return all
}

func asItWas(t *testing.T, _ broker.Capabilities, open func() broker.Broker) {
	t.Helper()
	b := opened(t, open)
	odd := New("é %25 \"quoted\"\n日本", 1)
	odd.Metadata["correlationid"] = "a b"
	large := New("k", 2)
	large.Payload = message.Payload(strings.Repeat("x", 256<<10))
	large.Metadata["subject"] = strings.Repeat("y", 7<<10)
	none := New("", 3)
	none.Payload = nil
	for _, m := range []*message.Message{odd, large, none} {
		publish(t, b, m)
	}
	got, _ := Read(t, b, topic, nil, 3)
	for _, want := range []*message.Message{odd, large, none} {
		i := slices.IndexFunc(got, func(m *message.Message) bool { return m.UUID == want.UUID })
		if i < 0 {
			t.Fatalf("%s is missing", want.UUID)
		}
		if !maps.Equal(got[i].Metadata, want.Metadata) {
			t.Errorf("metadata are %q, want %q", got[i].Metadata, want.Metadata)
		}
		if string(got[i].Payload) != string(want.Payload) {
			t.Errorf("payload has %d bytes, want %d", len(got[i].Payload), len(want.Payload))
		}
	}
}

// order publishes as the relay does: many keys at once, of one key the next when the one before is acknowledged.
func order(t *testing.T, _ broker.Capabilities, open func() broker.Broker) {
	t.Helper()
	const keys, each = 32, 20
	b := opened(t, open)
	var publishing sync.WaitGroup
	want := make(map[string][]string, keys)
	for k := range keys {
		key := fmt.Sprint("key-", k)
		var messages []*message.Message
		for n := range each {
			messages = append(messages, New(key, n))
		}
		want[key] = ids(messages)
		publishing.Go(func() {
			for _, m := range messages {
				m.SetContext(t.Context())
				if err := b.Publisher().Publish(topic, m); err != nil {
					t.Error(err)
				}
			}
		})
	}
	publishing.Wait()
	all, _ := Read(t, b, topic, nil, keys*each)
	got := make(map[string][]string, keys)
	for _, m := range all {
		key := m.Metadata["partitionkey"]
		got[key] = append(got[key], m.UUID)
	}
	for key := range want {
		if !slices.Equal(got[key], want[key]) {
			t.Errorf("%s was read as %v, want %v", key, got[key], want[key])
		}
	}
}

func places(t *testing.T, _ broker.Capabilities, open func() broker.Broker) {
	t.Helper()
	b := opened(t, open)
	first, second := New("k", 1), New("k", 2)
	publish(t, b, first)
	got, at := Read(t, b, topic, nil, 1)
	publish(t, b, second)
	more, _ := Read(t, opened(t, open), topic, at, 1)
	if got := ids(append(got, more...)); !slices.Equal(got, ids([]*message.Message{first, second})) {
		t.Errorf("read %v", got)
	}
}

// however many there are, the last is read without another behind it, by a reader that finds them there.
func however(t *testing.T, _ broker.Capabilities, open func() broker.Broker) {
	t.Helper()
	b := opened(t, open)
	var at map[string]string
	for n := 1; n <= 32; n += 1 + n/16 {
		var messages []*message.Message
		for i := range n {
			messages = append(messages, New("k", i))
		}
		publish(t, b, messages...)
		var got []*message.Message
		began := time.Now()
		if got, at = Read(t, b, topic, at, n); !slices.Equal(ids(got), ids(messages)) {
			t.Errorf("of %d were read %v", n, ids(got))
		}
		if took := time.Since(began); took > patience/2 {
			t.Fatalf("%d were read after %s", n, took)
		}
	}
}

func replay(t *testing.T, c broker.Capabilities, open func() broker.Broker) {
	t.Helper()
	if !c.Replay {
		t.Skip("not one of its capabilities")
	}
	b := opened(t, open)
	publish(t, b, New("k", 1), New("k", 2))
	once, _ := Read(t, b, topic, nil, 2)
	again, _ := Read(t, b, topic, nil, 2)
	if !slices.Equal(ids(once), ids(again)) {
		t.Errorf("read %v, then %v", ids(once), ids(again))
	}
}

func repeats(t *testing.T, c broker.Capabilities, open func() broker.Broker) {
	t.Helper()
	b := opened(t, open)
	m, last := New("k", 1), New("k", 2)
	publish(t, b, m)
	publish(t, b, m)
	publish(t, b, last)
	want := []*message.Message{m, m, last}
	if c.Repeats > 0 {
		want = want[1:]
	}
	got, _ := Read(t, b, topic, nil, len(want))
	if !slices.Equal(ids(got), ids(want)) {
		t.Errorf("read %v, want %v", ids(got), ids(want))
	}
}

func provision(t *testing.T, _ broker.Capabilities, open func() broker.Broker) {
	t.Helper()
	var making sync.WaitGroup
	brokers := make([]broker.Broker, 4)
	for i := range brokers {
		making.Go(func() { brokers[i] = opened(t, open) })
	}
	making.Wait()
	publish(t, brokers[0], New("k", 1))
	Read(t, brokers[1], topic, nil, 1)
}

func ended(t *testing.T, _ broker.Capabilities, open func() broker.Broker) {
	t.Helper()
	b := opened(t, open)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := New("k", 1)
	m.SetContext(ctx)
	if err := b.Publisher().Publish(topic, m); err == nil {
		t.Error("published under a context that had ended")
	}
}

func readingEnds(t *testing.T, _ broker.Capabilities, open func() broker.Broker) {
	t.Helper()
	b := opened(t, open)
	r, err := b.Reader(t.Context(), topic, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("reading ended with %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
