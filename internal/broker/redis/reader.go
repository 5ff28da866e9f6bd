package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"postbus/internal/broker"
)

const (
	batchMax      = 1000 // messages of one batch
	batchBytesMax = 4 << 20
	// chunkMin and chunkMax are how many entries are asked for at a time: few at first, and more while they are small. The
	// server knows no limit of bytes; so chunkMax of the largest events are what may come at once.
	chunkMin      = 4
	chunkMax      = 256
	chunkBytesMax = 1 << 20
	fetchTimeout  = 15 * time.Second // of one chunk, on a slow way too
	// block is how long the server holds a request of a reader that has nothing to read.
	block = 2 * time.Second
	// rereadAge is how far back a stream is read again: what is older was read, and need not be known any more.
	rereadAge = broker.Remembered - 24*time.Hour
)

var (
	errConnectionLost = errors.New("the connection was lost")
	errOther          = errors.New("the stream is not the one that was read before")
	errShorter        = errors.New("the stream has lost its end")
)

// reader reads a stream over a connection of its own, and ends with it.
type reader struct {
	broker    *Broker
	client    *redis.Client
	stream    string
	partition string
	mark      string // of the stream

	last    entryID // that was read, or is passed over
	number  int64   // of last among all that were ever added
	counted bool    // number is known
	passed  entryID // what was deleted up to here is passed over
	count   int64   // how many entries are asked for at a time

	chunks  chan chunk
	failed  error // to be returned by the next Next
	stop    context.CancelFunc
	running sync.WaitGroup
}

// chunk is what came at once: nothing only behind one that said that there might be more.
type chunk struct {
	messages []*message.Message
	bytes    int
	place    place
	more     bool // there may be more already
	err      error
}

// Reader implements broker.Broker.
func (b *Broker) Reader(ctx context.Context, topic string, places map[string]string) (broker.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r := &reader{broker: b, stream: b.stream(topic), partition: scheme + ":" + b.stream(topic), count: chunkMin, chunks: make(chan chunk)}
	var dialed atomic.Bool
	options := b.options(func(ctx context.Context, network, address string) (net.Conn, error) {
		if dialed.Swap(true) { // the server behind another connection may have lost what was read
			return nil, errConnectionLost
		}
		return b.connect(ctx, network, address)
	})
	options.MaxActiveConns, options.ReadTimeout = 1, fetchTimeout
	r.client = redis.NewClient(options)
	if err := r.resume(ctx, places[r.partition]); err != nil {
		_ = r.client.Close() // the first error is the one to report
		return nil, fmt.Errorf("read stream %s: %w", r.stream, err)
	}
	reading, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.running.Go(func() { r.read(reading) })
	return r, nil
}

// resume finds out where to read on, behind a place that was stored.
func (r *reader) resume(ctx context.Context, stored string) error {
	p, ok := parsePlace(stored)
	s, entries, err := look(ctx, r.client, r.stream, p.entry.String(), p.entry.String(), 1)
	if err != nil {
		return err
	}
	r.mark = s.mark
	r.last, r.number, r.counted = s.beginning(), s.gone(), true
	switch {
	case stored == "":
	case !ok || p.mark != s.mark:
		r.broker.logger.Error("the stream is not the one that was read before, and is read from its beginning; what was stored only "+
			"there is to be sent again: move the relay back", slog.String("partition", r.partition))
	case !fits(p, s, entries):
		r.broker.logger.Error("the stream has lost its end, and is read again; what it had lost before that was read is to be sent "+
			"again: move the relay back", slog.String("partition", r.partition))
		r.passed = s.deleted
		since := entryID{milliseconds: uint64(max(time.Now().Add(-rereadAge).UnixMilli(), 0))}
		switch {
		case since.compare(s.last) >= 0:
			r.last, r.number = s.last, s.added
		case since.compare(r.last) > 0:
			r.last, r.counted = since, false
		}
	default:
		r.last, r.number, r.counted = p.entry, p.number, p.number > 0
	}
	return r.check(s, 0)
}

// fits tells whether the entry that was read last is there, or is gone as entries go, and not with those behind it.
func fits(p place, s state, found []redis.XMessage) bool {
	switch {
	case s.last.compare(p.entry) < 0 || s.added < p.number:
		return false
	case len(found) > 0:
		event, _ := found[0].Values[idField].(string)
		return event == p.event
	}
	trimmed := s.length == 0 || p.entry.compare(s.first) < 0
	return trimmed || s.deleted == p.entry
}

// check compares what the stream tells of itself with what was read of it, which are so many entries behind last now. It returns
// a *broker.GapError for events that are gone and were not read, unless that is meant.
func (r *reader) check(s state, found int) error {
	switch {
	case s.mark != r.mark:
		return errOther
	case s.last.compare(r.last) < 0 || r.counted && s.added < r.number+int64(found):
		return errShorter
	}
	missing := r.missing(s)
	if missing == 0 {
		return nil
	}
	gap := &broker.GapError{Partition: r.partition, Events: uint64(missing)} //nolint:gosec // not negative
	if !r.broker.skipGap {
		return gap
	}
	r.broker.logger.Error("events are gone from the broker and were not read", slog.Any("error", gap))
	r.passed = s.deleted
	if r.trimmed(s) {
		r.last, r.number, r.counted = s.beginning(), s.gone(), true
	}
	return nil
}

// trimmed tells whether all that was read is gone, and perhaps more.
func (r *reader) trimmed(s state) bool { return s.length == 0 || r.last.compare(s.first) < 0 }

// missing is how many entries are gone that were not read, at most.
func (r *reader) missing(s state) int64 {
	number := int64(0)
	if r.counted {
		number = r.number
	}
	if n := s.gone() - number; n > 0 && r.trimmed(s) {
		return n
	}
	if s.deleted.compare(r.last) > 0 && s.deleted.compare(r.passed) > 0 {
		return max(min(s.gone(), s.added-number), 1)
	}
	return 0
}

// read hands over what the stream has, and waits for more, until ctx ends or something fails.
func (r *reader) read(ctx context.Context) {
	for more := false; ; {
		c := r.await(ctx, more)
		more = c.more
		select {
		case r.chunks <- c:
		case <-ctx.Done():
			return
		}
		if c.err != nil {
			return
		}
	}
}

// await waits for a chunk that is not empty, or for a failure. Where somebody holds a batch back for what may be there already, it
// does not wait for what comes next.
func (r *reader) await(ctx context.Context, held bool) chunk {
	for {
		c := r.fetch(ctx)
		if c.err != nil || len(c.messages) > 0 || held {
			return c
		}
		if err := r.block(ctx); err != nil {
			return chunk{err: err}
		}
	}
}

// block waits a while for something behind what was read.
func (r *reader) block(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, block+requestTimeout)
	defer cancel()
	err := r.client.XRead(ctx, &redis.XReadArgs{Streams: []string{r.stream, r.last.String()}, Count: 1, Block: block}).Err()
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}

// fetch asks for what is behind what was read.
func (r *reader) fetch(ctx context.Context) chunk {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	s, entries, err := look(ctx, r.client, r.stream, "("+r.last.String(), "+", r.count)
	if err == nil {
		err = r.check(s, len(entries))
	}
	if err != nil {
		return chunk{err: err}
	}
	c := chunk{more: int64(len(entries)) == r.count}
	for _, e := range entries {
		id, ok := parseID(e.ID)
		if !ok {
			return chunk{err: fmt.Errorf("an entry has the id %q", e.ID)}
		}
		r.last = id
		c.messages = append(c.messages, fromFields(r.partition+"/"+r.mark+"/"+e.ID, e.Values))
		c.bytes += size(e)
	}
	r.number += int64(len(entries))
	if !c.more { // all that was ever added was read, or is gone
		r.number, r.counted = s.added, true
	}
	if len(entries) > 0 {
		event, _ := entries[len(entries)-1].Values[idField].(string)
		c.place = place{mark: r.mark, entry: r.last, event: event}
		if r.counted {
			c.place.number = r.number
		}
	}
	if c.more && c.bytes < chunkBytesMax/2 {
		r.count = min(2*r.count, chunkMax)
	} else if c.bytes > chunkBytesMax {
		r.count = max(r.count/2, chunkMin)
	}
	return c
}

// size is about how many bytes an entry has.
func size(e redis.XMessage) (n int) {
	for name, value := range e.Values {
		text, _ := value.(string) // the driver has nothing else there
		n += len(name) + len(text)
	}
	return n
}

// Next implements broker.Reader.
func (r *reader) Next(ctx context.Context) (broker.Batch, error) {
	batch := broker.Batch{Partition: r.partition}
	bytes := 0
	for more := true; more && len(batch.Messages) < batchMax && bytes < batchBytesMax; {
		c, err := r.chunk(ctx)
		if err != nil {
			if len(batch.Messages) > 0 { // what comes before the failure is to be stored, or it would be met for ever
				return batch, nil
			}
			return broker.Batch{}, err
		}
		if len(c.messages) > 0 {
			batch.Messages = append(batch.Messages, c.messages...)
			batch.Place = c.place.String()
			bytes += c.bytes
		}
		more = c.more || len(batch.Messages) == 0
	}
	return batch, nil
}

// chunk is the next, or what the reader has failed with.
func (r *reader) chunk(ctx context.Context) (chunk, error) {
	if r.failed != nil {
		return chunk{}, r.failed
	}
	select {
	case c := <-r.chunks:
		if c.err != nil {
			r.failed = fmt.Errorf("read %s: %w", r.partition, c.err)
		}
		return c, r.failed
	case <-ctx.Done():
		return chunk{}, ctx.Err()
	}
}

// Stored does nothing: the place is kept with what was stored.
func (*reader) Stored(context.Context, broker.Batch) error { return nil }

// Close ends the reading.
func (r *reader) Close() error {
	r.stop()
	err := r.client.Close()
	r.running.Wait()
	return err
}
