package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postbus/internal/dedicated"
)

// worker is this process to the others: it holds the lease of all jobs that were taken here, stores what becomes of them,
// and takes back the jobs of workers that have died. It works while the table has a subscription.
type worker struct {
	table *Table
	owner string
	term  *term
	beat  chan struct{} // renew now
	doubt chan struct{} // unsure was set
	dirty chan struct{} // there are outcomes to store
	stop  func()
	// heartbeat is a connection beside the pool, which belongs to keep: an application that uses all of its pool keeps its jobs.
	heartbeat *dedicated.Conn

	// taking is held for reading while jobs are taken, so that the lease is not given up meanwhile.
	taking sync.RWMutex

	mu       sync.Mutex
	changed  *sync.Cond // outcomes were stored, or given up
	queues   map[string]int
	floors   map[string]*floors // of the queues
	held     map[uuid.UUID]*delivery
	ending   map[uuid.UUID]*delivery // lost, and their handlers have not returned
	outcomes []outcome               // that are to be stored
	storing  int                     // that are being stored
	leased   bool                    // the row may be there
	unsure   bool                    // the answer to a take was lost: there may be jobs that we do not know of
	active   time.Time
}

// join has the process work for the queue until leave.
func (t *Table) join(queue string) *worker {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.worker == nil {
		t.worker = newWorker(t)
	}
	w := t.worker
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queues[queue]++
	if w.floors[queue] == nil {
		w.floors[queue] = new(floors)
	}
	return w
}

// leave stores what is left, and gives up the lease when the queue was the last.
func (t *Table) leave(ctx context.Context, w *worker, queue string) {
	w.awaitStored(ctx, 0)
	t.mu.Lock()
	defer t.mu.Unlock()
	w.mu.Lock()
	if w.queues[queue]--; w.queues[queue] == 0 {
		delete(w.queues, queue)
		delete(w.floors, queue)
	}
	last := len(w.queues) == 0
	left := len(w.outcomes) + w.storing
	w.mu.Unlock()
	if !last {
		return
	}
	if left > 0 {
		t.logger.Warn("outcomes of jobs could not be stored in time, they will run again", slog.Int("count", left))
	}
	t.worker = nil
	w.stop()
	if err := w.release(ctx); err != nil {
		t.logger.Debug("lease was not given up", slog.Any("error", err))
	}
}

func newWorker(t *Table) *worker {
	w := &worker{
		table: t, owner: ownerName(), term: newTerm(t.config.Lease),
		beat: make(chan struct{}, 1), doubt: make(chan struct{}, 1), dirty: make(chan struct{}, 1),
		queues: make(map[string]int), floors: make(map[string]*floors), held: make(map[uuid.UUID]*delivery),
		ending: make(map[uuid.UUID]*delivery), heartbeat: dedicated.New(t.pool),
	}
	w.changed = sync.NewCond(&w.mu)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.keep(ctx) })
	running.Go(func() { w.keepTerm(ctx) })
	running.Go(func() { w.keepSure(ctx) })
	running.Go(func() { w.keepStoring(ctx) })
	running.Go(func() { w.watchDue(ctx) })
	if !t.config.NotifyOff {
		running.Go(func() { w.listen(ctx) })
	}
	w.stop = func() {
		cancel()
		running.Wait()
	}
	return w
}

// ownerName tells an operator which process holds a lease, and keeps owners apart.
func ownerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), uuid.NewString()[:8])
}

func (w *worker) queueNames() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.queues))
}

// take takes jobs for a queue. They live under ctx until they have ended.
func (w *worker) take(ctx, handling context.Context, queue string, n int) ([]*delivery, error) {
	w.taking.RLock()
	defer w.taking.RUnlock()
	w.mu.Lock()
	w.leased = true
	f := w.floors[queue]
	look := f.next(time.Now())
	w.mu.Unlock()
	// What was asked for may still be carried out when the wait for the answer is broken off, so it is not cut short.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.table.config.Lease)
	defer cancel()
	rows, err := w.table.take(ctx, w.owner, queue, n, look.from)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.doubts()
		return nil, err
	}
	f.looked(look, reachedBy(rows))
	if len(rows) > 0 {
		w.term.extend(look.asked.Add(-w.table.leaseSlack()))
		w.active = time.Now()
	}
	deliveries := make([]*delivery, len(rows))
	for i, r := range rows {
		deliveries[i] = newDelivery(handling, w, r, queue)
		w.held[r.id] = deliveries[i]
	}
	return deliveries, nil
}

// ends notes the outcome of a job, which is stored soon.
func (w *worker) ends(d *delivery, o outcome) {
	o.id, o.epoch, o.sequence, o.lock = d.row.id, d.row.epoch, d.row.sequence, d.row.lock
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[o.id] != d { // lost; somebody else says what becomes of it
		if w.ending[o.id] == d {
			delete(w.ending, o.id)
			w.doubts()
		}
		return
	}
	d.done = true
	w.outcomes = append(w.outcomes, o)
	signal(w.dirty)
}

// keepStoring stores outcomes as they come. Those that come while some are being stored go together.
func (w *worker) keepStoring(ctx context.Context) {
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-w.dirty:
		}
		if err := w.store(ctx); err != nil {
			failures++
			w.table.logger.Warn("outcomes of jobs are not stored yet, will go on by itself", slog.Any("error", err))
			sleep(ctx, Policy{WaitMin: retryWait, WaitMax: w.table.config.Lease / 2}.wait(failures))
			continue
		}
		failures = 0
	}
}

const (
	retryWait = 50 * time.Millisecond
	// storeMax bounds one statement.
	storeMax = 1000
	// unstoredMax is how many outcomes may wait when more jobs are taken. A stop has to get them stored within finishTimeout, even if
	// the database is slow at it; those that it does not would run again.
	unstoredMax = 4 * storeMax
	// storeTimeout bounds one attempt. It is not cut short by the end of the work: a statement that was given up on may still be
	// carried out.
	storeTimeout = 5 * time.Second
)

func (w *worker) store(ctx context.Context) error {
	w.mu.Lock()
	n := min(len(w.outcomes), storeMax)
	due := slices.Clone(w.outcomes[:n])
	w.outcomes = slices.Delete(w.outcomes, 0, n)
	w.storing = n
	w.mu.Unlock()
	if n == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	stored, woken, err := w.table.end(ctx, w.table.pool, due)
	w.table.Wake(woken...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.storing = 0
	if err != nil {
		w.outcomes = append(due, w.outcomes...)
		signal(w.dirty)
		return err
	}
	if len(w.outcomes) > 0 {
		signal(w.dirty)
	}
	for _, o := range due {
		if d := w.held[o.id]; d != nil && d.row.epoch == o.epoch {
			delete(w.held, o.id)
		}
	}
	w.active = time.Now()
	w.changed.Broadcast()
	if lost := len(due) - len(stored); lost > 0 {
		w.table.logger.Warn("jobs are with another worker by now", slog.Int("count", lost))
	}
	return nil
}

// awaitStored returns when no more than so many outcomes are to be stored, or ctx has ended.
func (w *worker) awaitStored(ctx context.Context, atMost int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.changed.Broadcast()
	})()
	for len(w.outcomes)+w.storing > atMost && ctx.Err() == nil {
		w.changed.Wait()
	}
}

// keep renews the lease while there are jobs, gives it up while there are none, and looks for workers that have died.
func (w *worker) keep(ctx context.Context) {
	defer w.heartbeat.Close()
	lease := w.table.config.Lease
	tick := time.NewTicker(lease / 5)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-w.beat:
		}
		attempt, cancel := context.WithTimeout(ctx, lease/5)
		err := w.renew(attempt)
		if err == nil {
			err = w.rescue(attempt)
		}
		cancel()
		if err == nil || ctx.Err() != nil {
			continue
		}
		w.table.logger.Debug("heartbeat failed", slog.Any("error", err))
	}
}

// keepTerm ends the contexts of all jobs at the moment from which on others may take this worker for dead, and not a
// heartbeat later: another may begin them then.
func (w *worker) keepTerm(ctx context.Context) {
	for ctx.Err() == nil {
		left := w.term.left()
		if left <= 0 {
			w.lose(w.heldNow(), "no heartbeat got through")
			left = w.table.config.Lease / 5 // a take that comes now begins a term that is longer than this
		}
		sleep(ctx, left)
	}
}

// doubts notes, under the lock, that there may be jobs which this worker does not know of.
func (w *worker) doubts() {
	w.unsure = true
	signal(w.doubt)
}

// keepSure clears up doubts, beside the heartbeat, since it waits until no takes are under way.
func (w *worker) keepSure(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.doubt:
		}
		attempt, cancel := context.WithTimeout(ctx, w.table.config.Lease)
		err := w.resync(attempt)
		cancel()
		if err != nil && ctx.Err() == nil {
			w.table.logger.Debug("jobs of a lost answer are not found yet", slog.Any("error", err))
			sleep(ctx, w.table.config.Lease/5)
			signal(w.doubt)
		}
	}
}

// renew prolongs the lease and learns which jobs are to be cancelled, and which are not this worker's any more.
func (w *worker) renew(ctx context.Context) error {
	w.mu.Lock()
	idle := len(w.held) == 0 && !w.unsure && time.Since(w.active) > w.table.config.Lease
	leased := w.leased
	w.mu.Unlock()
	switch {
	case !leased:
		return nil
	case idle: // a process that has nothing to do writes nothing
		return w.release(ctx)
	}
	held := w.heldNow()
	ids := make([]uuid.UUID, len(held))
	for i, d := range held {
		ids[i] = d.row.id
	}
	asked := time.Now()
	var renewed bool
	var mine, cancelled []uuid.UUID
	err := w.heartbeat.Do(ctx, func(db dedicated.DB) error {
		return db.QueryRow(ctx, w.table.sql.renew, w.table.perValue, w.owner, ids, w.table.config.Lease.Microseconds()).
			Scan(&renewed, &mine, &cancelled)
	})
	if err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	if renewed {
		w.term.extend(asked)
	} else {
		mine = nil // somebody has taken all of it back
	}
	w.lose(slices.DeleteFunc(held, func(d *delivery) bool { return slices.Contains(mine, d.row.id) }), "taken over")
	w.cancel(cancelled)
	return nil
}

// cancel ends the contexts of jobs that somebody has cancelled.
func (w *worker) cancel(ids []uuid.UUID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		if d := w.held[id]; d != nil {
			d.end(ErrCancelled)
		}
	}
}

// renewSQL asks for the jobs by their ids: the index of running ones may be full of entries of jobs that ran before, and while it is
// read the lease's row is locked, which takes wait for. OFFSET 0 keeps the planner from that index.
func renewSQL(t *Table) string {
	return `WITH renewed AS (
			UPDATE ` + t.table("job_workers") + ` SET lease_until = clock_timestamp() + $3::bigint * interval '1 microsecond'
			WHERE owner = $1 RETURNING owner),
		held AS (SELECT id, cancel_at, owner, state FROM ` + t.table("jobs") + ` WHERE id = ANY ($2) OFFSET 0),
		mine AS (SELECT id, cancel_at FROM held WHERE owner = $1 AND state = 'running')
		SELECT EXISTS (SELECT FROM renewed), ARRAY(SELECT id FROM mine), ARRAY(SELECT id FROM mine WHERE cancel_at IS NOT NULL)`
}

func (w *worker) heldNow() []*delivery {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.held))
}

// lose ends jobs that this worker may not be the only one at. Of those whose outcome is under way it says nothing: the
// epoch decides.
func (w *worker) lose(deliveries []*delivery, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, d := range deliveries {
		if w.held[d.row.id] != d || d.done {
			continue
		}
		delete(w.held, d.row.id)
		w.ending[d.row.id] = d
		d.end(ErrLost)
		n++
	}
	if n > 0 {
		w.doubts() // those that nobody takes over after all are given back, each when its handler has returned
		w.table.logger.Warn("jobs were lost to other workers", slog.Int("count", n), slog.String("reason", reason))
	}
}

// resync gives back jobs that are this worker's and that it does not know of, or does not work on any more. It waits until no
// takes are under way: what they take is not known of yet.
func (w *worker) resync(ctx context.Context) error {
	w.taking.Lock()
	defer w.taking.Unlock()
	rows, err := w.table.pool.Query(ctx, `SELECT id, epoch, sequence, coalesce(lock_key, '') FROM `+w.table.table("jobs")+`
		WHERE owner = $1 AND state = 'running'`, w.table.perValue, w.owner)
	if err != nil {
		return fmt.Errorf("look for jobs: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (o outcome, err error) {
		err = r.Scan(&o.id, &o.epoch, &o.sequence, &o.lock)
		return o, err
	})
	if err != nil {
		return fmt.Errorf("look for jobs: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range found {
		if w.held[o.id] == nil && w.ending[o.id] == nil {
			o.verdict = verdictBack
			w.outcomes = append(w.outcomes, o)
			signal(w.dirty)
		}
	}
	w.unsure = len(w.ending) > 0
	return nil
}

// release gives up the lease. Nobody looks for the jobs of an owner that has none, so it stays where there may be some.
func (w *worker) release(ctx context.Context) error {
	if !w.taking.TryLock() {
		return nil
	}
	defer w.taking.Unlock()
	w.mu.Lock()
	free := w.leased && !w.unsure && len(w.held) == 0 && len(w.outcomes)+w.storing == 0
	w.mu.Unlock()
	if !free {
		return nil
	}
	if _, err := w.table.pool.Exec(ctx, `DELETE FROM `+w.table.table("job_workers")+` WHERE owner = $1`, w.owner); err != nil {
		return fmt.Errorf("give up lease: %w", err)
	}
	w.mu.Lock()
	w.leased = false
	w.mu.Unlock()
	return nil
}

// rescue takes back the jobs of workers whose lease has run out, one worker at a time.
func (w *worker) rescue(ctx context.Context) error {
	for {
		var some bool
		err := w.table.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+w.table.table("job_workers")+`
			WHERE lease_until < clock_timestamp())`).Scan(&some)
		if err != nil {
			return fmt.Errorf("look for dead workers: %w", err)
		}
		if !some {
			return nil
		}
		owner, jobs, woken, err := w.table.rescueOne(ctx)
		if err != nil {
			return fmt.Errorf("rescue jobs: %w", err)
		}
		w.table.Wake(woken...)
		if owner == "" { // others are at it
			return nil
		}
		w.table.logger.Warn("a worker has died, its jobs go on elsewhere", slog.Int("count", jobs))
	}
}

func (t *Table) rescueOne(ctx context.Context) (owner string, jobs int, woken []string, err error) {
	err = t.change(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `DELETE FROM `+t.table("job_workers")+` WHERE owner = (
			SELECT owner FROM `+t.table("job_workers")+` WHERE lease_until < clock_timestamp() LIMIT 1 FOR UPDATE SKIP LOCKED)
			RETURNING owner`).Scan(&owner)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		// From here on the owner takes nothing before this is committed.
		outcomes, err := t.lostBy(ctx, tx, owner)
		if err != nil || len(outcomes) == 0 {
			return err
		}
		jobs = len(outcomes)
		_, woken, err = t.end(ctx, tx, outcomes)
		return err
	})
	return owner, jobs, woken, err
}

func (t *Table) lostBy(ctx context.Context, tx pgx.Tx, owner string) ([]outcome, error) {
	failure, err := json.Marshal(Failure{
		At: time.Now().UTC(), Class: "lost", Error: "its worker died", Version: t.config.Version,
	})
	if err != nil {
		return nil, err
	}
	text, fingerprint := string(failure), fingerprintOf("lost", "")
	rows, err := tx.Query(ctx, `SELECT id, epoch, sequence, coalesce(lock_key, '') FROM `+t.table("jobs")+`
		WHERE owner = $1 AND state = 'running'`, t.perValue, owner)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (o outcome, err error) {
		o.verdict, o.failure, o.fingerprint = verdictLost, &text, &fingerprint
		err = r.Scan(&o.id, &o.epoch, &o.sequence, &o.lock)
		return o, err
	})
}

// term is how long this process may take its lease to hold. Its clock is behind the database's view of it: the time runs
// from before each renewal was asked for. A process that was paused finds out here.
type term struct {
	lease time.Duration
	begun time.Time
	until atomic.Int64 // nanoseconds after begun
}

func newTerm(lease time.Duration) *term {
	t := &term{lease: lease, begun: time.Now()}
	t.extend(t.begun)
	return t
}

func (t *term) valid() bool { return t.left() > 0 }

func (t *term) left() time.Duration { return time.Duration(t.until.Load()) - time.Since(t.begun) }

// extend prolongs it by an answer to what was asked at a time. Answers may come in another order than they were asked for.
func (t *term) extend(asked time.Time) {
	until := int64(asked.Sub(t.begun) + t.lease)
	for {
		old := t.until.Load()
		if old >= until || t.until.CompareAndSwap(old, until) {
			return
		}
	}
}
