// Package memory is a broker inside the process, for tests: what it was given is gone with it.
package memory

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/broker"
)

const (
	volatileParameter = "volatile"
	batchMax          = 1000
	partition         = "memory"
)

// Kind is memory://. It is refused unless the URL says volatile=yes, since what is acknowledged is lost with the process.
func Kind() broker.Kind {
	return broker.Kind{
		Scheme: "memory", Name: "this process's memory, for tests",
		Capabilities: broker.Capabilities{Loss: "the process ends", Replay: true},
		Check: func(a broker.Address) error {
			if a.Parameter(volatileParameter, "") != "yes" || len(a.Hosts) > 0 || a.Path != "" {
				return &broker.URLError{
					Problem: "is for tests: it loses events with the process, and has to say so: memory://?volatile=yes",
				}
			}
			return a.Known(volatileParameter)
		},
		Identity: func(broker.Address) string { return "memory" },
		Open:     func(broker.Address, *slog.Logger) (broker.Broker, error) { return New(), nil },
	}
}

// Broker keeps topics in memory. Its zero value is not ready; New is.
type Broker struct {
	mu     sync.Mutex
	topics map[string][]*message.Message
	more   chan struct{} // closed when something was published
}

// New returns a broker without topics.
func New() *Broker {
	return &Broker{topics: make(map[string][]*message.Message), more: make(chan struct{})}
}

// Provision does nothing: a topic is there when something was published to it.
func (*Broker) Provision(context.Context, ...string) error { return nil }

// Publisher implements broker.Broker.
func (b *Broker) Publisher() message.Publisher { return publisher{b} }

// Close does nothing.
func (*Broker) Close() error { return nil }

type publisher struct{ *Broker }

// Publish implements message.Publisher.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range messages {
		if err := m.Context().Err(); err != nil {
			return err
		}
		p.topics[topic] = append(p.topics[topic], m.Copy())
	}
	close(p.more)
	p.more = make(chan struct{})
	return nil
}

// Reader implements broker.Broker.
func (b *Broker) Reader(_ context.Context, topic string, places map[string]string) (broker.Reader, error) {
	r := &reader{Broker: b, topic: topic}
	if place := places[partition]; place != "" {
		var err error
		if r.next, err = strconv.Atoi(place); err != nil {
			return nil, fmt.Errorf("read place: %w", err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.next > len(b.topics[topic]) {
		r.next = 0 // of an earlier process
	}
	return r, nil
}

type reader struct {
	*Broker
	topic string
	next  int
}

// Next implements broker.Reader.
func (r *reader) Next(ctx context.Context) (broker.Batch, error) {
	for {
		r.mu.Lock()
		found, more := r.topics[r.topic][r.next:], r.more
		found = found[:min(len(found), batchMax)]
		r.mu.Unlock()
		if len(found) > 0 {
			r.next += len(found)
			batch := broker.Batch{Partition: partition, Place: strconv.Itoa(r.next)}
			for _, m := range found {
				batch.Messages = append(batch.Messages, m.Copy())
			}
			return batch, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return broker.Batch{}, ctx.Err()
		}
	}
}

// Stored does nothing: the place is the reader's own.
func (*reader) Stored(context.Context, broker.Batch) error { return nil }

// Close does nothing.
func (*reader) Close() error { return nil }
