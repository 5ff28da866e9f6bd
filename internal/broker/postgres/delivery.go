package postgres

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// delivery hands rows to handlers. account.go keeps account of which are done.
//
// Each key has a queue of its own, of which only the first message is out. A queue is ready, or with a lane, or waiting
// out a refusal, so a refused message holds up its key and no lane.
type delivery struct {
	holder  holder
	config  Config
	out     chan<- *message.Message
	valid   func() bool // the leases hold, as far as this process can know
	ready   chan *queue // each queue that has entries is in it at most once, so there is always room
	dirty   chan struct{}
	joined  chan struct{}
	emptied chan struct{} // the last share was handed over
	parking chan struct{} // something is to be parked, or taken from a line
	logger  *slog.Logger

	mu       sync.Mutex
	closed   *sync.Cond // entries were closed
	queues   map[string]*queue
	shares   map[int16]*share
	joining  []*track // claimed, and not yet with the reader
	tracks   []*track // with the reader, and not yet caught up
	common   track
	window   uint64 // the newest that was read to its end
	boundary place  // that end
	entries  int
	bytes    int
	beyond   int       // positions that are handled ahead of their share's place
	noted    time.Time // when such were stored last while no place moved
	active   time.Time // when shares were claimed last, a message came or went, or the topic had something new
	parked   map[string]*parkedKey
	changes  []change // of lines, to be stored
	loaded   int      // bytes that were taken from lines and are not handled yet
	pace
}

// queue has the open entries of one key, in log order.
type queue struct {
	key     string
	share   *share
	entries []*entry
	refused int        // how often the first was
	out     bool       // the first is with a handler
	line    *parkedKey // that the entries were taken from; nil for those of the log
}

func newDelivery(h holder, valid func() bool, out chan<- *message.Message) *delivery {
	d := &delivery{
		holder: h, config: h.log.config, out: out, valid: valid,
		ready:   make(chan *queue, unackedMax),
		dirty:   make(chan struct{}, 1),
		joined:  make(chan struct{}, 1),
		emptied: make(chan struct{}, 1),
		parking: make(chan struct{}, 1),
		logger:  slog.New(slog.DiscardHandler),
		parked:  make(map[string]*parkedKey),
		pace:    newPace(),
		active:  time.Now(),
		queues:  make(map[string]*queue),
		shares:  make(map[int16]*share),
	}
	d.closed = sync.NewCond(&d.mu)
	return d
}

// add takes the next row of a track, of one of the shares that it was read for; begin is where the window began. It waits
// while too many messages or bytes are open, until ctx ends. A row whose share is not held any more is left to the next
// owner, also when that is this process again.
func (d *delivery) add(ctx context.Context, t *track, r row, s *share, window uint64, begin place) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.awaitRoom(ctx, r.bytes()); err != nil {
		return err
	}
	if s.leaving {
		return nil
	}
	e := &entry{row: r, share: s, track: t, window: window, begin: begin, done: s.ahead[r.position]}
	t.open = append(t.open, e)
	d.entries++
	d.active = time.Now()
	d.bytes += r.bytes()
	if e.done {
		d.advance(t)
		return nil
	}
	key := r.key()
	if d.behindLine(e, key) {
		return nil
	}
	q := d.queues[key]
	if q == nil {
		q = &queue{key: key, share: s}
		d.queues[key] = q
		d.ready <- q
	}
	q.entries = append(q.entries, e)
	return nil
}

// awaitRoom returns when that many bytes may be added. A message that is larger than all the room is let in alone.
func (d *delivery) awaitRoom(ctx context.Context, bytes int) error {
	if !d.full(bytes) {
		return ctx.Err()
	}
	defer context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.closed.Broadcast()
	})()
	for d.full(bytes) && ctx.Err() == nil {
		d.closed.Wait()
	}
	return ctx.Err()
}

// full reports whether that many bytes have to wait. What is done ahead of a place that stays behind counts like what is not
// done: all of it comes again after a crash.
func (d *delivery) full(bytes int) bool {
	return d.entries+d.beyond >= unackedMax || (d.entries > 0 && d.bytes+bytes > unackedBytesMax)
}

// runLane delivers the first messages of ready queues, one after another, until reading ends.
func (d *delivery) runLane(reading context.Context) {
	for reading.Err() == nil {
		select {
		case <-reading.Done():
		case q := <-d.ready:
			d.paced(reading, func() { d.deliver(reading, q) })
		}
	}
}

// invalidWait is how long a lane rests when the leases may have run out; whoever keeps them will find out.
const invalidWait = 10 * time.Millisecond

// deliver hands out the first message of a queue and waits for the answer, or for the end of the share.
func (d *delivery) deliver(reading context.Context, q *queue) {
	e := d.take(q)
	if e == nil {
		return
	}
	m := message.NewMessage(e.id.String(), e.payload)
	m.Metadata = e.handOut()
	ctx, end := context.WithCancelCause(e.share.ctx) // ends with the message's answer, as message.Subscriber has it
	defer func() { end(context.Cause(e.share.ctx)) }()
	m.SetContext(context.WithValue(ctx, flightKey{}, e))
	if !d.valid() {
		sleep(reading, invalidWait)
		d.back(q, e, false)
		return
	}
	if e.share.ctx.Err() != nil { // looked at after the term: a share that was lost is taken away before the term is extended
		d.back(q, e, false)
		return
	}
	select {
	case d.out <- m:
	case <-reading.Done():
		d.back(q, e, false)
		return
	case <-e.share.ctx.Done():
		d.back(q, e, false)
		return
	}
	select {
	case <-m.Acked():
		d.back(q, e, true)
	case <-m.Nacked():
		d.refused(reading, q, e)
	case <-e.share.ctx.Done():
		// The handler may still be running: the message stays out.
	}
}

// take marks the queue's first entry as out. It returns nil for a queue that was dropped.
func (d *delivery) take(q *queue) *entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(q.entries) == 0 || q.share.leaving {
		return nil
	}
	q.out = true
	q.share.out++
	return q.entries[0]
}

// handOut returns the entry's metadata for a handler, which may write to them: each time others.
func (e *entry) handOut() message.Metadata {
	m := e.metadata
	if e.metadata = nil; m == nil {
		m, _ = decodeMetadata(e.raw) // it was decoded before
	}
	return m
}

// back closes the first entry of the queue when it is done, or leaves it for another time, and lets the next one follow.
func (d *delivery) back(q *queue, e *entry, done bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := q.share
	d.active = time.Now()
	q.out = false
	s.out--
	if done {
		d.succeeded()
	}
	switch {
	case e.track == nil && done:
		d.handled(q)
	case s.leaving: // its queues are gone
		d.closeLeaving(e, done)
		return
	case done:
		e.done = true
		q.entries[0] = nil
		q.entries = q.entries[1:]
		q.refused = 0
	}
	switch {
	case s.leaving:
		signal(d.dirty)
		return
	case len(q.entries) > 0:
		d.ready <- q
	case q.line == nil:
		delete(d.queues, q.key)
	}
	d.advance(e.track)
}

// closeLeaving closes an entry of a share that is being handed over, so that it holds up no other share.
func (d *delivery) closeLeaving(e *entry, done bool) {
	signal(d.dirty)
	if e.track == nil {
		return
	}
	if done {
		e.share.handled = append(e.share.handled, e.position)
	}
	e.done = true
	d.advance(e.track)
}

// refused parks the first message of the queue, if the reason says how. Otherwise it makes the queue ready again after a
// wait; until then its first message is not out.
func (d *delivery) refused(reading context.Context, q *queue, e *entry) {
	v, explained := judge(e.reason, e.attempts+1)
	e.reason = nil
	if wait, again := d.refuse(q, e, v, explained); again {
		time.AfterFunc(wait, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if reading.Err() == nil && len(q.entries) > 0 {
				d.ready <- q
			}
		})
	}
}

func (d *delivery) refuse(q *queue, e *entry, v verdict, explained bool) (wait time.Duration, again bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active = time.Now()
	q.out = false
	q.share.out--
	switch {
	case q.share.leaving:
		d.closeLeaving(e, false)
		return 0, false
	case !explained:
		q.refused++
		return backoff(q.refused, d.config.RetryMin, d.config.RetryMax), true
	case d.failed(q, v):
		return 0, true // the pace makes it wait
	case q.line != nil:
		d.failAgain(q, v)
	default:
		d.park(q, v)
	}
	return 0, false
}

// backoff doubles from shortest to longest, with up to half of it taken off at random.
func backoff(attempt int, shortest, longest time.Duration) time.Duration {
	wait := longest
	if shift := attempt - 1; shift >= 0 && shift < 30 && shortest<<shift < longest {
		wait = shortest << shift
	}
	return wait - rand.N(wait/2+1) //nolint:gosec // jitter needs no secrecy
}
