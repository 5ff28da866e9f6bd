package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"postbus/internal/broker"
)

const (
	readMax      = 1000 // messages of one batch
	readBytesMax = 4 << 20
	// aheadBytesMax is what each broker sends at a time, or more where a message has more; two such answers may be in memory.
	aheadBytesMax = 8 << 20
	// partitionBytesMax is how much of that a partition has, so that one that is far behind leaves room to the others.
	partitionBytesMax = 2 << 20
	// unpackedBytesMax is what a batch of compressed messages may become.
	unpackedBytesMax = 256 << 20
	// lookEvery is how often a reader looks whether its topic is still there, and has more partitions.
	lookEvery = 5 * time.Second
	// rereadAge is how far back a partition is read again: what is older was read, and need not be known any more.
	rereadAge = broker.Remembered - 24*time.Hour
)

// errMadeAnew ends a reader. The next one reads what has taken the topic's place.
var errMadeAnew = errors.New("the topic was made anew")

// reader reads all partitions of a topic.
type reader struct {
	broker  *Broker
	topic   string
	id      string // the topic's
	another bool   // than the one that was read before
	client  *kgo.Client
	checks  map[int32]place // of partitions whose first message has to be the last that was read
	read    int             // partitions
	pending []broker.Batch  // that Next returns one by one
	looked  time.Time
	failed  error // to be returned by Next when nothing is pending
}

// Reader implements broker.Broker.
func (b *Broker) Reader(ctx context.Context, topic string, places map[string]string) (broker.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r := &reader{broker: b, topic: b.topic(topic), checks: make(map[int32]place), looked: time.Now()}
	offsets, err := r.begin(ctx, places)
	if err != nil {
		return nil, fmt.Errorf("read topic %s: %w", r.topic, err)
	}
	r.client, err = kgo.NewClient(append(b.options(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: offsets}),
		// What is not there ends the reader.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// Others may publish in transactions.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxBytes(aheadBytesMax), kgo.FetchMaxPartitionBytes(partitionBytesMax),
		kgo.MaxDecompressBatchBytes(unpackedBytesMax),
	)...)
	if err != nil {
		return nil, fmt.Errorf("read topic %s: %w", r.topic, err)
	}
	return r, nil
}

// begin says where each partition is to be read on.
func (r *reader) begin(ctx context.Context, places map[string]string) (map[int32]kgo.Offset, error) {
	found, err := r.describe(ctx)
	if err != nil {
		return nil, err
	}
	r.id, r.read = idText(found.ID), len(found.Partitions)
	ends, err := listed(r.broker.admin.ListEndOffsets(ctx, r.topic))
	if err != nil {
		return nil, err
	}
	// After the ends: what goes meanwhile is in no place, and a place is not taken for one behind the end.
	starts, err := listed(r.broker.admin.ListStartOffsets(ctx, r.topic))
	if err != nil {
		return nil, err
	}
	offsets := make(map[int32]kgo.Offset, r.read)
	for number := range found.Partitions {
		offsets[number] = kgo.NewOffset().AtStart()
		stored := places[partition(r.topic, number)]
		if stored == "" {
			continue
		}
		start, ok1 := starts.Lookup(r.topic, number)
		end, ok2 := ends.Lookup(r.topic, number)
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("%s: no offsets are known", partition(r.topic, number))
		}
		if offsets[number], err = r.resume(ctx, number, stored, start.Offset, end.Offset); err != nil {
			return nil, err
		}
	}
	return offsets, nil
}

// listed makes an error of one partition's.
func listed(offsets kadm.ListedOffsets, err error) (kadm.ListedOffsets, error) {
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	return offsets, nil
}

// describe asks for the topic.
func (r *reader) describe(ctx context.Context) (kadm.TopicDetail, error) {
	all, err := r.broker.admin.ListTopics(ctx, r.topic)
	if err != nil {
		return kadm.TopicDetail{}, err
	}
	return all[r.topic], all[r.topic].Err
}

// resume says where to read a partition on, behind a place that was stored.
func (r *reader) resume(ctx context.Context, number int32, stored string, start, end int64) (kgo.Offset, error) {
	p, ok := parsePlace(stored)
	switch {
	case !ok || p.topic != r.id:
		if !r.another { // once for all partitions
			r.another = true
			r.broker.logger.Error("the topic is not the one that was read before, and is read from its beginning; what was stored only "+
				"there is to be sent again: move the relay back", slog.String("topic", r.topic))
		}
		return kgo.NewOffset().AtStart(), nil
	case p.offset >= end:
		return r.again(ctx, number)
	case p.offset+1 < start:
		gap := &broker.GapError{Partition: partition(r.topic, number), Events: uint64(start - p.offset - 1)} //nolint:gosec // more than 0
		if !r.broker.skipGap {
			return kgo.Offset{}, gap
		}
		r.broker.logger.Error("events are gone from the broker and were not read", slog.Any("error", gap))
		return kgo.NewOffset().AtStart(), nil
	case p.offset < start: // what was read is gone, and nothing else is
		return kgo.NewOffset().At(start), nil
	}
	r.checks[number] = p
	return kgo.NewOffset().At(p.offset), nil
}

// again says where to read a partition that has lost its end.
func (r *reader) again(ctx context.Context, number int32) (kgo.Offset, error) {
	r.broker.logger.Error("the partition has lost its end, and is read again; what it had lost before that was read is to be sent again: "+
		"move the relay back", slog.String("partition", partition(r.topic, number)))
	since := time.Now().Add(-rereadAge).UnixMilli()
	offsets, err := listed(r.broker.admin.ListOffsetsAfterMilli(ctx, since, r.topic))
	if err != nil {
		return kgo.Offset{}, err
	}
	from, ok := offsets.Lookup(r.topic, number)
	if !ok {
		return kgo.Offset{}, fmt.Errorf("%s: no offsets are known", partition(r.topic, number))
	}
	return kgo.NewOffset().At(from.Offset), nil
}

// Next implements broker.Reader.
func (r *reader) Next(ctx context.Context) (broker.Batch, error) {
	for {
		if len(r.pending) > 0 {
			batch := r.pending[0]
			r.pending = r.pending[1:]
			return batch, nil
		}
		switch {
		case r.failed != nil:
			return broker.Batch{}, r.failed
		case ctx.Err() != nil:
			return broker.Batch{}, ctx.Err()
		case time.Since(r.looked) >= lookEvery:
			if err := r.look(ctx); ctx.Err() == nil {
				r.fail(err)
			}
		default:
			r.poll(ctx)
		}
	}
}

func (r *reader) fail(err error) {
	if err != nil && r.failed == nil {
		r.failed = fmt.Errorf("read topic %s: %w", r.topic, err)
	}
}

// look sees to it that the topic is the one that is read, and that partitions that have come are read too. It fails when no
// broker answers, so that somebody hears of it.
func (r *reader) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	found, err := r.describe(ctx)
	if err != nil {
		return err
	}
	if idText(found.ID) != r.id {
		return errMadeAnew
	}
	fresh := make(map[int32]kgo.Offset)
	for number := range found.Partitions {
		if int(number) >= r.read {
			fresh[number] = kgo.NewOffset().AtStart()
		}
	}
	r.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: fresh})
	r.read += len(fresh)
	r.looked = time.Now()
	return nil
}

// poll waits for what the brokers send, until it is time to look.
func (r *reader) poll(ctx context.Context) {
	polling, cancel := context.WithDeadline(ctx, r.looked.Add(lookEvery))
	defer cancel()
	fetches := r.client.PollFetches(polling)
	for _, e := range fetches.Errors() {
		if polling.Err() == nil || !errors.Is(e.Err, polling.Err()) { // which is the driver's word that it was interrupted
			r.fail(fmt.Errorf("partition %d: %w", e.Partition, e.Err))
		}
	}
	if r.failed != nil { // what has come with it may be from behind what is lost
		return
	}
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) > 0 && r.failed == nil {
			r.fail(r.take(ctx, p.Partition, p.Records))
		}
	})
}

// take makes batches of what has come of a partition, if it follows what was read before.
func (r *reader) take(ctx context.Context, number int32, records []*kgo.Record) error {
	if last, ok := r.checks[number]; ok {
		delete(r.checks, number)
		// Another offset: what is there now is no message.
		if records[0].Offset != last.offset || markOf(records[0]) != last.mark {
			return r.restart(ctx, number)
		}
		records = records[1:]
	}
	for len(records) > 0 {
		n := r.cut(records)
		batch := broker.Batch{Partition: partition(r.topic, number), Place: placeOf(r.id, records[n-1]).String()}
		for _, record := range records[:n] {
			id := fmt.Sprintf("%s/%s/%d", batch.Partition, r.id, record.Offset) // of somebody who gave it none
			batch.Messages = append(batch.Messages, fromKafka(id, record))
		}
		r.pending = append(r.pending, batch)
		records = records[n:]
	}
	return nil
}

// cut says how many of the messages make a batch.
func (*reader) cut(records []*kgo.Record) int {
	bytes := 0
	for n, record := range records {
		bytes += len(record.Value)
		if n+1 >= readMax || bytes > readBytesMax {
			return n + 1
		}
	}
	return len(records)
}

// restart reads a partition again that has other messages than those that were read.
func (r *reader) restart(ctx context.Context, number int32) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	offset, err := r.again(ctx, number)
	if err != nil {
		return err
	}
	r.client.RemoveConsumePartitions(map[string][]int32{r.topic: {number}})
	r.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: {number: offset}})
	return nil
}

// Stored does nothing: the place is kept with what was stored.
func (*reader) Stored(context.Context, broker.Batch) error { return nil }

// Close ends the reading.
func (r *reader) Close() error {
	r.client.Close()
	return nil
}
