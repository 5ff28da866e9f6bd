package uow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/job"
	"postbus/internal/migrate"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
	"postbus/internal/uow"
)

var crossingOfJobs = postgres.Subscription{Consumer: job.CrossingConsumer, Topic: job.CrossingTopic, Start: postgres.Beginning()}

// apart is a fixture whose jobs are in another database, where "arrivals" tells which have ever come.
type apart struct {
	fixture
	log   *postgres.Log
	jobs  *pgxpool.Pool
	table *job.Table
}

func newApart(t *testing.T, application, jobs *pgxpool.Pool, config job.Config) apart {
	t.Helper()
	a := apart{fixture: newFixtureOn(t, application), jobs: jobs}
	var err error
	if a.log, err = postgres.Open(application, postgres.Config{}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if err := a.log.Provision(t.Context(), []string{job.CrossingTopic}, []postgres.Subscription{crossingOfJobs}); err != nil {
		t.Fatal(err)
	}
	if a.table, err = job.Open(jobs, config, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	a.Manager = a.WithJobs(job.NewCrossing(a.log, a.table))
	for _, statement := range []string{
		`create table arrivals (args text)`,
		`create function arrive() returns trigger language plpgsql as $$ begin insert into arrivals values (new.args); return new; end $$`,
		`create trigger arrive after insert on postbus.jobs for each row execute function arrive()`,
	} {
		if _, err := jobs.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func newApartOnShared(t *testing.T) apart {
	t.Helper()
	return newApart(t, pgtest.New(t, postgres.Migrations(postgres.DefaultSchema)), pgtest.New(t, job.Migrations(job.DefaultSchema)),
		job.Config{})
}

// relay carries jobs until stop is called.
func (a apart) relay(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- job.NewCrossing(a.log, a.table).Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// arrivals are the doors whose jobs have come, as often as they have.
func (a apart) arrivals(t *testing.T) []string {
	t.Helper()
	return fixture{pool: a.jobs}.column(t, `select args::json->>'door' from arrivals order by 1`)
}

func (a apart) awaitArrivals(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(a.arrivals(t)) < n; <-time.After(5 * time.Millisecond) { // it has no signal
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d jobs have come", len(a.arrivals(t)), n)
		}
	}
}

// TestJobsCrossToAnotherDatabase: those of a commit, once, and not those of a rollback; and what their handlers write through
// Do in the first database takes effect once.
func TestJobsCrossToAnotherDatabase(t *testing.T) {
	t.Parallel()
	a := newApartOnShared(t)
	refusal := errors.New("no")
	for _, outcome := range []error{refusal, nil} {
		err := a.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
			w.Enqueue(polish{fmt.Sprint(outcome, 1)}, job.LockKey("k"), job.Priority(1))
			w.Enqueue(polish{fmt.Sprint(outcome, 2)}, job.LockKey("k"))
			return errors.Join(insert(ctx, w, fmt.Sprint(outcome)), outcome)
		})
		if !errors.Is(err, outcome) {
			t.Fatal(err)
		}
	}
	if n := a.column(t, `select count(*)::text from pg_tables where tablename = 'jobs'`)[0]; n != "0" {
		t.Error("the application's database has a work table")
	}
	workers := job.NewWorkers()
	err := job.Handle(workers, func(ctx context.Context, p polish) error {
		if err := a.Do(ctx, func(ctx context.Context, w *uow.Work) error { return insert(ctx, w, p.Door) }); err != nil {
			return err
		}
		if running, _ := job.Current(ctx); running.Attempt == 1 {
			return job.RetryAfter(0, errors.New("after the commit"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	stopRelay, stop := a.relay(t), a.runJobs(t, a.table, workers)
	for deadline := time.Now().Add(time.Minute); ; <-time.After(5 * time.Millisecond) { // it has no signal
		if n := (fixture{pool: a.jobs}).column(t, `select id::text from postbus.jobs where state = 'completed'`); len(n) == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the jobs have not run")
		}
	}
	stop()
	stopRelay()
	nothing := fmt.Sprint(error(nil))
	if doors, _ := a.stored(t); !slices.Equal(doors, []string{nothing, nothing + " 1", nothing + " 2"}) {
		t.Errorf("stored %q", doors)
	}
	if came := a.arrivals(t); !slices.Equal(came, []string{nothing + " 1", nothing + " 2"}) {
		t.Errorf("came %q", came)
	}
}

// TestJobsOfALockKeyCrossInTheOrderOfTheirCommits: a transaction that puts a job of a key on its way waits for one that has.
func TestJobsOfALockKeyCrossInTheOrderOfTheirCommits(t *testing.T) {
	t.Parallel()
	a := newApartOnShared(t)
	crossing := job.NewCrossing(a.log, a.table)
	put := func(tx pgx.Tx, door string) error {
		j, err := job.New(polish{door}, job.LockKey("k"))
		if err != nil {
			return err
		}
		batch := &pgx.Batch{}
		if err := crossing.Append(batch, j); err != nil {
			return err
		}
		return tx.SendBatch(t.Context(), batch).Close()
	}
	tx, err := a.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := put(tx, "first"); err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		second <- pgx.BeginFunc(t.Context(), a.pool, func(tx pgx.Tx) error { return put(tx, "second") })
	}()
	a.awaitLock(t)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	a.relay(t)
	a.awaitArrivals(t, 2)
	if order := (fixture{pool: a.jobs}).column(t, `select args::json->>'door' || ' ' || state from postbus.jobs order by sequence`); !slices.Equal(
		order, []string{"first waiting", "second behind"}) {
		t.Errorf("crossed as %q", order)
	}
}

// TestOneThatCannotCrossIsParked: more jobs than the log delivers beyond an open message cross while their database refuses
// one. It is never dead, and crosses when its database takes it.
func TestOneThatCannotCrossIsParked(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	a := newApartOnShared(t)
	for _, statement := range []string{
		`create function refuse() returns trigger language plpgsql as $$ begin raise exception using errcode = '22P05'; end $$`,
		`create trigger refuse before insert on postbus.jobs for each row when (new.args like '%odd%') execute function refuse()`,
	} {
		if _, err := a.jobs.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	put := func(n int, door string) {
		t.Helper()
		if err := a.Do(t.Context(), func(_ context.Context, w *uow.Work) error {
			for i := range n {
				w.Enqueue(polish{fmt.Sprint(door, i)})
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	const commits, each = 3, 900
	put(1, "odd")
	for range commits {
		put(each, "even")
	}
	a.relay(t)
	a.awaitArrivals(t, commits*each)
	a.awaitPassed(t)
	if status, _, err := a.log.Status(t.Context(), crossingOfJobs); err != nil || status.Parked != 1 || status.Dead != 0 {
		t.Errorf("the log has %+v, %v", status, err)
	}
	if _, err := a.jobs.Exec(t.Context(), `drop trigger refuse on postbus.jobs`); err != nil {
		t.Fatal(err)
	}
	a.awaitArrivals(t, commits*each+1)
}

// TestCommitsGoOnWhileTheJobsDatabaseIsAway: a job is on its way when the commit stands, whether or not anybody is there.
func TestCommitsGoOnWhileTheJobsDatabaseIsAway(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	log, err := postgres.Open(f.pool, postgres.Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Provision(t.Context(), []string{job.CrossingTopic}, []postgres.Subscription{crossingOfJobs}); err != nil {
		t.Fatal(err)
	}
	table, err := job.Open(pgtest.Open(t, "postgres://127.0.0.1:1/nobody"), job.Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	away := apart{fixture: f, log: log, table: table}
	away.Manager = f.WithJobs(job.NewCrossing(log, table))
	stop := away.relay(t)
	for i := range 20 {
		err := away.Do(t.Context(), func(_ context.Context, w *uow.Work) error {
			w.Enqueue(polish{fmt.Sprint(i)})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if status, _, err := log.Status(t.Context(), crossingOfJobs); err != nil || status.Waiting != 20 || status.Parked+status.Dead != 0 {
		t.Errorf("the log has %+v, %v", status, err)
	}
}

// The relay as a process of its own, which is this program with a variable set.
const (
	childJobsURL = "POSTBUS_TEST_UOW_JOBS_URL" // makes it the relay
	childDies    = "POSTBUS_TEST_UOW_DIES"     // it kills itself when a job has crossed, and its place is not stored
)

// dyingLog kills this process when a message was acknowledged.
type dyingLog struct{ *postgres.Log }

func (l dyingLog) Subscriber(consumer string, concurrency int) (message.Subscriber, error) {
	s, err := l.Log.Subscriber(consumer, concurrency)
	return dyingSubscriber{s}, err
}

type dyingSubscriber struct{ message.Subscriber }

func (s dyingSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	messages, err := s.Subscriber.Subscribe(ctx, topic)
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		for m := range messages {
			go func() {
				<-m.Acked()
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}()
			out <- m
		}
	}()
	return out, err
}

// carryJobs is the main function of the relay's process.
func carryJobs() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	application, err := pgxpool.New(ctx, os.Getenv(childURL))
	if err != nil {
		return err
	}
	defer application.Close()
	jobs, err := pgxpool.New(ctx, os.Getenv(childJobsURL))
	if err != nil {
		return err
	}
	defer jobs.Close()
	opened, err := postgres.Open(application, postgres.Config{Lease: time.Second}, logger)
	if err != nil {
		return err
	}
	table, err := job.Open(jobs, job.Config{}, logger)
	if err != nil {
		return err
	}
	var log job.Log = opened
	if os.Getenv(childDies) != "" {
		log = dyingLog{opened}
	}
	return job.NewCrossing(log, table).Run(ctx)
}

func (a apart) relayProcess(t *testing.T, variables ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childURL+"="+a.pool.Config().ConnString(), childJobsURL+"="+a.jobs.Config().ConnString(),
		"GORACE=atexit_sleep_ms=10")
	cmd.Env = append(cmd.Env, variables...)
	cmd.Stderr = &bytes.Buffer{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

// TestRelayKilledBeforeItsPlaceIsStored: it carries the same jobs again, and they are there once, also those that have run and are
// gone.
func TestRelayKilledBeforeItsPlaceIsStored(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	a := newApart(t, pgtest.New(t, postgres.Migrations(postgres.DefaultSchema)), pgtest.New(t, job.Migrations(job.DefaultSchema)),
		job.Config{Keep: job.Keep{Completed: time.Nanosecond}})
	workers := job.NewWorkers()
	if err := job.Handle(workers, func(context.Context, polish) error { return nil }); err != nil {
		t.Fatal(err)
	}
	stop := a.runJobs(t, a.table, workers)
	defer stop()
	const rounds = 4
	for round := range rounds {
		err := a.Do(t.Context(), func(_ context.Context, w *uow.Work) error {
			w.Enqueue(polish{fmt.Sprint(round)})
			w.Enqueue(polish{fmt.Sprint(round, " of a key")}, job.LockKey("k"))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		relay := a.relayProcess(t, childDies+"=1")
		if err := relay.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%v\n%s", err, relay.Stderr)
		}
	}
	waiting, _, err := a.log.Status(t.Context(), crossingOfJobs)
	if err != nil {
		t.Fatal(err)
	}
	came := len(a.arrivals(t))
	a.relay(t)
	a.awaitPassed(t)
	if now := a.arrivals(t); len(now) != 2*rounds || len(slices.Compact(now)) != 2*rounds {
		t.Errorf("came %q", now)
	}
	if again := came + waiting.Waiting - 2*rounds; again < 1 { // have come, and are still to be passed
		t.Errorf("%d jobs came again: nothing was tried", again)
	}
}

// awaitPassed returns when the relay has passed all there is.
func (a apart) awaitPassed(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(10 * time.Millisecond) { // it has no signal
		status, known, err := a.log.Status(t.Context(), crossingOfJobs)
		if err == nil && known && status.Waiting == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, %v", status, err)
		}
	}
}

// crossingVariable is how long TestJobsCrossWhileDatabasesRestart takes, for example 2m.
const crossingVariable = "CROSSING"

// onServer opens a pool on a server of the test's own.
func onServer(t *testing.T, s *pgtest.OwnServer, set migrate.Set) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Open(t, s.URL())
	if err := migrate.Up(t.Context(), pool, set); err != nil {
		t.Fatal(err)
	}
	return pool
}

// TestJobsCrossWhileDatabasesRestart stops both servers at random, as failing machines would, and kills the relay, while use
// cases commit and roll back. A job comes, once, if and only if the row of its use case is there, and has its effect once.
func TestJobsCrossWhileDatabasesRestart(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	length := 5 * time.Second
	if value := os.Getenv(crossingVariable); value != "" {
		var err error
		if length, err = time.ParseDuration(value); err != nil {
			t.Fatalf("%s: %v", crossingVariable, err)
		}
	}
	servers := []*pgtest.OwnServer{pgtest.Own(t), pgtest.Own(t)}
	a := newApart(t, onServer(t, servers[0], postgres.Migrations(postgres.DefaultSchema)),
		onServer(t, servers[1], job.Migrations(job.DefaultSchema)), job.Config{LostMax: 1000, Keep: job.Keep{Completed: time.Nanosecond}})
	if _, err := a.pool.Exec(t.Context(), `create table effects (door text)`); err != nil {
		t.Fatal(err)
	}
	workers := job.NewWorkers()
	err := job.Handle(workers, func(ctx context.Context, p polish) error {
		return a.Do(ctx, func(ctx context.Context, w *uow.Work) error {
			_, err := w.DB().Exec(ctx, `insert into effects values ($1)`, p.Door)
			return err
		})
	}, job.Policy{Attempts: 10_000, WaitMin: 10 * time.Millisecond, WaitMax: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	stopJobs := a.runJobs(t, a.table, workers)
	defer stopJobs()
	var counts outcomes
	stopWriting := a.write(t, &counts)
	relay := a.breakDatabases(t, servers, time.Now().Add(length))
	stopWriting()
	a.pool.Reset() // of connections to servers that are gone
	a.jobs.Reset()
	var want []string
	for _, door := range a.column(t, `select id from doors`) {
		want = append(want, jobsOf(door)...)
	}
	a.awaitArrivals(t, len(want))
	a.awaitPassed(t)
	a.awaitEffects(t, len(want))
	_ = relay.Process.Signal(syscall.SIGTERM)
	if err := relay.Wait(); err != nil {
		t.Errorf("%v\n%s", err, relay.Stderr)
	}
	slices.Sort(want)
	came, effects := a.arrivals(t), a.column(t, `select door from effects`)
	slices.Sort(came)
	slices.Sort(effects)
	if !slices.Equal(came, want) || !slices.Equal(effects, want) {
		t.Errorf("%d jobs were committed, %d came, %d had effects", len(want), len(came), len(effects))
	}
	t.Logf("%d jobs, %d commits, %d rollbacks, %d unknown, %d failed", len(want), counts.committed.Load(), counts.refused.Load(),
		counts.unknown.Load(), counts.failed.Load())
	if counts.committed.Load() == 0 || counts.refused.Load() == 0 || counts.unknown.Load()+counts.failed.Load() == 0 {
		t.Error("nothing was tried")
	}
}

func (a apart) awaitEffects(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(10 * time.Millisecond) { // it has no signal
		got := len(a.column(t, `select door from effects`))
		if got >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d jobs have had their effect", got, n)
		}
	}
}

// outcomes counts how use cases ended.
type outcomes struct{ committed, refused, unknown, failed atomic.Int64 }

// jobsOf are the doors of the jobs of a use case: its row tells how many it has.
func jobsOf(row string) (doors []string) {
	for i := range int(row[len(row)-1] - '0') {
		doors = append(doors, fmt.Sprint(row, " ", i))
	}
	return doors
}

// write has use cases commit and roll back until stop is called.
func (a apart) write(t *testing.T, counts *outcomes) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var writers sync.WaitGroup
	refusal := errors.New("no")
	for range 4 {
		writers.Go(func() {
			for ctx.Err() == nil {
				row := fmt.Sprint(uuid.NewString(), "/", 1+rand.N(3))
				err := a.Do(ctx, func(ctx context.Context, w *uow.Work) error {
					for _, door := range jobsOf(row) {
						w.Enqueue(polish{door}, []job.Option{job.LockKey(fmt.Sprint(rand.N(4))), job.Priority(1)}[rand.N(2)])
					}
					if err := insert(ctx, w, row); err != nil || rand.N(4) > 0 {
						return err
					}
					return refusal
				})
				switch {
				case err == nil:
					counts.committed.Add(1)
				case errors.Is(err, refusal):
					counts.refused.Add(1)
				case errors.Is(err, uow.ErrOutcomeUnknown):
					counts.unknown.Add(1)
				default:
					counts.failed.Add(1)
				}
				<-time.After(30 * time.Millisecond) // a rate that two slow cores keep up with
			}
		})
	}
	return func() {
		cancel()
		writers.Wait()
	}
}

// breakDatabases stops and starts servers and the relay until the deadline, and returns the last relay.
func (a apart) breakDatabases(t *testing.T, servers []*pgtest.OwnServer, deadline time.Time) (relay *exec.Cmd) {
	t.Helper()
	relay = a.relayProcess(t)
	wait := func(most time.Duration) { <-time.After(rand.N(most)) } // chance is the point
	for round := 0; time.Now().Before(deadline) || round < 3; round++ {
		wait(600 * time.Millisecond)
		which := rand.N(len(servers) + 2)
		if round < 3 {
			which = round // each once
		}
		switch {
		case which < len(servers):
			servers[which].Stop()
			wait(300 * time.Millisecond)
			servers[which].Start()
		case which == len(servers):
			_ = relay.Process.Kill()
			_ = relay.Wait() // says that it was killed
			relay = a.relayProcess(t)
		default:
			for _, s := range servers {
				s.Stop()
			}
			for _, s := range servers {
				s.Start()
			}
		}
	}
	return relay
}
