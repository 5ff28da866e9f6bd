package job

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"postbus/internal/migrate"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// TestStaleCompletionIsRefused: what a worker says of a job that another has taken over meanwhile changes nothing.
func TestStaleCompletionIsRefused(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	id := enqueue(t, table, "x", LockKey("k"))
	enqueue(t, table, "behind", LockKey("k"))
	stale := takeOne(t, table, "paused")
	execute(t, table.pool, `update postbus.job_workers set lease_until = now() - interval '1 second'`)
	owner, jobs, _, err := table.rescueOne(t.Context())
	if owner != "paused" || jobs != 1 || err != nil {
		t.Fatalf("rescued %d jobs of %q, %v", jobs, owner, err)
	}
	says := func(r row) int {
		t.Helper()
		stored, _, err := table.end(t.Context(), table.pool, []outcome{completed(r)})
		if err != nil {
			t.Fatal(err)
		}
		return len(stored)
	}
	if says(stale) != 0 || state(t, table, id) != StateWaiting {
		t.Error("it was completed while it waited again")
	}
	fresh := takeOne(t, table, "other")
	if says(stale) != 0 || state(t, table, id) != StateRunning {
		t.Error("it was completed while another had it")
	}
	if fresh.id != id || fresh.attempt != 2 || says(fresh) != 1 || state(t, table, id) != StateCompleted {
		t.Errorf("its worker could not complete it: %+v", fresh)
	}
	if says(fresh) != 0 {
		t.Error("it was completed twice")
	}
	status, err := table.Get(t.Context(), id)
	if err != nil || status.Lost != 1 || len(status.Failures) != 1 || status.Failures[0].Class != "lost" || status.Failures[0].Attempt != 1 {
		t.Errorf("it is known as %+v, %v", status, err)
	}
}

// TestTakeBesideRescue: a worker that was taken for dead takes another job at that very moment. It waits, begins its lease
// anew, and keeps what it took.
func TestTakeBesideRescue(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	first, second := enqueue(t, table, "1"), enqueue(t, table, "2")
	if takeOne(t, table, "w").id != first {
		t.Fatal("took another job")
	}
	execute(t, table.pool, `update postbus.job_workers set lease_until = now() - interval '1 second'`)
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `delete from postbus.job_workers where owner = 'w'`); err != nil {
		t.Fatal(err)
	}
	took := make(chan row, 1)
	go func() { took <- takeOne(t, table, "w") }()
	awaitBlocked(t, table)
	outcomes, err := table.lostBy(t.Context(), tx, "w")
	if err != nil || len(outcomes) != 1 || outcomes[0].id != first {
		t.Fatalf("found lost %v, %v", outcomes, err)
	}
	if _, _, err := table.end(t.Context(), tx, outcomes); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := <-took; r.id != second {
		t.Errorf("took %v", r)
	}
	if n := value[int](t, table.pool, `select count(*) from postbus.jobs join postbus.job_workers using (owner)
		where state = 'running' and lease_until > now()`); n != 1 {
		t.Errorf("%d jobs run under a lease", n)
	}
}

// TestKilledWorkersJobsRunElsewhere starts a real process that takes jobs, and kills it.
func TestKilledWorkersJobsRunElsewhere(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t, Migrations(DefaultSchema))
	table := openTable(t, pgtest.Open(t, url), Config{})
	var ids []uuid.UUID
	for i := range 3 {
		ids = append(ids, enqueue(t, table, fmt.Sprint(i), LockKey(fmt.Sprint(i%2))))
	}
	child := startChild(t, url)
	child.await(t, "running 0", "running 1")
	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	o := work(t, table, 3, nil)
	o.await(t, 3)
	if took := time.Since(killed); took > 10*time.Second {
		t.Errorf("the jobs ran elsewhere after %s", took)
	}
	for _, id := range ids {
		awaitState(t, table, id, StateCompleted)
	}
}

// TestPausedWorkerLosesItsJobs stops a real process for longer than its lease. When it goes on, its handler's context has
// ended, and what it says counts no more.
func TestPausedWorkerLosesItsJobs(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t, Migrations(DefaultSchema))
	table := openTable(t, pgtest.Open(t, url), Config{Lease: time.Second})
	id := enqueue(t, table, "0")
	child := startChild(t, url)
	child.await(t, "running 0")
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	o := work(t, table, 1, func(context.Context, note) error { <-release; return nil })
	o.await(t, 1)
	if err := child.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	child.await(t, "ended 0: "+ErrLost.Error())
	if s := state(t, table, id); s != StateRunning {
		t.Errorf("the job is %s while its new worker runs it", s)
	}
	close(release)
	awaitState(t, table, id, StateCompleted)
	if n := value[int](t, table.pool, `select attempt from postbus.jobs where id = $1`, id); n != 2 {
		t.Errorf("%d attempts", n)
	}
}

// TestBusyPoolLosesNoJob: an application that uses all of its pool, for longer than a lease, keeps the jobs that it runs.
func TestBusyPoolLosesNoJob(t *testing.T) {
	t.Parallel()
	const lease = 2 * time.Second
	table := newTable(t, Config{Lease: lease})
	begun, release := make(chan struct{}, 1), make(chan struct{})
	o := work(t, table, 1, func(ctx context.Context, _ note) error {
		signal(begun)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	id := enqueue(t, table, "long")
	<-begun
	giveBack := pgtest.TakeAll(t, table.pool)
	<-time.After(2 * lease) // longer than a lease that is not renewed
	close(release)
	giveBack()
	awaitState(t, table, id, "completed")
	if texts := o.texts(); len(texts) != 1 {
		t.Errorf("the job was begun %d times", len(texts))
	}
}

// TestHandlerThatIgnoresItsTimeoutIsNamed soon after its time is over, by its kind; one that heeds it is not.
func TestHandlerThatIgnoresItsTimeoutIsNamed(t *testing.T) {
	t.Parallel()
	const named = `msg="the handler of a job ignores that its time is over" job_kind=test-note job_id=`
	for heeds, want := range map[bool]string{false: named, true: ""} {
		synctest.Test(t, func(t *testing.T) {
			var said bytes.Buffer
			w := NewWorkers()
			err := Handle(w, func(ctx context.Context, _ note) error {
				<-ctx.Done()
				if !heeds {
					<-time.After(10 * time.Second)
				}
				return nil
			}, Policy{Timeout: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			log := &Table{logger: slog.New(slog.NewTextHandler(&said, nil))}
			d := newDelivery(t.Context(), &worker{table: log}, row{kind: "test-note", args: []byte(`{}`)}, DefaultQueue)
			if err := w.Handler()(d.message()); err != nil {
				t.Error(err)
			}
			<-time.After(time.Hour)
			synctest.Wait()
			if got := said.String(); (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Errorf("with a handler that heeds its timeout (%t) the log says %q", heeds, got)
			}
		})
	}
}

const childVariable = "POSTBUS_JOB_TEST_CHILD"

// TestChild is the process that others stop and kill: it takes jobs, says so, and ends none before its context does.
func TestChild(t *testing.T) {
	url := os.Getenv(childVariable)
	if url == "" {
		t.Skip("runs as a child of other tests")
	}
	table := openTable(t, pgtest.Open(t, url), Config{Lease: time.Second})
	work(t, table, 4, func(ctx context.Context, n note) error {
		fmt.Fprintf(os.Stderr, "running %s\n", n.Text)
		<-ctx.Done()
		fmt.Fprintf(os.Stderr, "ended %s: %v\n", n.Text, context.Cause(ctx))
		return nil // it claims to have succeeded
	})
	<-t.Context().Done() // until it is killed
}

type child struct {
	*exec.Cmd
	lines chan string
}

func startChild(t *testing.T, url string) child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := child{exec.Command(self, "-test.run=^TestChild$", "-test.timeout=60s"), make(chan string, 100)}
	c.Env = append(os.Environ(), childVariable+"="+url)
	pipe, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.lines)
		for s := bufio.NewScanner(pipe); s.Scan(); {
			c.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		for range c.lines { // until it is gone
		}
		_ = c.Wait()
	})
	return c
}

// await returns when the child has said all of it.
func (c child) await(t *testing.T, lines ...string) {
	t.Helper()
	late := time.After(patience)
	for len(lines) > 0 {
		select {
		case line, ok := <-c.lines:
			if !ok {
				t.Fatalf("the child ended before it said %q", lines)
			}
			lines = slices.DeleteFunc(lines, func(want string) bool { return strings.TrimSpace(line) == want })
		case <-late:
			t.Fatalf("the child did not say %q", lines)
		}
	}
}

// TestJobThatKillsItsWorkersIsDead: a job over which worker after worker dies is not handed to another for ever.
func TestJobThatKillsItsWorkersIsDead(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{LostMax: 3})
	id := enqueue(t, table, "x", LockKey("k"))
	next := enqueue(t, table, "y", LockKey("k"))
	for range 3 {
		takeOne(t, table, "w")
		execute(t, table.pool, `update postbus.job_workers set lease_until = now() - interval '1 second'`)
		if _, _, _, err := table.rescueOne(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := state(t, table, id), state(t, table, next); a != StateDead || b != StateWaiting {
		t.Errorf("after three dead workers it is %s, the next of its key %s", a, b)
	}
}

// TestStopGivesBackAtOnce: what runs finishes; what was taken and not begun, and what overran, goes back uncounted.
func TestStopGivesBackAtOnce(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Drain: 2 * time.Second})
	finish := make(chan struct{})
	cause := make(chan error, 1)
	o := work(t, table, 2, func(ctx context.Context, n note) error {
		switch n.Text {
		case "finishes":
			<-finish
		case "overruns":
			<-ctx.Done()
			cause <- context.Cause(ctx)
			return ctx.Err()
		}
		return nil
	})
	// Short ones first, so that the worker takes ahead.
	var short []Job
	for range 50 {
		short = append(short, newJob(t, "short"))
	}
	if _, err := table.EnqueueAll(t.Context(), short...); err != nil {
		t.Fatal(err)
	}
	o.await(t, 50)
	jobs := []Job{newJob(t, "finishes"), newJob(t, "overruns")}
	for range 20 {
		jobs = append(jobs, newJob(t, "later"))
	}
	if _, err := table.EnqueueAll(t.Context(), jobs...); err != nil {
		t.Fatal(err)
	}
	o.await(t, 52)
	eventually(t, "jobs taken ahead", func() bool {
		return value[int](t, table.pool, `select count(*) from postbus.jobs where state = 'running'`) > 2
	})
	closed := make(chan struct{})
	go func() { defer close(closed); o.close(t) }()
	eventually(t, "the stop", func() bool {
		s := o.subscriber.(*Subscriber)
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.closed
	})
	eventually(t, "what was taken ahead, while others run", func() bool {
		return value[int](t, table.pool, `select count(*) from postbus.jobs where state = 'waiting' and args like '%later%'`) == 20
	})
	close(finish)
	if err := <-cause; !errors.Is(err, ErrStopped) {
		t.Errorf("what overran ended with %v", err)
	}
	<-closed
	if got := column[string](t, table.pool, `select state || ' ' || attempt || ' ' || jsonb_array_length(failures) || ' ' || count(*)
		from postbus.jobs where args not like '%short%' group by state, attempt, failures order by 1`); !slices.Equal(got,
		[]string{"completed 1 0 1", "waiting 0 0 21"}) {
		t.Errorf("after the stop: %q", got)
	}
	if n := value[int](t, table.pool, `select count(*) from postbus.job_workers`); n != 0 {
		t.Errorf("%d leases are left", n)
	}
}

// TestHandlerThatIgnoresTheStop: its job goes back all the same, and its late answer does not count.
func TestHandlerThatIgnoresTheStop(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Drain: 10 * time.Millisecond})
	release := make(chan struct{})
	o := work(t, table, 1, func(context.Context, note) error { <-release; return nil })
	id := enqueue(t, table, "x")
	o.await(t, 1)
	if err := o.subscriber.Close(); err != nil {
		t.Error(err)
	}
	if s := state(t, table, id); s != StateWaiting {
		t.Errorf("the job is %s after the stop", s)
	}
	close(release)
	<-o.ended
	if s := state(t, table, id); s != StateWaiting {
		t.Errorf("the job is %s after a late answer", s)
	}
}

// TestIdleWorkerRests: it holds no lease, writes nothing and takes no transaction ids.
func TestIdleWorkerRests(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := pgtest.Own(t) // nobody else takes ids there
	pool := pgtest.Open(t, server.URL())
	if err := migrate.Up(t.Context(), pool, Migrations(DefaultSchema)); err != nil {
		t.Fatal(err)
	}
	table := openTable(t, pool, Config{Lease: time.Second, Poll: 20 * time.Millisecond})
	o := work(t, table, 2, nil)
	enqueue(t, table, "x")
	enqueue(t, table, "later", In(time.Hour))
	o.await(t, 1)
	eventually(t, "no lease", func() bool { return value[int](t, pool, `select count(*) from postbus.job_workers`) == 0 })
	next := func() int64 {
		return value[int64](t, pool, `select pg_snapshot_xmax(pg_current_snapshot())::text::bigint`)
	}
	before := next()
	<-time.After(500 * time.Millisecond) // long enough for two dozen polls and two heartbeats
	if after := next(); after != before {
		t.Errorf("an idle worker took %d transaction ids", after-before)
	}
	enqueue(t, table, "y")
	o.await(t, 2)
}

// TestDatabaseRestart: what ran, what waits and what was done while Postgres was away goes on by itself.
func TestDatabaseRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t)
	pool := pgtest.Open(t, server.URL())
	if err := migrate.Up(t.Context(), pool, Migrations(DefaultSchema)); err != nil {
		t.Fatal(err)
	}
	table := openTable(t, pool, Config{Lease: time.Second})
	release := make(chan struct{})
	o := work(t, table, 1, func(_ context.Context, n note) error {
		if n.Text == "long" {
			<-release
		}
		return nil
	})
	long := enqueue(t, table, "long")
	after := enqueue(t, table, "after")
	o.await(t, 1)
	server.Stop()
	close(release) // it succeeds while there is nobody to tell
	server.Start()
	for _, id := range []uuid.UUID{long, after} {
		eventually(t, "an end", func() bool {
			status, err := table.Get(t.Context(), id)
			return err == nil && status.State == StateCompleted
		})
	}
}

// TestLostAnswerToATake: jobs that were taken without the worker learning of it do not stay running beside a live worker.
func TestLostAnswerToATake(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Lease: time.Second})
	o := work(t, table, 1, nil)
	enqueue(t, table, "first")
	o.await(t, 1)
	table.mu.Lock()
	w := table.worker
	table.mu.Unlock()
	id := newJob(t, "second").ID()
	execute(t, table.pool, `insert into postbus.jobs (id, kind, queue, priority, state, run_at, metadata, args, owner, epoch, attempt)
		values ('`+id.String()+`', 'test-note', 'default', 0, 'running', now(), '{}', '{"text":"second"}', '`+w.owner+`', 1, 1)`)
	w.mu.Lock()
	w.leased = true
	w.doubts()
	w.mu.Unlock()
	awaitState(t, table, id, StateCompleted)
	if n := value[int](t, table.pool, `select attempt from postbus.jobs where id = $1`, id); n != 1 {
		t.Errorf("it counts as attempt %d", n)
	}
}

// TestWakeUps: by the table in the process, by a notification from another, and by polling alone.
func TestWakeUps(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		here, there Config
		same        bool
	}{
		"in process":   {Config{Poll: time.Hour, NotifyOff: true}, Config{}, true},
		"notification": {Config{Poll: time.Hour}, Config{}, false},
		"polling":      {Config{Poll: 20 * time.Millisecond, NotifyOff: true}, Config{NotifyOff: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			here := newTable(t, c.here)
			there := here
			if !c.same {
				there = openTable(t, here.pool, c.there)
			}
			o := work(t, here, 1, nil)
			if name == "notification" {
				eventually(t, "a listener", func() bool {
					return value[int](t, here.pool, `select count(*) from pg_stat_activity
						where datname = current_database() and query like 'LISTEN%'`) == 1
				})
			}
			for i := range 3 {
				enqueue(t, there, fmt.Sprint(i))
				o.await(t, i+1)
			}
		})
	}
}
