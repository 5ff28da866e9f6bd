package nats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"postbus/internal/broker"
)

const (
	batchMax      = 1000 // messages of one batch
	batchBytesMax = 4 << 20
	aheadBytesMax = 16 << 20         // that are asked for ahead; more than a message can have
	inactiveMax   = 30 * time.Second // until the server forgets a reader that is gone
	heartbeat     = 2 * time.Second  // of the server, to a reader that has nothing to read
	pullExpires   = 30 * time.Second
	// rereadAge is how far back a stream is read again: what is older was read, and need not be known any more.
	rereadAge = broker.Remembered - 24*time.Hour
)

// place is where a stream was read up to.
type place struct {
	made     int64 // when the stream was made, in nanoseconds
	sequence uint64
	id       string // of the message with that sequence number
}

func (p place) String() string { return fmt.Sprintf("%d/%d/%s", p.made, p.sequence, p.id) }

// parsePlace reads what String wrote; false for anything else.
func parsePlace(s string) (p place, ok bool) {
	made, rest, ok1 := strings.Cut(s, "/")
	sequence, id, ok2 := strings.Cut(rest, "/")
	var err1, err2 error
	p.made, err1 = strconv.ParseInt(made, 10, 64)
	p.sequence, err2 = strconv.ParseUint(sequence, 10, 64)
	p.id = id
	return p, ok1 && ok2 && err1 == nil && err2 == nil
}

// reader reads a stream by a consumer of its own.
type reader struct {
	broker    *Broker
	partition string
	made      int64
	consume   jetstream.ConsumeContext
	arrived   chan jetstream.Msg
	end       context.CancelCauseFunc
	ended     context.Context //nolint:containedctx // of the callbacks
	delivered uint64          // of the consumer's own sequence
}

// Reader implements broker.Broker.
func (b *Broker) Reader(ctx context.Context, topic string, places map[string]string) (broker.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	name := b.stream(topic)
	stream, err := b.js.Stream(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	info := stream.CachedInfo()
	r := &reader{broker: b, partition: scheme + ":" + name, made: info.Created.UnixNano(), arrived: make(chan jetstream.Msg, batchMax)}
	config := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, InactiveThreshold: inactiveMax, MemoryStorage: true, Replicas: 1,
	}
	if err := b.resume(ctx, stream, r.partition, places[r.partition], &config); err != nil {
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	consumer, err := stream.CreateConsumer(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	r.ended, r.end = context.WithCancelCause(context.Background())
	r.consume, err = consumer.Consume(r.take, jetstream.PullMaxBytes(aheadBytesMax), jetstream.PullExpiry(pullExpires),
		jetstream.PullHeartbeat(heartbeat), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { r.end(err) }))
	if err != nil {
		r.end(err)
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	return r, nil
}

// resume says where to read on, behind a place that was stored.
func (b *Broker) resume(ctx context.Context, stream jetstream.Stream, partition, stored string, c *jetstream.ConsumerConfig) error {
	info := stream.CachedInfo()
	first := max(info.State.FirstSeq, 1)
	c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, first
	if stored == "" {
		return nil
	}
	p, ok := parsePlace(stored)
	if !ok || p.made != info.Created.UnixNano() {
		b.logger.Error("the stream is not the one that was read before, and is read from its beginning; what was stored only there "+
			"is to be sent again: move the relay back", slog.String("partition", partition))
		return nil
	}
	same := p.sequence <= info.State.LastSeq
	if same && p.sequence >= first {
		m, err := stream.GetMsg(ctx, p.sequence)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound): // somebody has deleted it
		case err != nil:
			return fmt.Errorf("look at the last message that was read: %w", err)
		default:
			same = m.Header.Get(jetstream.MsgIDHeader) == p.id
		}
	}
	if !same {
		b.logger.Error("the stream has lost its end, and is read again; what it had lost before that was read is to be sent again: "+
			"move the relay back", slog.String("partition", partition))
		since := time.Now().Add(-rereadAge)
		c.DeliverPolicy, c.OptStartSeq, c.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &since
		return nil
	}
	if p.sequence+1 < first {
		gap := &broker.GapError{Partition: partition, Events: first - p.sequence - 1}
		if !b.skipGap {
			return gap
		}
		b.logger.Error("events are gone from the broker and were not read", slog.Any("error", gap))
		return nil
	}
	c.OptStartSeq = p.sequence + 1
	return nil
}

// take is called by the driver for each message, one after another.
func (r *reader) take(m jetstream.Msg) {
	select {
	case r.arrived <- m:
	case <-r.ended.Done():
	}
}

// Next implements broker.Reader.
func (r *reader) Next(ctx context.Context) (batch broker.Batch, err error) {
	batch.Partition = r.partition
	var m jetstream.Msg
	select {
	case m = <-r.arrived:
	case <-r.ended.Done():
		return broker.Batch{}, fmt.Errorf("read %s: %w", r.partition, context.Cause(r.ended))
	case <-ctx.Done():
		return broker.Batch{}, ctx.Err()
	}
	bytes := 0
	for {
		meta, err := m.Metadata()
		if err != nil {
			return broker.Batch{}, fmt.Errorf("read %s: %w", r.partition, err)
		}
		if meta.Sequence.Consumer != r.delivered+1 { // one was lost on the way
			return broker.Batch{}, fmt.Errorf("read %s: message %d came after %d", r.partition, meta.Sequence.Consumer, r.delivered)
		}
		r.delivered++
		id := m.Headers().Get(jetstream.MsgIDHeader)
		batch.Place = place{made: r.made, sequence: meta.Sequence.Stream, id: id}.String()
		if id == "" { // of somebody who gave it none
			id = fmt.Sprintf("%s/%d/%d", r.partition, r.made, meta.Sequence.Stream)
		}
		batch.Messages = append(batch.Messages, fromNATS(id, m.Headers(), m.Data()))
		if bytes += len(m.Data()); bytes > batchBytesMax || len(batch.Messages) == batchMax {
			return batch, nil
		}
		select {
		case m = <-r.arrived:
		default:
			return batch, nil
		}
	}
}

// Stored does nothing: the place is kept with what was stored.
func (*reader) Stored(context.Context, broker.Batch) error { return nil }

// Close ends the reading.
func (r *reader) Close() error {
	r.end(context.Canceled)
	r.consume.Stop()
	<-r.consume.Closed()
	return nil
}
