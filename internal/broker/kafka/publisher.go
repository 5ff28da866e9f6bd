package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"postbus/internal/broker"
)

const (
	// batchBytesMax is how large a request's batch for a partition gets. A topic has to take it.
	batchBytesMax = broker.MessageBytesMax + overheadBytes
	overheadBytes = 64 << 10 // of a batch, and of a message in it
	// renewEvery is how often, at most, the driver is made to forget what it knows.
	renewEvery = time.Second
)

// publisher sends a message and waits for the brokers to have it. What many goroutines publish travels together.
type publisher struct{ *Broker }

// Publish implements message.Publisher.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		if err := p.publish(p.topic(topic), m); err != nil {
			return fmt.Errorf("publish to topic %s: %w", p.topic(topic), err)
		}
	}
	return nil
}

// publish waits for no longer than the message's context. The driver may still be at it then, for as long as requestTimeout:
// were it told to stop, it would give up what others have sent to the partition as well. What comes of it is a repeat of
// what is sent again.
func (p publisher) publish(topic string, m *message.Message) error {
	if err := m.Context().Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(p.ctx, requestTimeout)
	stored := make(chan error, 1)
	p.current().Produce(ctx, p.toKafka(topic, m), func(_ *kgo.Record, err error) {
		cancel()
		stored <- err
	})
	select {
	case err := <-stored:
		if errors.Is(err, kerr.UnknownTopicID) {
			p.forget()
		}
		return err
	case <-m.Context().Done():
		return m.Context().Err()
	}
}

func (b *Broker) current() *kgo.Client {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.client
}

// forget has another client publish from now on, since the driver does not take a topic that was made anew for the one it knows. To have it
// forget the topic would not do: it would number messages from 0 again under the same producer id, and the brokers would take them
// for repeats of those that had these numbers, and acknowledge what they do not store. What is under way fails, and is sent again.
func (b *Broker) forget() {
	b.mu.Lock()
	old := b.client
	if time.Since(b.renewed) < renewEvery {
		b.mu.Unlock()
		return
	}
	fresh, err := b.producer()
	if err != nil { // what has made the first makes another
		b.mu.Unlock()
		return
	}
	b.client, b.renewed = fresh, time.Now()
	b.mu.Unlock()
	old.Close()
}

// partitionOf is the partition of a key: the one that Kafka's own clients choose in a topic of that many partitions.
func (b *Broker) partitionOf(key string) int32 {
	n := kgo.StickyKeyPartitioner(nil).ForTopic("").Partition(&kgo.Record{Key: []byte(key)}, b.partitions)
	return int32(n) //nolint:gosec // less than partitionsMax
}
