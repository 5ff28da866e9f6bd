package amqp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"postbus/internal/broker"
)

const (
	batchMax      = 1000 // messages of one batch
	batchBytesMax = 4 << 20
	// aheadMax is how many messages the server sends before it is told that they were taken.
	aheadMax = 500
	// settle is how long a message that the stream has may take to come.
	settle = time.Second
	// rereadAge is how far back a stream is read again: what is older was read, and need not be known any more.
	rereadAge    = broker.Remembered - 24*time.Hour
	offsetHeader = "x-stream-offset"
	first, last  = "first", "last"
)

var errSlow = errors.New("the stream is slow to answer")

// place is where a stream was read up to.
type place struct {
	offset int64
	id     string // of the message there
}

func (p place) String() string { return fmt.Sprintf("%d/%s", p.offset, p.id) }

// parsePlace reads what String wrote; false for anything else.
func parsePlace(s string) (p place, ok bool) {
	offset, id, ok := strings.Cut(s, "/")
	n, err := strconv.ParseInt(offset, 10, 64)
	return place{offset: n, id: id}, ok && err == nil && n >= 0
}

// reader reads a stream on a connection of its own.
type reader struct {
	broker    *Broker
	link      *link
	stream    string
	partition string
	arrived   chan amqp.Delivery
	end       context.CancelCauseFunc
	ended     context.Context //nolint:containedctx // of the goroutine that takes what arrives
	taking    sync.WaitGroup
	offset    int64          // that was read last, or passed over
	anywhere  bool           // the first message says where it begins
	next      *amqp.Delivery // came while the place was looked for
	failed    error          // to be returned by the next Next
}

// Reader implements broker.Broker.
func (b *Broker) Reader(ctx context.Context, topic string, places map[string]string) (broker.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	name := b.stream(topic)
	at := b.host.Load()
	l, err := b.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	defer l.until(ctx)()
	r := &reader{broker: b, link: l, stream: name, partition: scheme + ":" + name, arrived: make(chan amqp.Delivery, aheadMax)}
	r.ended, r.end = context.WithCancelCause(context.Background())
	if err := r.begin(ctx, places[r.partition]); err != nil {
		b.nextHost(at) // this server may have no replica of the stream
		_ = r.Close()
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	return r, nil
}

// begin reads on behind a place that was stored.
func (r *reader) begin(ctx context.Context, stored string) error {
	if stored == "" {
		r.anywhere = true
		return r.consume(first)
	}
	p, same := parsePlace(stored)
	if same {
		var err error
		if same, err = r.resume(ctx, p); err != nil {
			return err
		}
	}
	if same {
		return nil
	}
	r.broker.logger.Error("the stream was made anew, or has lost its end, and is read again; what it had lost before that was read "+
		"is to be sent again: move the relay back", slog.String("partition", r.partition))
	r.anywhere = true
	return r.consume(time.Now().Add(-rereadAge))
}

// resume has the stream begin at the message that was read last, and tells whether it is the same.
func (r *reader) resume(ctx context.Context, p place) (same bool, err error) {
	channel, deliveries, err := r.open(p.offset, aheadMax)
	if err != nil {
		return false, err
	}
	d, found, err := one(ctx, deliveries)
	if err != nil {
		return false, err
	}
	offset, ok := d.Headers[offsetHeader].(int64)
	switch {
	case !found:
		return false, errors.Join(r.shorter(ctx, p), channel.Close())
	case !ok:
		return false, notAStream(r.stream)
	case offset == p.offset && identity(r.partition, offset, d) != p.id:
		return false, channel.Close()
	}
	r.offset = p.offset
	if offset > p.offset {
		if err := r.pass(ctx, offset); err != nil {
			return false, err
		}
		r.next = &d
	}
	r.take(channel, deliveries)
	return true, nil
}

// shorter returns an error unless the stream ends before the place. One without any message may be about to have them, or not be
// ready yet.
func (r *reader) shorter(ctx context.Context, p place) error {
	channel, deliveries, err := r.open(last, aheadMax) // from somewhere before the last message on
	if err != nil {
		return err
	}
	for empty := true; ; empty = false {
		d, found, err := one(ctx, deliveries)
		switch offset, _ := d.Headers[offsetHeader].(int64); {
		case err != nil:
			return err
		case !found && empty:
			return errors.New("the stream has no messages yet, and there were some")
		case !found:
			return channel.Close()
		case offset >= p.offset:
			return errSlow
		}
		if err := d.Ack(false); err != nil {
			return err
		}
	}
}

// probe returns the offset of the first message from there on.
func (r *reader) probe(ctx context.Context, from any) (offset int64, found bool, err error) {
	channel, deliveries, err := r.open(from, 1)
	if err != nil {
		return 0, false, err
	}
	d, found, err := one(ctx, deliveries)
	if err != nil {
		return 0, false, err
	}
	offset, _ = d.Headers[offsetHeader].(int64)
	return offset, found, channel.Close()
}

// one waits for the first message, but not for long.
func one(ctx context.Context, deliveries <-chan amqp.Delivery) (d amqp.Delivery, found bool, err error) {
	timer := time.NewTimer(settle)
	defer timer.Stop()
	select {
	case d, found = <-deliveries:
		if !found {
			return d, false, errLost
		}
		return d, true, nil
	case <-timer.C:
		return d, false, nil
	case <-ctx.Done():
		return d, false, ctx.Err()
	}
}

// open asks for the stream from there on: an offset, a time, first or last.
func (r *reader) open(from any, ahead int) (*amqp.Channel, <-chan amqp.Delivery, error) {
	channel, err := r.link.Channel()
	if err == nil {
		err = channel.Qos(ahead, 0, false)
	}
	if err != nil {
		return nil, nil, err
	}
	deliveries, err := channel.Consume(r.stream, "", false, false, false, false, amqp.Table{offsetHeader: from})
	return channel, deliveries, err
}

func (r *reader) consume(from any) error {
	channel, deliveries, err := r.open(from, aheadMax)
	if err != nil {
		return err
	}
	r.take(channel, deliveries)
	return nil
}

// take moves what arrives to where Next finds it, until the connection or the stream is gone.
func (r *reader) take(channel *amqp.Channel, deliveries <-chan amqp.Delivery) {
	connection := r.link.NotifyClose(make(chan *amqp.Error, 1))
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	r.taking.Go(func() {
		for d := range deliveries {
			select {
			case r.arrived <- d:
			case <-r.ended.Done():
				return
			}
		}
		why := errLost
		select {
		case said := <-closed:
			why = lost(said)
		case said := <-connection:
			why = lost(said)
		default: // the server has cancelled: the stream was deleted, or its replica is gone
		}
		r.end(why)
	})
}

// Next implements broker.Reader.
func (r *reader) Next(ctx context.Context) (batch broker.Batch, err error) {
	if r.failed != nil {
		return broker.Batch{}, r.failed
	}
	d, err := r.wait(ctx)
	if err != nil {
		return broker.Batch{}, err
	}
	batch.Partition = r.partition
	for bytes := 0; ; {
		if err := r.add(ctx, &batch, d); err != nil {
			r.failed = fmt.Errorf("read %s: %w", r.partition, err)
			if len(batch.Messages) > 0 { // what comes before the failure is to be stored, or it would be met for ever
				return batch, nil
			}
			return broker.Batch{}, r.failed
		}
		if bytes += len(d.Body); bytes > batchBytesMax || len(batch.Messages) >= batchMax {
			break
		}
		var more bool
		if d, more = r.waiting(d); !more {
			break
		}
	}
	if err := d.Ack(true); err != nil { // which the server takes for a word that it may send more
		r.failed = fmt.Errorf("read %s: %w", r.partition, err)
	}
	return batch, nil
}

// waiting returns the next message if there is one already, and otherwise the one that was given.
func (r *reader) waiting(d amqp.Delivery) (amqp.Delivery, bool) {
	select {
	case next := <-r.arrived:
		return next, true
	default:
		return d, false
	}
}

// wait waits for a message.
func (r *reader) wait(ctx context.Context) (amqp.Delivery, error) {
	if r.next != nil {
		d := *r.next
		r.next = nil
		return d, nil
	}
	select {
	case d := <-r.arrived:
		return d, nil
	case <-ctx.Done():
		return amqp.Delivery{}, ctx.Err()
	case <-r.ended.Done():
	}
	if d, ok := r.waiting(amqp.Delivery{}); ok { // what came before the end
		return d, nil
	}
	r.failed = fmt.Errorf("read %s: %w", r.partition, context.Cause(r.ended))
	return amqp.Delivery{}, r.failed
}

// add adds a message to the batch, if it is the next.
func (r *reader) add(ctx context.Context, batch *broker.Batch, d amqp.Delivery) error {
	offset, ok := d.Headers[offsetHeader].(int64)
	if !ok {
		return notAStream(r.stream)
	}
	if !r.anywhere && offset > r.offset+1 {
		if err := r.pass(ctx, offset); err != nil {
			return err
		}
	}
	if !r.anywhere && offset <= r.offset {
		return fmt.Errorf("message %d came after %d", offset, r.offset)
	}
	r.anywhere, r.offset = false, offset
	id := identity(r.partition, offset, d)
	batch.Messages = append(batch.Messages, fromAMQP(id, d))
	batch.Place = place{offset: offset, id: id}.String()
	return nil
}

// pass goes behind offsets that no message came with. Some are the server's own; but if the stream begins behind them, messages
// are gone, and unless that is meant it returns a *broker.GapError.
func (r *reader) pass(ctx context.Context, before int64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	defer r.link.until(ctx)()
	begin, found, err := r.probe(ctx, first)
	if err == nil && !found {
		err = errSlow
	}
	if err != nil {
		return err
	}
	missing := min(begin, before) - r.offset - 1
	r.offset = before - 1
	if missing <= 0 {
		return nil
	}
	gap := &broker.GapError{Partition: r.partition, Events: uint64(missing)}
	if !r.broker.skipGap {
		return gap
	}
	r.broker.logger.Error("events are gone from the broker and were not read", slog.Any("error", gap))
	return nil
}

// identity is what names a message: its event's id, or its content where somebody gave it none.
func identity(partition string, offset int64, d amqp.Delivery) string {
	if m := fromAMQP("", d); m.UUID != "" {
		return m.UUID
	}
	sum := sha256.Sum256(d.Body)
	return fmt.Sprintf("%s/%d/%x", partition, offset, sum[:8])
}

// Stored does nothing: the place is kept with what was stored.
func (*reader) Stored(context.Context, broker.Batch) error { return nil }

// Close ends the reading.
func (r *reader) Close() error {
	r.end(context.Canceled)
	r.link.close()
	r.taking.Wait()
	return nil
}
