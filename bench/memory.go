package main

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"postbus/internal/bus"
)

// templates are encoded messages that the contenders in memory make copies of, so that they do not pay for encoding.
func templates(codec *bus.Codec, count int) ([]*message.Message, error) {
	return newMessages(context.Background(), codec, 0, min(count, loadBatch))
}

// openMemory is the router fed from memory, with as many messages in flight as postbus has lanes: what remains of the
// time when reading costs nothing.
func openMemory(r request) (peer, error) {
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	messages, err := templates(codec, r.Count)
	if err != nil {
		return nil, err
	}
	return routed{codec: codec, subscribers: func(string) (message.Subscriber, error) {
		return &memory{templates: messages, count: int64(r.Count), closing: make(chan struct{})}, nil
	}}, nil
}

// memory delivers count copies of its templates.
type memory struct {
	templates []*message.Message
	count     int64
	given     atomic.Int64
	closing   chan struct{}
	once      sync.Once
}

// Subscribe implements message.Subscriber.
func (s *memory) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	var lanes sync.WaitGroup
	for range lanesDefault {
		lanes.Go(func() {
			for n := s.given.Add(1); n <= s.count; n = s.given.Add(1) {
				from := s.templates[n%int64(len(s.templates))]
				m := message.NewMessage(from.UUID, from.Payload)
				m.Metadata = maps.Clone(from.Metadata)
				m.SetContext(ctx)
				select {
				case out <- m:
				case <-s.closing:
					return
				}
				<-m.Acked()
			}
		})
	}
	go func() {
		lanes.Wait()
		<-s.closing
		close(out)
	}()
	return out, nil
}

// Close implements message.Subscriber.
func (s *memory) Close() error {
	s.once.Do(func() { close(s.closing) })
	return nil
}

// goChannelWindow is how many messages are published and not handled yet. GoChannel has goroutines for each; more of them
// make it slower.
const goChannelWindow = 1000

// goChannel is Watermill's own Pub/Sub in memory. Its messages are published while they are read, because it keeps what is
// there beforehand as a goroutine each.
type goChannel struct {
	routed
	channel   *gochannel.GoChannel
	templates []*message.Message
	count     int
}

func openGoChannel(r request) (peer, error) {
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	messages, err := templates(codec, r.Count)
	if err != nil {
		return nil, err
	}
	channel := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	return &goChannel{routed: routed{codec: codec}, channel: channel, templates: messages, count: r.Count}, nil
}

func (g *goChannel) consume(ctx context.Context, consumers []string, handle func(consumer string) handler) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	room := make(chan struct{}, goChannelWindow)
	ready := make(chan struct{})
	g.subscribers = func(string) (message.Subscriber, error) { return subscribed{g.channel, ready}, nil }
	go func() {
		<-ready
		for n := range g.count {
			room <- struct{}{}
			if err := g.channel.Publish(topicName, g.templates[n%len(g.templates)]); err != nil {
				cancel(fmt.Errorf("publish: %w", err))
				return
			}
		}
	}()
	return g.routed.consume(ctx, consumers, func(consumer string) handler {
		h := handle(consumer)
		return func(ctx context.Context, number int64) error {
			<-room
			return h(ctx, number)
		}
	})
}

// subscribed closes ready once there is a subscription: what GoChannel gets before is lost.
type subscribed struct {
	*gochannel.GoChannel
	ready chan struct{}
}

// Subscribe implements message.Subscriber.
func (s subscribed) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	defer close(s.ready)
	return s.GoChannel.Subscribe(ctx, topic)
}
