package nats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbus/internal/broker"
)

const (
	batchMax      = 1000 // messages of one batch
	batchBytesMax = 4 << 20
	aheadBytesMax = 16 << 20         // that are asked for ahead, or more where a message may have more
	overheadBytes = 64 << 10         // of a message on its way, beside what the server counts as its payload
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
	stream    jetstream.Stream
	partition string
	made      int64
	consume   jetstream.ConsumeContext
	arrived   chan jetstream.Msg
	end       context.CancelCauseFunc
	ended     context.Context //nolint:containedctx // of the callbacks
	detach    func() bool     // from the connection
	last      uint64          // sequence number in the stream that was read, or is passed over
	anywhere  bool            // the first message says where last begins
	failed    error           // to be returned by the next Next
}

// Reader implements broker.Broker.
func (b *Broker) Reader(ctx context.Context, topic string, places map[string]string) (broker.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	session := b.sessionContext() // before the consumer is made: whatever that sends and is lost with a connection ends the reader
	name := b.stream(topic)
	stream, err := b.js.Stream(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	r := &reader{
		broker: b, stream: stream, partition: scheme + ":" + name, made: stream.CachedInfo().Created.UnixNano(),
		arrived: make(chan jetstream.Msg, batchMax),
	}
	config := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, InactiveThreshold: inactiveMax, MemoryStorage: true, Replicas: 1,
	}
	if err := b.resume(ctx, stream, r.partition, places[r.partition], &config); err != nil {
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	r.anywhere = config.OptStartSeq == 0
	if !r.anywhere {
		r.last = config.OptStartSeq - 1
	}
	consumer, err := stream.CreateConsumer(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	r.ended, r.end = context.WithCancelCause(context.Background())
	// The server takes what it has sent for read, so what was under way on a connection that is lost comes to another reader only.
	r.detach = context.AfterFunc(session, func() { r.end(nats.ErrDisconnected) })
	ahead := max(aheadBytesMax, int(b.conn.MaxPayload())+overheadBytes)
	r.consume, err = consumer.Consume(r.take, jetstream.PullMaxBytes(ahead), jetstream.PullExpiry(pullExpires),
		jetstream.PullHeartbeat(heartbeat), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { r.end(err) }))
	if err != nil {
		r.detach()
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
		header, _, err := b.stored(ctx, info.Config.Name, p.sequence)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound): // somebody has deleted it
		case err != nil:
			return fmt.Errorf("look at the last message that was read: %w", err)
		default:
			same = header.Get(jetstream.MsgIDHeader) == p.id
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
	if r.failed != nil {
		return broker.Batch{}, r.failed
	}
	batch.Partition = r.partition
	var m jetstream.Msg
	select {
	case m = <-r.arrived:
	case <-r.ended.Done():
		return r.nextAlone(ctx, batch)
	case <-ctx.Done():
		return broker.Batch{}, ctx.Err()
	}
	for bytes := 0; ; {
		if err := r.add(ctx, &batch, m); err != nil {
			r.failed = fmt.Errorf("read %s: %w", r.partition, err)
			if len(batch.Messages) > 0 { // what comes before the failure is to be stored, or it would be met for ever
				return batch, nil
			}
			return broker.Batch{}, r.failed
		}
		if bytes += len(m.Data()); bytes > batchBytesMax || len(batch.Messages) >= batchMax {
			return batch, nil
		}
		select {
		case m = <-r.arrived:
		default:
			return batch, nil
		}
	}
}

// nextAlone asks for the next message by its number when the consumer has ended: it may be what has ended it (addMissed), and
// would end the next one, for ever. Otherwise it tells why the consumer ended.
func (r *reader) nextAlone(ctx context.Context, batch broker.Batch) (broker.Batch, error) {
	r.failed = fmt.Errorf("read %s: %w", r.partition, context.Cause(r.ended))
	if r.anywhere || !r.broker.conn.IsConnected() {
		return broker.Batch{}, r.failed
	}
	info, err := r.stream.Info(ctx)
	if err != nil || info.Created.UnixNano() != r.made { // another stream of that name
		return broker.Batch{}, r.failed
	}
	header, data, err := r.broker.stored(ctx, info.Config.Name, r.last+1)
	if err != nil {
		return broker.Batch{}, r.failed
	}
	r.append(&batch, r.last+1, header, data)
	return batch, nil
}

// add adds a message to the batch, and before it those that the stream has and the driver did not hand over.
func (r *reader) add(ctx context.Context, batch *broker.Batch, m jetstream.Msg) error {
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	sequence := meta.Sequence.Stream
	if !r.anywhere && sequence != r.last+1 {
		if err := r.addMissed(ctx, batch, sequence); err != nil {
			return err
		}
	}
	r.anywhere = false
	r.append(batch, sequence, m.Headers(), m.Data())
	return nil
}

// addMissed adds what comes before the sequence number. What the driver takes for a word of the server to itself is not handed
// over: a message without data that has a header Status. What is not in the stream any more is a *broker.GapError, unless
// that is meant.
func (r *reader) addMissed(ctx context.Context, batch *broker.Batch, before uint64) error {
	if before <= r.last {
		return fmt.Errorf("message %d came after %d", before, r.last)
	}
	for next := r.last + 1; next < before; next = r.last + 1 {
		header, data, err := r.broker.stored(ctx, r.stream.CachedInfo().Config.Name, next)
		switch {
		case err == nil:
			r.append(batch, next, header, data)
		case errors.Is(err, jetstream.ErrMsgNotFound):
			if err := r.pass(ctx, before); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}

// pass goes behind a message that the stream does not have, and behind all those before the first that it has, if that is
// meant; otherwise it returns a *broker.GapError.
func (r *reader) pass(ctx context.Context, before uint64) error {
	info, err := r.stream.Info(ctx)
	if err != nil {
		return err
	}
	last := max(r.last+1, min(max(info.State.FirstSeq, 1), before)-1)
	gap := &broker.GapError{Partition: r.partition, Events: last - r.last}
	if !r.broker.skipGap {
		return gap
	}
	r.broker.logger.Error("events are gone from the broker and were not read", slog.Any("error", gap))
	r.last = last
	return nil
}

func (r *reader) append(batch *broker.Batch, sequence uint64, header nats.Header, data []byte) {
	r.last = sequence
	id := header.Get(jetstream.MsgIDHeader)
	batch.Place = place{made: r.made, sequence: sequence, id: id}.String()
	if id == "" { // of somebody who gave it none
		id = fmt.Sprintf("%s/%d/%d", r.partition, r.made, sequence)
	}
	batch.Messages = append(batch.Messages, fromNATS(id, header, data))
}

// Stored does nothing: the place is kept with what was stored.
func (*reader) Stored(context.Context, broker.Batch) error { return nil }

// Close ends the reading.
func (r *reader) Close() error {
	r.detach()
	r.end(context.Canceled)
	r.consume.Stop()
	<-r.consume.Closed()
	return nil
}
