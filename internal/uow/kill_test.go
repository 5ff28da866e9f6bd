package uow_test

import (
	"bytes"
	"context"
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
	"go.uber.org/goleak"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
	"postbus/internal/uow"
)

const (
	childURL  = "POSTBUS_TEST_UOW_URL"  // makes this program the consumer
	childStep = "POSTBUS_TEST_UOW_STEP" // at which it kills itself
	childDoor = "POSTBUS_TEST_UOW_DOOR" // over which event
)

func TestMain(m *testing.M) {
	if os.Getenv(childURL) != "" {
		run := consume
		switch {
		case os.Getenv(childJobsURL) != "":
			run = carryJobs
		case os.Getenv(childQueueURL) != "":
			run = runQueue
		}
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // this is its main function
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// rounds is how often the tests that break something do so: EFFECTS says, as CI does.
func rounds(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("EFFECTS"))
	switch {
	case err == nil:
		return n
	case servertest.InCI():
		return 4 * len(steps)
	default:
		return 2 * len(steps)
	}
}

// steps between receiving an event and acknowledging it.
var steps = []string{"received", "begun", "written", "committing", "committed", "acknowledged"}

// dieAt kills this process if the event and the step are the ones. The two last are not in the handler's hand; they come a
// moment after what is.
func dieAt(step, id string) {
	if os.Getenv(childDoor) != id || os.Getenv(childStep) != step {
		return
	}
	die := func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	switch step {
	case "committing", "acknowledged":
		time.AfterFunc(time.Duration(os.Getpid()%8)*250*time.Microsecond, die)
	default:
		die()
		select {}
	}
}

// consume runs the consumer until it is told to stop, or kills itself.
func consume() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pool, err := pgxpool.New(ctx, os.Getenv(childURL))
	if err != nil {
		return err
	}
	defer pool.Close()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	log, err := postgres.Open(pool, postgres.Config{}, logger)
	if err != nil {
		return err
	}
	catalogue, err := bus.NewCatalogue(bus.Define[opened](1), bus.Define[rang](1))
	if err != nil {
		return err
	}
	codec := bus.NewCodec(catalogue, "/test")
	work := uow.NewManager(pool, log, codec, bus.New(logger))
	porter, err := bus.NewConsumer("porter")
	if err != nil {
		return err
	}
	err = bus.Handle(porter, func(ctx context.Context, e opened) error {
		dieAt("received", e.ID)
		err := work.Do(ctx, func(ctx context.Context, w *uow.Work) error {
			dieAt("begun", e.ID)
			bell := &door{}
			w.Track(bell)
			bell.recorder.Record(rang{})
			_, err := w.DB().Exec(ctx, `insert into effects values ($1)`, e.ID)
			dieAt("written", e.ID)
			dieAt("committing", e.ID)
			return err
		})
		dieAt("committed", e.ID)
		dieAt("acknowledged", e.ID)
		return err
	})
	if err != nil {
		return err
	}
	router, err := bus.NewRouter(codec, log, logger, watermill.NopLogger{})
	if err != nil {
		return err
	}
	if err := router.Add(porter); err != nil {
		return err
	}
	return router.Run(ctx)
}

// TestKilledAnywhereTheEffectIsThereOnce kills the consumer's process between receiving and acknowledging, at each step in
// turn, and starts it again.
func TestKilledAnywhereTheEffectIsThereOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t, postgres.Migrations(postgres.DefaultSchema))
	f := newFixtureOn(t, pool)
	if _, err := pool.Exec(t.Context(), `create table effects (id text not null)`); err != nil {
		t.Fatal(err)
	}
	log := provision(t, pool)
	rounds := rounds(t)
	for i := range rounds {
		id := fmt.Sprint(i)
		ran := 0
		if err := f.effect(t.Context(), id, &ran); err != nil {
			t.Fatal(err)
		}
		output, err := startConsumer(t, pool, steps[i%len(steps)], id).CombinedOutput()
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("round %d, %s: %v\n%s", i, steps[i%len(steps)], err, output)
		}
		// Its lease has run out.
		// What it had sent may still be under way in the server, and takes its locks in this order.
		if _, err := pool.Exec(t.Context(), `with gone as (delete from postbus.consumer_members),
				locked as materialized (select from postbus.consumer_shares order by share for update)
			update postbus.consumer_shares set lease_until = null, owner = null where (select count(*) from locked) > 0`); err != nil {
			t.Fatal(err)
		}
	}
	last := startConsumer(t, pool, "", "")
	var output bytes.Buffer
	last.Stderr = &output
	if err := last.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; <-time.After(10 * time.Millisecond) {
		status, _, err := log.Status(t.Context(), porterOfDoors)
		if err != nil {
			t.Fatal(err)
		}
		if status.Waiting == 0 && len(status.Owners) > 0 || time.Now().After(deadline) {
			break
		}
	}
	distinct := f.column(t, `select count(distinct id)::text from effects`)[0]
	if err := last.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := last.Wait(); err != nil {
		t.Errorf("%v\n%s", err, output.String())
	}
	effects := f.column(t, `select count(*)::text from effects`)[0]
	bells := f.column(t, `select count(*)::text from postbus.topic_bell`)[0]
	if want := strconv.Itoa(rounds); distinct != want || effects != want || bells != want {
		t.Errorf("%d events had %s effects, %s of them different, and raised %s events", rounds, effects, distinct, bells)
	}
}

var porterOfDoors = postgres.Subscription{Consumer: "porter", Topic: "door"}

func provision(t *testing.T, pool *pgxpool.Pool) *postgres.Log {
	t.Helper()
	log, err := postgres.Open(pool, postgres.Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Provision(t.Context(), []string{"door"}, []postgres.Subscription{porterOfDoors}); err != nil {
		t.Fatal(err)
	}
	return log
}

func startConsumer(t *testing.T, pool *pgxpool.Pool, step, id string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childURL+"="+pool.Config().ConnString(), childStep+"="+step, childDoor+"="+id)
	return cmd
}
