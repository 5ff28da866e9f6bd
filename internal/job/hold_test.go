package job

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"postbus/internal/servertest"
)

// TestLeaseNeverBecomesShorter: a take that waited for the lease's row comes with a time from before the wait. This process
// counts on the longer one that it was told of.
func TestLeaseNeverBecomesShorter(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	enqueue(t, table, "1")
	enqueue(t, table, "2")
	takeOne(t, table, "w")
	execute(t, table.pool, `update postbus.job_workers set lease_until = now() + interval '1 hour'`)
	takeOne(t, table, "w")
	if left := value[time.Duration](t, table.pool, `select lease_until - now() from postbus.job_workers`); left < 30*time.Minute {
		t.Errorf("the lease has become shorter: %s", left)
	}
}

// TestTakesLeaveTheLeaseAsItIs while it is fresh: no version of its row is left behind by each of them.
func TestTakesLeaveTheLeaseAsItIs(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Lease: time.Hour})
	enqueue(t, table, "1")
	enqueue(t, table, "2")
	enqueue(t, table, "3")
	version := func() (v string) {
		takeOne(t, table, "w")
		return value[string](t, table.pool, `select ctid::text from postbus.job_workers`)
	}
	before := version()
	if after := version(); after != before {
		t.Errorf("the row has moved from %s to %s", before, after)
	}
	execute(t, table.pool, `update postbus.job_workers set lease_until = now() + interval '30 minutes'`)
	version()
	if left := value[time.Duration](t, table.pool, `select lease_until - now() from postbus.job_workers`); left < 59*time.Minute {
		t.Errorf("a lease that is half over was not renewed: %s", left)
	}
}

// TestTakeThatLeavesTheLeaseCountsOnNoMore than there is of it.
func TestTakeThatLeavesTheLeaseCountsOnNoMore(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Lease: time.Hour}) // no heartbeat comes
	w := table.join(DefaultQueue)
	defer table.leave(t.Context(), w, DefaultQueue)
	take := func() {
		enqueue(t, table, "x")
		if taken, err := w.take(t.Context(), t.Context(), DefaultQueue, 1); err != nil || len(taken) != 1 {
			t.Fatalf("took %d jobs, %v", len(taken), err)
		}
	}
	take()
	<-time.After(100 * time.Millisecond) // the lease gets older
	take()
	there := value[time.Duration](t, table.pool, `select lease_until - clock_timestamp() from postbus.job_workers`)
	if counted := w.term.left(); counted > there {
		t.Errorf("it counts on %s of a lease that has %s left", counted, there)
	}
}

// TestContextEndsBeforeTheLease: when no heartbeat gets through, the handler's context ends before another worker may take
// the job, and not a heartbeat after that.
func TestContextEndsBeforeTheLease(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Lease: 2 * time.Second})
	ended := make(chan error, 1)
	o := work(t, table, 1, func(ctx context.Context, _ note) error {
		select {
		case <-ctx.Done():
			ended <- context.Cause(ctx)
		case <-time.After(patience):
			ended <- errors.New("it goes on")
		}
		return nil
	})
	enqueue(t, table, "x")
	o.await(t, 1)
	execute(t, table.pool, `alter table postbus.job_workers rename to away`)
	left := value[time.Duration](t, table.pool, `select lease_until - clock_timestamp() from postbus.away`)
	expiry := time.NewTimer(left + 150*time.Millisecond) // for the scheduler of a machine that is busy
	select {
	case err := <-ended:
		if !errors.Is(err, ErrLost) {
			t.Errorf("the context ended with %v", err)
		}
	case <-expiry.C:
		t.Error("the context outlives the lease")
		t.Logf("it ended with %v", <-ended)
	}
	execute(t, table.pool, `alter table postbus.away rename to job_workers`)
}

// TestLostJobDoesNotRunBesideItself: a worker that could not keep its lease, and whose jobs nobody has taken, runs a job
// again when the handler has returned, not beside it.
func TestLostJobDoesNotRunBesideItself(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Lease: time.Second})
	release := make(chan struct{})
	o := work(t, table, 2, func(ctx context.Context, _ note) error {
		if ctx.Err() == nil {
			select {
			case <-ctx.Done():
				<-release // it ignores that its context has ended
			case <-release:
			}
		}
		return nil
	})
	id := enqueue(t, table, "x")
	o.await(t, 1)
	table.mu.Lock()
	w := table.worker
	table.mu.Unlock()
	w.lose(w.heldNow(), "test")
	other := enqueue(t, table, "other") // the worker goes on, and has looked for what it may have lost
	o.await(t, 2)
	for range 3 {
		renewed := value[time.Time](t, table.pool, `select lease_until from postbus.job_workers`)
		eventually(t, "a heartbeat", func() bool {
			return value[time.Time](t, table.pool, `select lease_until from postbus.job_workers`).After(renewed)
		})
	}
	if n := len(o.texts()); n != 2 || state(t, table, id) != StateRunning {
		t.Errorf("%d handlers were called, the job is %s beside the handler that goes on", n, state(t, table, id))
	}
	close(release)
	awaitState(t, table, id, StateCompleted)
	awaitState(t, table, other, StateCompleted)
	if n := value[int](t, table.pool, `select attempt from postbus.jobs where id = $1`, id); n != 1 {
		t.Errorf("it counts as attempt %d", n)
	}
}

// TestJobsTakenAheadDoNotWaitForALongOne: after short jobs a worker takes some ahead. When one is long, they go back, and
// another process runs them.
func TestJobsTakenAheadDoNotWaitForALongOne(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	release := make(chan struct{})
	handle := func(_ context.Context, n note) error {
		if n.Text == "long" {
			<-release
		}
		return nil
	}
	o := work(t, table, 1, handle)
	var jobs []Job
	for range 50 {
		jobs = append(jobs, newJob(t, "short"))
	}
	if _, err := table.EnqueueAll(t.Context(), jobs...); err != nil {
		t.Fatal(err)
	}
	o.await(t, 50)
	jobs = []Job{newJob(t, "long")}
	for i := range 20 {
		jobs = append(jobs, newJob(t, fmt.Sprint(i)))
	}
	if _, err := table.EnqueueAll(t.Context(), jobs...); err != nil {
		t.Fatal(err)
	}
	o.await(t, 51)
	idle := work(t, openTable(t, table.pool, Config{}), 1, handle)
	let := sync.OnceFunc(func() { close(release) })
	t.Cleanup(let)
	idle.await(t, 20)
	let()
	for _, j := range jobs {
		awaitState(t, table, j.ID(), StateCompleted)
	}
	if n := value[int](t, table.pool, `select max(attempt) from postbus.jobs`); n != 1 {
		t.Errorf("going back cost an attempt: %d", n)
	}
}

// TestDeadlockOfAnOperatorIsTriedAgain: Cancel holds the key and waits for the job, somebody holds the job and waits for the
// key. Postgres breaks Cancel off, which waited first, and it is carried out all the same.
func TestDeadlockOfAnOperatorIsTriedAgain(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	id := enqueue(t, table, "x", LockKey("k"))
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `set local deadlock_timeout = '1min'`); err != nil { // Cancel is to find the deadlock
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `update postbus.jobs set progress = '1' where id = $1`, id); err != nil {
		t.Fatal(err)
	}
	cancelled := make(chan error, 1)
	go func() {
		s, err := table.Cancel(t.Context(), id, "anna")
		if err == nil && s != StateCancelled {
			err = fmt.Errorf("it is %s", s)
		}
		cancelled <- err
	}()
	awaitBlocked(t, table)
	if _, err := tx.Exec(t.Context(), table.sql.lockKeys, []string{"k"}, []int64{0}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-cancelled; err != nil {
		t.Errorf("Cancel returned %v", err)
	}
	if status, err := table.Get(t.Context(), id); err != nil || len(status.Notes) != 1 {
		t.Errorf("it is known as %+v, %v", status, err)
	}
}

// TestOutcomesThatWaitAreBounded: handlers that are faster than their outcomes are stored wait for that, so that a stop can store what
// is left.
func TestOutcomesThatWaitAreBounded(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const count, concurrency = jobsPerEnqueueMax, 50
	table := newTable(t, Config{})
	release := make(chan struct{})
	o := work(t, table, concurrency, func(_ context.Context, n note) error {
		if n.Text == "first" {
			<-release
		}
		return nil
	})
	first := enqueue(t, table, "first")
	o.await(t, 1)
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `select from postbus.jobs where id = $1 for update`, first); err != nil {
		t.Fatal(err)
	}
	close(release) // from here on nothing is stored
	jobs := make([]Job, count)
	for i := range jobs {
		jobs[i] = newJob(t, "x")
	}
	if _, err := table.EnqueueAll(t.Context(), jobs...); err != nil {
		t.Fatal(err)
	}
	o.await(t, unstoredMax)
	const most = unstoredMax + concurrency + aheadMax
	for before := -1; before < len(o.texts()); <-time.After(300 * time.Millisecond) {
		before = len(o.texts())
	}
	if n := len(o.texts()); n > most {
		t.Errorf("%d jobs were run and none of them is stored, want %d at most", n, most)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of all", func() bool {
		return value[int](t, table.pool, `select count(*)::int from postbus.jobs where state = 'completed'`) == count+1
	})
}
