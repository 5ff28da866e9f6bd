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
	// purgeEvery is how often, at most, the driver is made to forget what it knows of topics.
	purgeEvery = time.Second
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
	p.client.Produce(ctx, p.toKafka(topic, m), func(_ *kgo.Record, err error) {
		cancel()
		stored <- err
	})
	select {
	case err := <-stored:
		if errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
			p.forget(topic)
		}
		return err
	case <-m.Context().Done():
		return m.Context().Err()
	}
}

// forget has the driver look at a topic anew: it does not take one that was made anew for the one it knows.
func (b *Broker) forget(topic string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.purged) >= purgeEvery {
		b.purged = time.Now()
		b.client.PurgeTopicsFromProducing(topic)
	}
}

// partitionOf is the partition of a key: the one that Kafka's own clients choose in a topic of that many partitions.
func (b *Broker) partitionOf(key string) int32 {
	n := kgo.StickyKeyPartitioner(nil).ForTopic("").Partition(&kgo.Record{Key: []byte(key)}, b.partitions)
	return int32(n) //nolint:gosec // less than partitionsMax
}
