package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

const (
	// concurrencyMax bounds a subscriber's concurrency.
	concurrencyMax = 1000
	// aheadTime is how much work is taken ahead of those that run, and aheadMax how many jobs at most.
	aheadTime = 20 * time.Millisecond
	aheadMax  = 1000
	// aheadPatience is how long jobs that were taken ahead may wait for those that run.
	aheadPatience = 500 * time.Millisecond
	// finishTimeout bounds the storing of the last outcomes and the giving up of the lease.
	finishTimeout = 5 * time.Second
)

// Subscriber is the message.Subscriber of one queue. All the subscribers of a queue, in all processes, share its jobs.
type Subscriber struct {
	table       *Table
	queue       string
	concurrency int
	logger      *slog.Logger

	running sync.WaitGroup
	freed   chan struct{}

	mu     sync.Mutex
	closed bool
	stop   context.CancelFunc // nil before Subscribe
	inHand int                // taken, and not answered
	moved  time.Time          // when one was begun last
	usual  time.Duration      // how long a job takes; 0 when that is not known
}

// Subscriber returns a subscriber for the queue, which runs up to concurrency jobs at a time. Each call makes a new one; the
// caller closes it. It returns ErrShape for a name or a number that cannot be.
func (t *Table) Subscriber(queue string, concurrency int) (message.Subscriber, error) {
	switch {
	case !isName(queue):
		return nil, fmt.Errorf("%w: a queue is named like outgoing-mail, not %q", ErrShape, queue)
	case concurrency < 1 || concurrency > concurrencyMax:
		return nil, fmt.Errorf("%w: concurrency of queue %s is %d, from 1 to %d", ErrShape, queue, concurrency, concurrencyMax)
	}
	return &Subscriber{
		table: t, queue: queue, concurrency: concurrency, logger: t.logger, freed: make(chan struct{}, 1),
	}, nil
}

// Subscribe delivers the queue's jobs when they are due. The topic is the queue's name. A message's UUID is the job's id,
// its payload the arguments; its metadata have kind, queue, attempt and what was given with Metadata. Ack completes the
// job; Nack refuses it, for the reason that Table.Refuse was told.
//
// The message's context ends when the job is cancelled (ErrCancelled), when its lease could not be kept (ErrLost), and when
// it is still running Drain after the subscriber was told to stop (ErrStopped). The channel is closed when ctx has ended or
// Close was called, and what was being handled is done. It is called once.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, ErrClosed
	case topic != s.queue:
		return nil, fmt.Errorf("%w: the subscriber is of queue %s, not %s", ErrShape, s.queue, topic)
	case s.stop != nil:
		return nil, errors.New("a subscriber has one subscription")
	}
	out := make(chan *message.Message)
	stop, cancel := context.WithCancel(ctx)
	s.stop = cancel
	s.running.Go(func() {
		defer close(out)
		defer cancel()
		s.run(stop, out)
	})
	return out, nil
}

// Close stops taking jobs, gives back those that were not begun, waits for those that run, at most the table's Drain, and
// gives back what overran; neither counts as an attempt. It may be called more than once.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	if s.stop != nil {
		s.stop()
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

func (s *Subscriber) run(stop context.Context, out chan<- *message.Message) {
	w := s.table.join(s.queue)
	// Handlers live on while the subscriber drains, so their context is not stop's.
	handling, abandon := context.WithCancelCause(context.WithoutCancel(stop))
	defer abandon(nil)
	ready := make(chan *delivery, s.concurrency+aheadMax)
	var lanes sync.WaitGroup
	for range s.concurrency {
		lanes.Go(func() {
			for d := range ready {
				s.deliver(stop, handling, d, out)
			}
		})
	}
	stale := make(chan struct{})
	lanes.Go(func() {
		defer close(stale)
		s.giveBackStale(stop, ready)
	})
	s.fetch(stop, handling, w, ready)
	<-stale
	close(ready)
	for d := range ready { // all lanes may be busy for long
		s.deliver(stop, handling, d, out)
	}
	late := time.AfterFunc(s.table.config.Drain, func() {
		s.logger.Warn("jobs did not end in time, their contexts are cancelled", slog.Duration("timeout", s.table.config.Drain))
		abandon(ErrStopped)
	})
	lanes.Wait()
	late.Stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), finishTimeout)
	defer cancel()
	s.table.leave(ctx, w, s.queue)
}

// fetch takes jobs until stop ends.
func (s *Subscriber) fetch(stop, handling context.Context, w *worker, ready chan<- *delivery) {
	failures := 0
	for stop.Err() == nil {
		woken := s.table.wakeup.next(s.queue) // before the look
		n := s.room()
		if n == 0 {
			select {
			case <-s.freed:
			case <-stop.Done():
			}
			continue
		}
		if w.awaitStored(stop, unstoredMax); stop.Err() != nil {
			return
		}
		taken, err := w.take(stop, handling, s.queue, n)
		if err != nil {
			failures++
			s.logger.Warn("jobs cannot be taken, will go on by itself", slog.Any("error", err))
			sleep(stop, Policy{WaitMin: retryWait, WaitMax: s.table.config.Lease}.wait(failures))
			continue
		}
		failures = 0
		s.mu.Lock()
		s.inHand += len(taken)
		s.moved = time.Now()
		s.mu.Unlock()
		for _, d := range taken {
			ready <- d // there is room
		}
		if len(taken) == n {
			continue
		}
		select {
		case <-woken:
		case <-stop.Done():
		}
	}
}

// giveBackStale gives jobs back that were taken ahead when none was begun for a while, because all that run take longer
// than those before them: another process may be free. It ends with stop.
func (s *Subscriber) giveBackStale(stop context.Context, ready <-chan *delivery) {
	for stop.Err() == nil {
		sleep(stop, aheadPatience/2)
		s.mu.Lock()
		if len(ready) == 0 || time.Since(s.moved) < aheadPatience {
			s.mu.Unlock()
			continue
		}
		s.usual = 0 // nothing is taken ahead until it is known how long they take now
		s.mu.Unlock()
		for more := true; more; {
			select {
			case d := <-ready:
				d.worker.ends(d, outcome{verdict: verdictBack})
				d.end(nil)
				s.answered(0)
			default:
				more = false
			}
		}
	}
}

// room is how many jobs are to be taken now: as many as may be begun, and some ahead when they are short, since taking them
// one by one would take longer than running them. It is 0 while that many are in hand, or nearly.
func (s *Subscriber) room() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	ahead := 0
	if s.usual > 0 {
		ahead = min(int(int64(s.concurrency)*int64(aheadTime)/int64(s.usual)), aheadMax)
	}
	free := s.concurrency + ahead - s.inHand
	if free <= ahead/2 {
		return 0
	}
	return free
}

// answered notes that a job is not in hand any more, and how long it took if it ran.
func (s *Subscriber) answered(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inHand--
	if took > 0 {
		if s.usual == 0 {
			s.usual = took
		}
		s.usual += (took - s.usual) / 8
		s.usual = max(s.usual, 1)
	}
	signal(s.freed)
}

// deliver hands out a job and notes the outcome.
func (s *Subscriber) deliver(stop, handling context.Context, d *delivery, out chan<- *message.Message) {
	defer d.end(nil) // the message's context ends with its answer
	begun := time.Time{}
	defer func() {
		var took time.Duration
		if !begun.IsZero() {
			took = time.Since(begun)
		}
		s.answered(took)
	}()
	back := outcome{verdict: verdictBack}
	if stop.Err() != nil || d.ctx.Err() != nil || !d.worker.term.valid() {
		d.worker.ends(d, back)
		return
	}
	m := d.message()
	select {
	case out <- m:
		begun = time.Now()
		s.mu.Lock()
		s.moved = begun
		s.mu.Unlock()
	case <-stop.Done():
		d.worker.ends(d, back)
		return
	case <-d.ctx.Done():
		d.worker.ends(d, back)
		return
	}
	select {
	case <-m.Acked():
		d.worker.ends(d, d.acknowledged())
	case <-m.Nacked():
		o := d.refused()
		s.tell(d, o)
		d.worker.ends(d, o)
	case <-handling.Done():
		s.abandoned(d, m)
	}
}

// tell has the log say what becomes of a job that failed. Of what it failed is the router's to say.
func (s *Subscriber) tell(d *delivery, o outcome) {
	job := []any{slog.String("job_id", d.row.id.String()), slog.String("job_kind", d.row.kind), slog.Int("attempt", d.row.attempt)}
	switch o.verdict {
	case verdictRetry:
		s.logger.Warn("job failed, it will be tried again", append(job, slog.Duration("delay", o.wait))...)
	case verdictDead:
		s.logger.Error("job is dead", job...)
	}
}

// abandoned deals with a job that overran the stop of its worker. Its handler gets a moment to return; then the job goes
// back in any case.
func (s *Subscriber) abandoned(d *delivery, m *message.Message) {
	grace := time.NewTimer(endedGrace)
	defer grace.Stop()
	select {
	case <-m.Acked():
		d.worker.ends(d, d.acknowledged())
		return
	case <-m.Nacked():
	case <-grace.C:
		s.logger.Warn("a job ignores that its context has ended", slog.String("job_id", d.row.id.String()),
			slog.String("job_kind", d.row.kind))
	}
	d.worker.ends(d, outcome{verdict: verdictBack})
}
