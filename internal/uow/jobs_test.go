package uow_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/job"
	"postbus/internal/pgtest"
	"postbus/internal/uow"

	"postbus/internal/broker/postgres"
)

// polish is a job of the tests' domain.
type polish struct {
	Door string `json:"door"`
}

func (polish) Kind() string { return "door-polish" }

// newJobFixture is a fixture whose manager can enqueue jobs.
func newJobFixture(t *testing.T) (fixture, *job.Table) {
	t.Helper()
	f := newFixtureOn(t, pgtest.New(t, postgres.Migrations(postgres.DefaultSchema), job.Migrations(job.DefaultSchema)))
	table, err := job.Open(f.pool, job.Config{NotifyOff: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f.Manager = f.WithJobs(table)
	return f, table
}

// TestJobRunsAfterTheCommit goes the whole way: enqueued in a use case, run by a worker, completed.
func TestJobRunsAfterTheCommit(t *testing.T) {
	t.Parallel()
	f, table := newJobFixture(t)
	subscriber, err := table.Subscriber(job.DefaultQueue, 1)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := subscriber.Subscribe(context.WithoutCancel(t.Context()), job.DefaultQueue)
	if err != nil {
		t.Fatal(err)
	}
	defer subscriber.Close()
	event := uuid.New()
	ctx := domain.WithCause(t.Context(), domain.Cause{EventID: event, Correlation: "visit"})
	err = f.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		w.Enqueue(polish{"front"})
		return insert(ctx, w, "front")
	})
	if err != nil {
		t.Fatal(err)
	}
	m := <-messages
	want := message.Metadata{"kind": "door-polish", "queue": "default", "attempt": "1", "correlationid": "visit", "causationid": event.String()}
	for k, v := range want {
		if m.Metadata.Get(k) != v {
			t.Errorf("metadata %s is %q, want %q", k, m.Metadata.Get(k), v)
		}
	}
	if string(m.Payload) != `{"door":"front"}` {
		t.Errorf("payload is %s", m.Payload)
	}
	m.Ack()
	if err := subscriber.Close(); err != nil {
		t.Fatal(err)
	}
	if states := f.column(t, `select state from postbus.jobs`); !slices.Equal(states, []string{"completed"}) {
		t.Errorf("states are %q", states)
	}
}

// TestJobsShareTheFateOfTheTransaction: what was rolled back left no job, what was committed left them all, in order.
func TestJobsShareTheFateOfTheTransaction(t *testing.T) {
	t.Parallel()
	f, _ := newJobFixture(t)
	refusal := errors.New("no")
	for _, outcome := range []error{refusal, nil} {
		err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
			w.Enqueue(polish{"a"}, job.LockKey("k"))
			w.Enqueue(polish{"b"})
			w.Enqueue(polish{"c"}, job.LockKey("k"))
			return errors.Join(insert(ctx, w, "x"), outcome)
		})
		if !errors.Is(err, outcome) {
			t.Fatalf("Do returned %v, want %v", err, outcome)
		}
		want := []string{`{"door":"a"} waiting`, `{"door":"b"} waiting`, `{"door":"c"} behind`}
		if outcome != nil {
			want = nil
		}
		if jobs := f.column(t, `select args || ' ' || state from postbus.jobs order by sequence`); !slices.Equal(jobs, want) {
			t.Errorf("after %v the jobs are %q, want %q", outcome, jobs, want)
		}
	}
	if keys := f.column(t, `select lock_key from postbus.job_keys`); !slices.Equal(keys, []string{"k"}) {
		t.Errorf("keys are %q", keys)
	}
}

// TestJobsOfARetriedAttemptAreThoseOfTheLast: fn runs again, and its jobs are not there twice.
func TestJobsOfARetriedAttemptAreThoseOfTheLast(t *testing.T) {
	t.Parallel()
	f, _ := newJobFixture(t)
	runs := 0
	err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
		w.Enqueue(polish{"front"})
		if runs++; runs < 3 {
			_, err := w.DB().Exec(ctx, `do $$ begin raise exception using errcode = '40001'; end $$`)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if jobs := f.column(t, `select id::text from postbus.jobs`); len(jobs) != 1 {
		t.Errorf("%d jobs after %d runs", len(jobs), runs)
	}
}

// TestEnqueueIsRefusedBeforeTheCommit: where jobs cannot go, or one cannot be, nothing is stored.
func TestEnqueueIsRefusedBeforeTheCommit(t *testing.T) {
	t.Parallel()
	f, _ := newJobFixture(t)
	without := newFixture(t)
	var jobs *job.LimitError
	var limit *bus.LimitError
	cases := map[string]struct {
		f    fixture
		do   func(w *uow.Work)
		want func(error) bool
	}{
		"no WithJobs": {without, func(w *uow.Work) { w.Enqueue(polish{}) }, func(err error) bool { return errors.Is(err, uow.ErrNoJobs) }},
		"a bad queue": {f, func(w *uow.Work) { w.Enqueue(polish{}, job.Queue("No")) }, func(err error) bool { return errors.Is(err, job.ErrShape) }},
		"too large": {f, func(w *uow.Work) { w.Enqueue(polish{strings.Repeat("x", 256<<10)}) }, func(err error) bool {
			return errors.As(err, &jobs) && jobs.Limit == "argsBytesMax"
		}},
		"too many": {f, func(w *uow.Work) {
			for range 1001 {
				w.Enqueue(polish{})
			}
		}, func(err error) bool {
			return errors.As(err, &limit) && limit.Limit == "jobsPerCommitMax" && limit.Got == 1001
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			err := c.f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
				c.do(w)
				return insert(ctx, w, "x")
			})
			if !c.want(err) {
				t.Errorf("Do returned %v", err)
			}
			if doors := c.f.column(t, `select id from doors`); len(doors) != 0 {
				t.Errorf("stored %q", doors)
			}
		})
	}
	if jobs := f.column(t, `select id::text from postbus.jobs`); len(jobs) != 0 {
		t.Errorf("%d jobs are stored", len(jobs))
	}
}

// TestJobsInARepeatableReadDatabase: two commits of one lock key, of which the second has its snapshot from before the first.
// Deciding by that snapshot would leave two heads, or a job behind nobody.
func TestJobsInARepeatableReadDatabase(t *testing.T) {
	t.Parallel()
	f, _ := newJobFixture(t)
	if _, err := f.pool.Exec(t.Context(), `do $$ begin execute format('alter database %I set default_transaction_isolation = ''repeatable read''',
		current_database()); end $$`); err != nil {
		t.Fatal(err)
	}
	f.pool.Reset()
	runs := 0
	err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
		if err := insert(ctx, w, "second"); err != nil {
			return err
		}
		if runs++; runs == 1 {
			err := f.Do(t.Context(), func(_ context.Context, w *uow.Work) error {
				w.Enqueue(polish{"first"}, job.LockKey("k"))
				return nil
			})
			if err != nil {
				return err
			}
		}
		w.Enqueue(polish{"second"}, job.LockKey("k"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`{"door":"first"} waiting`, `{"door":"second"} behind`}
	if jobs := f.column(t, `select args || ' ' || state from postbus.jobs order by sequence`); !slices.Equal(jobs, want) {
		t.Errorf("jobs are %q, want %q", jobs, want)
	}
}

// TestEventAtATime: a job at that time records it. It is not there before, and then once, although the job comes again.
func TestEventAtATime(t *testing.T) {
	t.Parallel()
	f, table := newJobFixture(t)
	workers := job.NewWorkers()
	err := job.Handle(workers, func(ctx context.Context, p polish) error {
		err := f.Do(ctx, func(_ context.Context, w *uow.Work) error {
			d := &door{}
			w.Track(d)
			d.recorder.Record(opened{ID: p.Door})
			return nil
		})
		if running, _ := job.Current(ctx); err == nil && running.Attempt == 1 {
			return job.RetryAfter(0, errors.New("after the commit"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Do(t.Context(), func(_ context.Context, w *uow.Work) error {
		w.Enqueue(polish{"later"}, job.At(time.Now().Add(time.Hour)))
		w.Enqueue(polish{"now"})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	defer f.runJobs(t, table, workers)()
	recordedWhen := func(completed int, want ...string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; <-time.After(5 * time.Millisecond) { // it has no signal
			if len(f.column(t, `select args from postbus.jobs where state = 'completed'`)) == completed {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the jobs have not run")
			}
		}
		got := f.column(t, `select convert_from(payload, 'UTF8')::json->>'id' from postbus.topic_door order by position`)
		if !slices.Equal(got, want) {
			t.Errorf("with %d jobs completed the events are of %q, want %q", completed, got, want)
		}
	}
	recordedWhen(1, "now")
	if _, err := f.pool.Exec(t.Context(), `update postbus.jobs set run_at = now() where state = 'waiting'`); err != nil {
		t.Fatal(err)
	}
	recordedWhen(2, "now", "later")
}

// runJobs runs the default queue's jobs under the bus's router, as a program does.
func (f fixture) runJobs(t *testing.T, table *job.Table, workers *job.Workers) (stop func()) {
	t.Helper()
	catalogue, err := bus.NewCatalogue(bus.Define[opened](1))
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	log, err := postgres.Open(f.pool, postgres.Config{NotifyOff: true}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	router, err := bus.NewRouter(bus.NewCodec(catalogue, "/test"), log, quiet, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	subscriber, err := table.Subscriber(job.DefaultQueue, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := router.AddQueue(job.DefaultQueue, subscriber, workers.Handler(), table, bus.Policy{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestJobTakesEffectOnce: a job whose unit of work has committed comes again, since its handler failed after it and then its
// worker was taken for dead while it went on. Its rows, events and the job that it enqueued are there once.
func TestJobTakesEffectOnce(t *testing.T) {
	t.Parallel()
	f, table := newJobFixture(t)
	workers := job.NewWorkers()
	runs := make(chan int, 10)
	hang := make(chan struct{})
	err := job.Handle(workers, func(ctx context.Context, p polish) error {
		running, _ := job.Current(ctx)
		err := f.Do(ctx, func(ctx context.Context, w *uow.Work) error {
			d := &door{}
			w.Track(d)
			d.recorder.Record(opened{ID: p.Door})
			w.Enqueue(polish{p.Door + "'s"}, job.In(time.Hour))
			return insert(ctx, w, p.Door)
		})
		if err != nil {
			return err
		}
		runs <- running.Attempt
		switch running.Attempt {
		case 1:
			return job.RetryAfter(0, errors.New("after the commit"))
		case 2:
			<-hang
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := f.runJobs(t, table, workers)
	defer stop()
	receipt, err := table.Enqueue(t.Context(), polish{"front"})
	if err != nil {
		t.Fatal(err)
	}
	for want := range 2 {
		if got := <-runs; got != want+1 {
			t.Errorf("attempt %d, want %d", got, want+1)
		}
	}
	// Another process takes its worker for dead.
	if _, err := f.pool.Exec(t.Context(), `update postbus.jobs set state = 'waiting', owner = null where id = $1`, receipt.ID); err != nil {
		t.Fatal(err)
	}
	table.Wake(job.DefaultQueue)
	if got := <-runs; got != 3 {
		t.Errorf("attempt %d, want 3", got)
	}
	close(hang)
	for state := ""; state != job.StateCompleted; <-time.After(5 * time.Millisecond) { // it has no signal
		status, err := table.Get(t.Context(), receipt.ID)
		if err != nil {
			t.Fatal(err)
		}
		state = status.State
	}
	doors, events := f.stored(t)
	if !slices.Equal(doors, []string{"front"}) || len(events) != 1 {
		t.Errorf("the effect is %q and %q", doors, events)
	}
	want := []string{"completed -", "waiting " + receipt.ID.String()}
	if jobs := f.column(t, `select state || ' ' || coalesce(metadata::json->>'causationid', '-') from postbus.jobs order by sequence`); !slices.Equal(jobs, want) {
		t.Errorf("jobs are %q, want %q", jobs, want)
	}
	if inbox := f.column(t, `select consumer from postbus.inbox`); !slices.Equal(inbox, []string{"job:default"}) {
		t.Errorf("the inbox has %q", inbox)
	}
}

// TestJobsErrorsDecideUnderTheRouter: what a job's handler returns decides, not the policy of the router around it; and the
// bus's own errors mean the same there.
func TestJobsErrorsDecideUnderTheRouter(t *testing.T) {
	t.Parallel()
	f, table := newJobFixture(t)
	workers := job.NewWorkers()
	err := job.Handle(workers, func(ctx context.Context, p polish) error {
		running, _ := job.Current(ctx)
		switch p.Door {
		case "permanent":
			return job.Permanent(errors.New("no"))
		case "bus":
			return fmt.Errorf("x: %w", bus.Permanent(errors.New("no")))
		case "snooze":
			return job.Snooze(time.Hour)
		case "policy":
			return errors.New("no")
		case "panic":
			panic("x")
		case "again":
			if running.Attempt < 5 {
				return job.RetryAfter(0, errors.New("no"))
			}
		}
		return nil
	}, job.Policy{Attempts: 2, WaitMin: time.Millisecond, WaitMax: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	stop := f.runJobs(t, table, workers)
	defer stop()
	for door, want := range map[string]string{
		"permanent": "dead 1 permanent", "bus": "dead 1 permanent", "snooze": "waiting 0 -", "policy": "dead 2 transient",
		"panic": "dead 2 panic", "again": "completed 5 retry-after",
	} {
		if _, err := table.Enqueue(t.Context(), polish{door}, job.Metadata("door", door)); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(time.Minute)
		for got := ""; got != want; <-time.After(5 * time.Millisecond) { // it has no signal
			got = f.column(t, `select state || ' ' || attempt || ' ' || coalesce(failures->-1->>'class', '-') from postbus.jobs
				where metadata::json->>'door' = '`+door+`'`)[0]
			if time.Now().After(deadline) {
				t.Fatalf("%s is %q, want %q", door, got, want)
			}
		}
	}
}
