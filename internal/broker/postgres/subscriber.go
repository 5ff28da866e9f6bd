package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Subscriber is the message.Subscriber of one consumer. All the subscribers of a consumer, in all processes, share its
// work: each holds some of the shares, and so some of the keys.
type Subscriber struct {
	logs     []*Log // of which one at a time has the consumer's shares
	log      *Log   // that has them now; it belongs to run
	broker   string // that the consumer publishes to, if it is a relay
	consumer string
	owner    string
	lanes    int // keys that are handled at the same time
	logger   *slog.Logger

	closing chan struct{}
	once    sync.Once
	running sync.WaitGroup

	// writing is held from the moment when a checkpoint or what is parked is put together until it is noted that it was
	// stored. Both write what is handled ahead of a place: a checkpoint from before a parking must not follow it.
	writing sync.Mutex

	// left are shares, by their epochs, that this owner may have yet in the database from work that was interrupted.
	left map[int16]int64

	mu         sync.Mutex
	subscribed bool
}

func newSubscriber(logs []*Log, consumer string, lanes int) *Subscriber {
	return &Subscriber{
		logs: logs, log: logs[0], consumer: consumer, owner: ownerName(), lanes: lanes,
		logger:  logs[0].logger.With(slog.String("consumer", consumer)),
		closing: make(chan struct{}),
	}
}

// ownerName tells an operator which process holds a lease, and keeps owners apart.
func ownerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), uuid.NewString()[:8])
}

// Subscribe delivers the topic's events from where the consumer stands: one at a time for a key, several keys at once. A
// message that is acknowledged is not delivered again, except after a crash; one that is refused comes again after a
// wait that doubles each time. The channel is closed when ctx has ended or Close was called, and what was being handled
// is done. It is called once. It returns ErrUnknownConsumer and ErrTopicChanged, unless the database is away: then it
// delivers when that is back.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closing:
		return nil, ErrClosed
	default:
	}
	if s.subscribed {
		return nil, errors.New("a subscriber has one subscription")
	}
	if err := s.reads(ctx, topic); err != nil {
		return nil, fmt.Errorf("subscribe %s to topic %s: %w", s.consumer, topic, err)
	}
	s.subscribed = true
	out := make(chan *message.Message)
	stop, cancel := context.WithCancel(ctx)
	s.running.Go(func() {
		defer cancel()
		select {
		case <-s.closing:
		case <-stop.Done():
		}
	})
	s.running.Go(func() {
		defer close(out)
		defer cancel()
		s.run(stop, topic, out)
	})
	return out, nil
}

// readsTimeout bounds the look at what the consumer reads.
const readsTimeout = time.Second

// reads returns an error if the consumer is known not to read the topic. A relay may be unknown until it is needed.
func (s *Subscriber) reads(ctx context.Context, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, readsTimeout)
	defer cancel()
	for _, l := range s.logs {
		var known string
		err := l.pool.QueryRow(ctx, `SELECT topic FROM `+l.table("consumers")+` WHERE consumer = $1`, s.consumer).Scan(&known)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			continue
		case err != nil:
			s.logger.Warn("what the consumer reads is not known yet", slog.Any("error", err))
		case known != topic:
			return fmt.Errorf("%w: it reads %s", ErrTopicChanged, known)
		}
		return nil
	}
	if s.broker == "" {
		return ErrUnknownConsumer
	}
	return nil
}

// Close stops fetching, waits for what is being handled, at most the log's Drain, stores where the consumer stands and
// gives its shares free for others at once. It may be called more than once.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.once.Do(func() { close(s.closing) })
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// run works until stop ends, in whichever log has the consumer's shares, and begins anew when the database was lost.
func (s *Subscriber) run(stop context.Context, topic string, out chan<- *message.Message) {
	for failures := 1; stop.Err() == nil; failures++ {
		began := time.Now()
		err := s.locate(stop)
		if err == nil {
			err = s.work(stop, topic, out)
		}
		if err == nil || stop.Err() != nil {
			return
		}
		if time.Since(began) > s.log.config.Lease || errors.Is(err, errMoved) {
			failures = 1
		}
		switch {
		case errors.Is(err, errMoved):
			continue
		case hasCode(err, codeOtherServer):
			s.logger.Info("the database's server was started anew or replaced; consumer goes on from what is stored")
		default:
			s.logger.Warn("consumer interrupted, will go on by itself", slog.Any("error", err))
		}
		sleep(stop, backoff(failures, s.log.config.RetryMin, s.log.config.Lease))
	}
}

// work reads and delivers until stop ends, or the database is lost for longer than the lease.
func (s *Subscriber) work(stop context.Context, topic string, out chan<- *message.Message) error {
	h, err := s.begin(stop)
	if err != nil {
		return err
	}
	defer s.log.watch(topic)()
	// Handlers live on while the subscriber drains, so their context is not stop's.
	handling, abandon := context.WithCancelCause(context.WithoutCancel(stop))
	defer abandon(nil)
	reading, stopReading := context.WithCancelCause(stop)
	defer stopReading(nil)

	term := newTerm(s.log.config.Lease)
	d := newDelivery(h, term.valid, out)
	d.logger = s.logger
	var keeping, lanes, reader sync.WaitGroup
	keepCtx, endKeeping := context.WithCancel(handling)
	k := keeper{Subscriber: s, topic: topic, delivery: d, term: term, reading: reading, handling: handling}
	keeping.Go(func() {
		if err := k.run(keepCtx); err != nil {
			stopReading(err)
			k.expire(keepCtx)
		}
	})
	keeping.Go(func() { s.keepStoring(keepCtx, d) })
	keeping.Go(func() { s.keepParking(keepCtx, d) })
	for range s.lanes {
		lanes.Go(func() { d.runLane(reading) })
	}
	reader.Go(func() {
		if err := s.read(reading, topic, d); err != nil {
			stopReading(err)
		}
	})
	<-reading.Done()
	reader.Wait()
	s.drain(&lanes, abandon)
	endKeeping()
	keeping.Wait()
	finished := s.finish(stop, d)
	if stop.Err() == nil {
		return errors.Join(context.Cause(reading), finished)
	}
	return finished
}

// beginTimeout bounds the first look at the server.
const beginTimeout = 5 * time.Second

func (s *Subscriber) begin(ctx context.Context) (holder, error) {
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	h, err := s.log.hold(ctx, s.consumer, s.owner, s.left)
	if err == nil {
		s.left = nil
	}
	h.broker = s.broker
	return h, err
}

// drain waits for the handlers that run. Those that take longer than the log's Drain have their contexts cancelled and
// are not waited for.
func (s *Subscriber) drain(lanes *sync.WaitGroup, abandon context.CancelCauseFunc) {
	late := time.AfterFunc(s.log.config.Drain, func() {
		s.logger.Warn("handlers did not end in time, their contexts are cancelled")
		abandon(context.DeadlineExceeded)
	})
	defer late.Stop()
	lanes.Wait() // a lane does not outlive its message's context
}

// finishTimeout bounds the last checkpoints and the release of the shares.
const finishTimeout = 5 * time.Second

// finish stores what is parked, and where the shares stand with what is done beyond, and hands them over.
func (s *Subscriber) finish(stop context.Context, d *delivery) error {
	err := s.storeChanges(stop, d)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), finishTimeout)
	defer cancel()
	if last := d.remaining(); len(last) > 0 {
		if _, failure := d.holder.store(ctx, last); failure != nil {
			s.left = d.atRest()
			return errors.Join(err, failure)
		}
	}
	return errors.Join(err, d.holder.leave(ctx))
}

// read follows the topic and hands rows to the lanes, window by window. All shares of this process share a window's end;
// those that were just claimed are read up to it on their own first.
func (s *Subscriber) read(ctx context.Context, topic string, d *delivery) error {
	for window := uint64(1); ; window++ {
		woken := s.log.wakeup.next(topic)
		common, boundary, joining := d.takeUp()
		if len(common)+len(joining) == 0 {
			select {
			case <-d.joined:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		w := windowReader{topic: topic, delivery: d, number: window}
		if len(common) > 0 {
			if err := w.read(ctx, &d.common, boundary, common); err != nil {
				return err
			}
		}
		for _, t := range joining {
			if err := w.read(ctx, t, t.place, t.shares); err != nil {
				return err
			}
		}
		boundary = place{snapshot: w.end, floor: max(w.floor, boundary.floor), fence: unboundedFence}
		d.endWindow(window, boundary, joining)
		if w.found > 0 {
			continue
		}
		select {
		case <-woken:
			d.heard()
		case <-d.joined:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// windowReader reads one window for several groups of shares that begin it at different places.
type windowReader struct {
	topic    string
	delivery *delivery
	number   uint64

	end   string // the snapshot at its end; "" until the first group has opened it
	floor int64
	found int
}

// read hands the shares' rows between from and the window's end to the track. A group that is in the middle of a window
// of its own finishes that one first.
func (w *windowReader) read(ctx context.Context, t *track, from place, shares []*share) error {
	var byNumber [shareCount]*share
	var numbers []int16
	for _, s := range shares {
		byNumber[s.number] = s
		numbers = append(numbers, s.number)
	}
	if len(numbers) == shareCount {
		numbers = nil
	}
	at, own := from, from.windowEnd != snapshotOfNobody
	if !own {
		at.windowEnd = w.end
	}
	for {
		found, err := w.delivery.holder.read(ctx, w.topic, at, numbers)
		if err != nil {
			return err
		}
		for _, r := range found.rows {
			if err := w.delivery.add(ctx, t, r, byNumber[r.share], w.number, from); err != nil {
				return err
			}
		}
		w.found += len(found.rows)
		at = found.next
		switch {
		case found.more:
		case own:
			own = false
			at.windowEnd = w.end
		default:
			w.end, w.floor = at.snapshot, max(w.floor, at.floor)
			return nil
		}
	}
}

// keepStoring stores what has moved, at most every storePause, and hands over what leaves. A database that does not
// answer is asked again; the leases run out meanwhile.
func (s *Subscriber) keepStoring(ctx context.Context, d *delivery) {
	slow := time.NewTicker(noteEvery)
	defer slow.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.dirty:
		case <-slow.C:
		}
		busy := s.log.storing.Add(1)
		began := time.Now()
		s.storeDue(ctx, d)
		sleep(ctx, storePause(busy, time.Since(began)))
		s.log.storing.Add(-1)
	}
}

// storeTimeout bounds one attempt to store. It is not cut short by the end of the work: a statement that was given up on may
// still be carried out, after those that follow it.
const storeTimeout = 5 * time.Second

func (s *Subscriber) storeDue(ctx context.Context, d *delivery) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if due := d.due(); len(due) > 0 {
		s.store(ctx, d, due)
	}
}

func (s *Subscriber) store(ctx context.Context, d *delivery, due []checkpoint) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	reached, err := d.holder.store(ctx, due)
	if err != nil {
		signal(d.dirty)
		return
	}
	s.reportLost(d.stored(due, reached))
}

func (s *Subscriber) reportLost(n int) {
	if n > 0 {
		s.logger.Warn("shares are with another process", slog.Int("count", n))
	}
}

// storeEvery bounds how often the places of a consumer are stored while messages flow, and storeSpacing how often those of all
// consumers of a process are. After a crash the messages acknowledged since the last time come again.
//
// While anybody's transaction stays open, nothing that was replaced since can be cleared away, and each time costs more than the one
// before: with storeRest times as long between them they take up a twentieth of the time, until that is storeEveryMost.
const (
	storeEvery     = 50 * time.Millisecond
	storeSpacing   = 10 * time.Millisecond
	storeRest      = 19
	storeEveryMost = 250 * time.Millisecond
)

// storePause is how long a consumer waits before it stores again, when so many are storing or waiting, and when it took as long.
func storePause(busy int32, took time.Duration) time.Duration {
	return max(storeEvery, time.Duration(busy)*storeSpacing, min(took*storeRest, storeEveryMost))
}

// noteEvery is how often what is handled beyond a place that stays is stored.
const noteEvery = time.Second

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
