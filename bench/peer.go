package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/bus"
)

// The kinds of contenders.
const (
	kindPostbus   = "postbus"
	kindMemory    = "memory"
	kindGoChannel = "gochannel"
	kindStock     = "stock"
	kindRiver     = "river"
	kindJobs      = "postbus-jobs" // its work table
	kindNATS      = "jetstream"
	kindRedis     = "redis"
)

// lanesDefault is how many messages are in flight, with those that have such a setting and no default of their own for it.
const lanesDefault = 16

// peer is one contender within a process.
type peer interface {
	// consume hands events to the consumers' handlers until ctx ends, and ends in good order.
	consume(ctx context.Context, consumers []string, handle func(consumer string) handler) error
	// publish commits one event.
	publish(ctx context.Context, number int64) error
	close() error
}

// openPeer opens the contender that r names. Its statements are counted where queries is given.
func openPeer(ctx context.Context, r request, queries *atomic.Int64) (peer, error) {
	switch r.Kind {
	case kindPostbus:
		return openPostbus(ctx, r, queries)
	case kindMemory:
		return openMemory(r)
	case kindGoChannel:
		return openGoChannel(r)
	case kindStock:
		return openStock(r, queries)
	case kindRiver:
		return openRiver(ctx, r, queries)
	case kindJobs:
		return openJobs(ctx, r, queries)
	case kindNATS:
		return openNATS(r)
	case kindRedis:
		return openRedis(r)
	default:
		return openOver(ctx, r)
	}
}

// routed is a contender that is read through the project's own router, with its middleware, codec and typed handlers.
type routed struct {
	codec *bus.Codec
	subscribers
}

// subscribers makes a function a bus.Subscribers. What it subscribes with knows how many messages are to be out.
type subscribers func(consumer string) (message.Subscriber, error)

// Subscriber implements bus.Subscribers.
func (f subscribers) Subscriber(consumer string, _ int) (message.Subscriber, error) {
	return f(consumer)
}

func (p routed) consume(ctx context.Context, names []string, handle func(consumer string) handler) error {
	consumers, err := newConsumers(names, handle)
	if err != nil {
		return err
	}
	return route(ctx, p.codec, p.subscribers, consumers)
}

// route runs consumers on the router until ctx ends.
func route(ctx context.Context, codec *bus.Codec, from bus.Subscribers, consumers []*bus.Consumer) error {
	router, err := bus.NewRouter(codec, from, warnings(os.Stderr), watermill.NopLogger{})
	if err != nil {
		return err
	}
	if err := router.Add(consumers...); err != nil {
		return err
	}
	return router.Run(ctx)
}

var errReadOnly = errors.New("this contender is only read")

func (routed) publish(context.Context, int64) error { return errReadOnly }

func (routed) close() error { return nil }

// fanIn makes one subscriber of several, for brokers whose subscribers have one message in flight.
type fanIn []message.Subscriber

// Subscribe implements message.Subscriber.
func (f fanIn) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	var running sync.WaitGroup
	for _, s := range f {
		in, err := s.Subscribe(ctx, topic)
		if err != nil {
			return nil, err
		}
		running.Go(func() {
			for m := range in {
				out <- m
			}
		})
	}
	go func() { running.Wait(); close(out) }()
	return out, nil
}

// Close implements message.Subscriber.
func (f fanIn) Close() error {
	var err error
	for _, s := range f {
		err = errors.Join(err, s.Close())
	}
	return err
}
