package uow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/job"
	"postbus/internal/pgtest"
	"postbus/internal/uow"
)

// childQueueURL makes this program a worker of the queue in that database.
const childQueueURL = "POSTBUS_TEST_UOW_QUEUE_URL"

// runQueue runs jobs until it is told to stop, or kills itself over one.
func runQueue() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	application, err := pgxpool.New(ctx, os.Getenv(childURL))
	if err != nil {
		return err
	}
	defer application.Close()
	queue, err := pgxpool.New(ctx, os.Getenv(childQueueURL))
	if err != nil {
		return err
	}
	defer queue.Close()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	log, err := postgres.Open(application, postgres.Config{}, logger)
	if err != nil {
		return err
	}
	table, err := job.Open(queue, job.Config{}, logger)
	if err != nil {
		return err
	}
	catalogue, err := bus.NewCatalogue(bus.Define[rang](1))
	if err != nil {
		return err
	}
	codec := bus.NewCodec(catalogue, "/test")
	work := uow.NewManager(application, log, codec, bus.New(logger))
	workers := job.NewWorkers()
	err = job.Handle(workers, func(ctx context.Context, p polish) error {
		dieAt("received", p.Door)
		err := work.Do(ctx, func(ctx context.Context, w *uow.Work) error {
			dieAt("begun", p.Door)
			bell := &door{}
			w.Track(bell)
			bell.recorder.Record(rang{})
			_, err := w.DB().Exec(ctx, `insert into effects values ($1)`, p.Door)
			dieAt("written", p.Door)
			dieAt("committing", p.Door)
			return err
		})
		dieAt("committed", p.Door)
		dieAt("acknowledged", p.Door)
		return err
	})
	if err != nil {
		return err
	}
	router, err := bus.NewRouter(codec, log, logger, watermill.NopLogger{})
	if err != nil {
		return err
	}
	subscriber, err := table.Subscriber(job.DefaultQueue, 4)
	if err != nil {
		return err
	}
	if err := router.AddQueue(job.DefaultQueue, subscriber, workers.Handler(), table, bus.Policy{}); err != nil {
		return err
	}
	return router.Run(ctx)
}

// workerProcess is a process that runs jobs, and kills itself at the step of the job.
func (a apart) workerProcess(t *testing.T, step, door string) *exec.Cmd {
	t.Helper()
	cmd := startConsumer(t, a.pool, step, door)
	cmd.Env = append(cmd.Env, childQueueURL+"="+a.jobs.Config().ConnString())
	return cmd
}

// TestKilledAnywhereAJobsEffectIsThereOnce kills the process that runs a job between taking it and noting its end, at each
// step in turn, with jobs in the application's database and in one of their own.
func TestKilledAnywhereAJobsEffectIsThereOnce(t *testing.T) {
	t.Parallel()
	t.Run("in one database", func(t *testing.T) {
		t.Parallel()
		f, table := newJobFixture(t)
		apart{fixture: f, jobs: f.pool, table: table}.killWorkers(t)
	})
	t.Run("in two", func(t *testing.T) {
		t.Parallel()
		a := newApartOnShared(t)
		a.relay(t)
		a.killWorkers(t)
	})
}

func (a apart) killWorkers(t *testing.T) {
	t.Helper()
	if _, err := a.pool.Exec(t.Context(), `create table effects (door text not null)`); err != nil {
		t.Fatal(err)
	}
	rounds := rounds(t) / 2
	for i := range rounds {
		err := a.Do(t.Context(), func(_ context.Context, w *uow.Work) error {
			w.Enqueue(polish{strconv.Itoa(i)})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		output, err := a.workerProcess(t, steps[i%len(steps)], strconv.Itoa(i)).CombinedOutput()
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("round %d, %s: %v\n%s", i, steps[i%len(steps)], err, output)
		}
		// Its lease has run out.
		if _, err := a.jobs.Exec(t.Context(), `update postbus.job_workers set lease_until = now() - interval '1 second'`); err != nil {
			t.Fatal(err)
		}
	}
	last := a.workerProcess(t, "", "")
	var output bytes.Buffer
	last.Stderr = &output
	if err := last.Start(); err != nil {
		t.Fatal(err)
	}
	queue := fixture{pool: a.jobs}
	for deadline := time.Now().Add(time.Minute); ; <-time.After(10 * time.Millisecond) { // it has no signal
		if completed := queue.column(t, `select id::text from postbus.jobs where state = 'completed'`); len(completed) == rounds {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("the jobs are %q", queue.column(t, `select state || ' ' || failures::text from postbus.jobs`))
			break
		}
	}
	if err := last.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := last.Wait(); err != nil {
		t.Errorf("%v\n%s", err, output.String())
	}
	distinct := a.column(t, `select count(distinct door)::text from effects`)[0]
	effects := a.column(t, `select count(*)::text from effects`)[0]
	bells := a.column(t, `select count(*)::text from postbus.topic_bell`)[0]
	if want := strconv.Itoa(rounds); distinct != want || effects != want || bells != want {
		t.Errorf("%d jobs had %s effects, %s of them different, and raised %s events", rounds, effects, distinct, bells)
	}
}

// TestAnswerToAJobsCommitIsLost: whether or not the commit stood, the effect is there once when the job has run again.
func TestAnswerToAJobsCommitIsLost(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]bool{"in one database": true, "in two": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := pgtest.New(t, postgres.Migrations(postgres.DefaultSchema), job.Migrations(job.DefaultSchema))
			queue := base
			if !one {
				queue = pgtest.New(t, job.Migrations(job.DefaultSchema))
			}
			loseCommits(t, base, queue)
		})
	}
}

func loseCommits(t *testing.T, base, queue *pgxpool.Pool) {
	t.Helper()
	watcher := newFixtureOn(t, base)
	table, err := job.Open(queue, job.Config{NotifyOff: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := base.Exec(t.Context(), `create table effects (door text not null)`); err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, hostOf(t, base.Config().ConnString()))
	f := newFixtureOn(t, pgtest.Open(t, p.through(t, base.Config().ConnString())))
	workers := job.NewWorkers()
	unknown := 0
	done := make(chan struct{})
	err = job.Handle(workers, func(ctx context.Context, args polish) error {
		running, _ := job.Current(ctx)
		err := f.Do(ctx, func(ctx context.Context, w *uow.Work) error {
			if running.Attempt == 1 {
				n, err := strconv.Atoi(args.Door)
				if err != nil {
					return err
				}
				defer func() {
					p.swallow.Store(true)
					time.AfterFunc(time.Duration(n%10)*time.Millisecond, p.cut) // before, while and after it is carried out
				}()
			}
			_, err := w.DB().Exec(ctx, `insert into effects values ($1)`, args.Door)
			return err
		})
		p.swallow.Store(false)
		if errors.Is(err, uow.ErrOutcomeUnknown) {
			unknown++
		}
		if err == nil {
			done <- struct{}{}
		}
		return err
	}, job.Policy{WaitMin: time.Millisecond, WaitMax: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	stop := watcher.runJobs(t, table, workers)
	defer stop()
	rounds := rounds(t)
	for i := range rounds {
		if _, err := table.Enqueue(t.Context(), polish{strconv.Itoa(i)}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("job %d is not done", i)
		}
	}
	stop()
	effects := watcher.column(t, `select door from effects`)
	if got := fmt.Sprint(len(effects), " ", watcher.column(t, `select count(distinct door)::text from effects`)); got != fmt.Sprint(
		rounds, " [", rounds, "]") {
		t.Errorf("%d jobs had effects, all and different ones: %s", rounds, got)
	}
	if unknown < rounds/2 {
		t.Errorf("only %d of %d outcomes were unknown: nothing was tried", unknown, rounds)
	}
}
