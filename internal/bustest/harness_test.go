package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"postbus/internal/bus"
	"postbus/internal/bustest"
	"postbus/internal/job"
	"postbus/internal/migrate"
	"postbus/internal/uow"
)

// expecting is a test that is expected to end.
type expecting struct {
	testing.TB
	text string
}

func (e *expecting) Helper() {}

func (e *expecting) Fatalf(format string, args ...any) {
	e.text = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// ending returns what the harness says when it ends the test in fn.
func ending(t *testing.T, flavour bustest.Flavour, fn func(h *bustest.Harness)) string {
	t.Helper()
	e := &expecting{TB: t}
	h := bustest.New(e, flavour, catalogue(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn(h)
		e.text = "it has not ended"
	}()
	<-done
	return e.text
}

// TestEndingsSayWhatIsThere: a test that ends says what there is instead of what it wanted.
func TestEndingsSayWhatIsThere(t *testing.T) {
	t.Parallel()
	endings := map[string]func(h *bustest.Harness){
		"2 note.taken were published, want one; published were 1 box.moved, 2 note.taken": func(h *bustest.Harness) {
			h.Publish(Moved{Box: "a"}, Noted{}, Noted{})
			bustest.PublishedOne[Noted](h)
		},
		"0 box.moved were published, want one; published were none": func(h *bustest.Harness) { bustest.PublishedOne[Moved](h) },
		"0 jobs chore were enqueued, want one; enqueued were 1 errand": func(h *bustest.Harness) {
			h.Enqueue(Errand{})
			bustest.EnqueuedOne[Chore](h)
		},
		"there is no consumer and no kind of job \"notice\"; there are tally, chore": func(h *bustest.Harness) {
			h.Serve(app(t))
			h.FailNext("notice", 1, errLine)
		},
		"do a unit of work: encode events: event type is not in the catalogue: cat.fed": func(h *bustest.Harness) { h.Publish(fed{}) },
		"run: left are 1 jobs chore of queue other, which App does not serve": func(h *bustest.Harness) {
			h.Serve(app(t))
			h.Enqueue(Chore{}, job.Queue("other"))
			h.Run()
		},
	}
	for _, flavour := range []bustest.Flavour{bustest.Memory, bustest.Postgres} {
		for want, fn := range endings {
			if got := ending(t, flavour, fn); got != "bustest: "+want {
				t.Errorf("%s: got %q, want %q", flavour, got, want)
			}
		}
	}
}

type fed struct{}

func (fed) EventType() string { return "cat.fed" }

// app has a consumer and a kind of jobs that do nothing.
func app(t testing.TB) bustest.App {
	t.Helper()
	tally, err := bus.NewConsumer("tally")
	must(t, err, bus.Handle(tally, func(context.Context, Moved) error { return nil }))
	workers := job.NewWorkers()
	must(t, job.Handle(workers, func(context.Context, Chore) error { return nil }))
	return bustest.App{Consumers: []*bus.Consumer{tally}, Workers: workers}
}

// TestRunThatDoesNotComeToRest ends with what is left, by a limit that has a name.
func TestRunThatDoesNotComeToRest(t *testing.T) {
	t.Parallel()
	text := ending(t, bustest.Memory, func(h *bustest.Harness) {
		echo, err := bus.NewConsumer("echo")
		must(t, err, bus.Handle(echo, func(ctx context.Context, e Moved) error {
			return h.Work().Do(ctx, func(_ context.Context, w *uow.Work) error {
				publish(w, e)
				return nil
			})
		}))
		h.Serve(bustest.App{Consumers: []*bus.Consumer{echo}})
		h.Publish(Moved{Box: "a"})
		h.Run()
	})
	if want := "bustest: run: things do not come to rest within handlingsPerRunMax, 10000; left are 1 events of echo"; text != want {
		t.Errorf("got %q, want %q", text, want)
	}
}

// TestMemoryHasNoDatabase: a use of w.DB fails with a sentence that says what to do.
func TestMemoryHasNoDatabase(t *testing.T) {
	t.Parallel()
	h := bustest.New(t, bustest.Memory, catalogue(t))
	err := h.Work().Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
		publish(w, Moved{Box: "a"})
		_, err1 := w.DB().Exec(ctx, "SELECT 1")
		if !errors.Is(err1, uow.ErrNoDatabase) {
			t.Errorf("got %v", err1)
		}
		return w.DB().QueryRow(ctx, "SELECT 1").Scan()
	})
	if !errors.Is(err, uow.ErrNoDatabase) || !strings.Contains(err.Error(), "Postgres") {
		t.Errorf("got %v", err)
	}
	if events := bustest.Published[Moved](h); len(events) != 0 {
		t.Errorf("a unit of work that failed has published %v", events)
	}
}

// TestDatabaseGoesByTheClock: statements and column defaults of the application have the time of Advance.
func TestDatabaseGoesByTheClock(t *testing.T) {
	t.Parallel()
	tables := migrate.Set{Name: "cats", Schema: "public", FS: fstest.MapFS{"0001_cats.sql": {Data: []byte(`CREATE TABLE cats (
		name    text PRIMARY KEY,
		born    timestamptz NOT NULL DEFAULT now(),
		chipped timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP + interval '1 day',
		fed     timestamptz NOT NULL DEFAULT clock_timestamp())`)}}}
	h := bustest.New(t, bustest.Postgres, catalogue(t), tables)
	h.Advance(30 * 24 * time.Hour)
	var times [7]time.Time
	err := h.Pool().QueryRow(t.Context(), `INSERT INTO cats (name) VALUES ('Tom')
		RETURNING born, chipped - interval '1 day', fed, now(), clock_timestamp(), statement_timestamp(), transaction_timestamp()`).
		Scan(&times[0], &times[1], &times[2], &times[3], &times[4], &times[5], &times[6])
	must(t, err)
	for i, at := range times {
		if !at.Equal(h.Now()) {
			t.Errorf("time %d is %s, want %s", i, at, h.Now())
		}
	}
	if since := time.Until(h.Now()); since < 29*24*time.Hour {
		t.Errorf("the clock is %s ahead", since)
	}
}
