package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

const (
	// writers is how many pipelines are under way at a time, at most.
	writers          = 8
	pipelineMax      = 256 // messages of one
	pipelineBytesMax = 256 << 10
	// replicasTimeout is how long a pipeline waits for replicas.
	replicasTimeout = 2 * time.Second
)

var (
	errNoStream = errors.New("the stream is not there")
	errNoAnswer = errors.New("the server has not answered")
	errClosed   = errors.New("the broker is closed")
)

// offer is a message that somebody waits for to be stored.
type offer struct {
	stream string
	m      *message.Message
	stored chan error // has room for the answer
}

type publisher struct{ *Broker }

// Publish implements message.Publisher. What many goroutines publish at the same time goes in one pipeline.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		if err := p.publish(m.Context(), offer{stream: p.stream(topic), m: m, stored: make(chan error, 1)}); err != nil {
			return fmt.Errorf("publish to stream %s: %w", p.stream(topic), err)
		}
	}
	return nil
}

func (p publisher) publish(ctx context.Context, o offer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case p.offered <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-p.stopped.Done():
		return errClosed
	}
	select {
	case err := <-o.stored:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write sends what is offered, as much as there is each time, until the broker is closed.
func (b *Broker) write() {
	for {
		select {
		case o := <-b.offered:
			b.send(b.gather(o))
		case <-b.stopped.Done():
			return
		}
	}
}

// gather adds what else is offered at the moment.
func (b *Broker) gather(first offer) []offer {
	offers := []offer{first}
	for bytes := len(first.m.Payload); len(offers) < pipelineMax && bytes < pipelineBytesMax; {
		select {
		case o := <-b.offered:
			offers = append(offers, o)
			bytes += len(o.m.Payload)
		default:
			return offers
		}
	}
	return offers
}

// send adds the messages to their streams and answers each.
func (b *Broker) send(offers []offer) {
	ctx, cancel := context.WithTimeout(b.stopped, requestTimeout)
	defer cancel()
	var behind error
	if b.behind.Load() { // each attempt would add the messages once more, for as long as a replica is away
		behind = b.replicated(b.client.Wait(ctx, b.replicas, replicasTimeout))
	}
	offers = slices.DeleteFunc(offers, func(o offer) bool {
		err := cmp.Or(behind, o.m.Context().Err())
		if err != nil {
			o.stored <- err
		}
		return err != nil
	})
	if len(offers) == 0 {
		return
	}
	pipeline := b.client.Pipeline()
	added := make([]*redis.StringCmd, len(offers))
	for i, o := range offers {
		added[i] = pipeline.XAdd(ctx, b.entry(o))
	}
	var waited *redis.IntCmd
	if b.replicas > 0 {
		waited = redis.NewIntCmd(ctx, "wait", b.replicas, replicasTimeout.Milliseconds())
		_ = pipeline.Process(ctx, waited) // it has its own error
	}
	_, failed := pipeline.Exec(ctx)
	var err error
	if waited != nil {
		err = b.replicated(waited)
		b.behind.Store(err != nil)
	}
	for i, o := range offers {
		o.stored <- cmp.Or(acknowledged(added[i], failed), err)
	}
}

// acknowledged returns nil if the server has answered with the entry's id, and why it has not otherwise.
func acknowledged(added *redis.StringCmd, failed error) error {
	id, err := added.Result()
	switch {
	case errors.Is(err, redis.Nil):
		return errNoStream
	case err == nil && id == "":
		return cmp.Or(failed, errNoAnswer)
	}
	return err
}

// entry is what is added to a stream that is there. Old entries go with it, by whole nodes of the stream, which costs nothing.
func (b *Broker) entry(o offer) *redis.XAddArgs {
	add := &redis.XAddArgs{Stream: o.stream, NoMkStream: true, Values: toFields(o.m)}
	if b.retention > 0 {
		add.MinID, add.Approx = strconv.FormatInt(time.Now().Add(-b.retention).UnixMilli(), 10), true
	}
	return add
}

// replicated tells whether as many replicas have all that was sent on a connection as have to.
func (b *Broker) replicated(waited *redis.IntCmd) error {
	n, err := waited.Result()
	if err == nil && int(n) < b.replicas {
		err = fmt.Errorf("%d replicas have it, not %d", n, b.replicas)
	}
	return err
}
