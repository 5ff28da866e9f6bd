package uow_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/uow"
)

func TestCommitStoresRowsAndEventsInRecordingOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	front, back := &door{}, &door{}
	err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
		w.Track(front, back, front)
		front.recorder.Record(opened{ID: "front"})
		back.recorder.Record(opened{ID: "back"}, rang{})
		front.recorder.Record(closed{ID: "front"})
		return insert(ctx, w, "front")
	})
	if err != nil {
		t.Fatal(err)
	}
	doors, events := f.stored(t)
	if want := []string{"door.opened", "door.opened", "door.closed", "bell.rang"}; !slices.Equal(events, want) {
		t.Errorf("events are %q, want %q", events, want)
	}
	if keys := f.column(t, `select coalesce((metadata::json)->>'partitionkey', '-') from postbus.topic_door order by position`); !slices.Equal(
		keys, []string{"front", "back", "-"}) {
		t.Errorf("keys are %q", keys)
	}
	if !slices.Equal(doors, []string{"front"}) {
		t.Errorf("rows are %q", doors)
	}
	if left := append(front.recorder.Take(), back.recorder.Take()...); len(left) != 0 {
		t.Errorf("the recorders still hold %v", left)
	}
}

// TestManyEventsKeepTheirOrder takes the statement for many rows; the one for few is taken above.
func TestManyEventsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var want []string
	err := f.Do(t.Context(), func(_ context.Context, w *uow.Work) error {
		d := &door{}
		w.Track(d)
		for i := range 1000 {
			want = append(want, fmt.Sprint(i))
			d.recorder.Record(opened{ID: "k", Note: fmt.Sprint(i)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	notes := f.column(t, `select convert_from(payload, 'UTF8')::json->>'note' from postbus.topic_door order by position`)
	if !slices.Equal(notes, want) {
		t.Errorf("%d events, or another order", len(notes))
	}
}

func TestFailureRollsBackAndKeepsTheEventsRecorded(t *testing.T) {
	t.Parallel()
	refusal := errors.New("no")
	ended := errors.New("caller gave up")
	cases := map[string]struct {
		end  func(ctx context.Context, cancel context.CancelCauseFunc, w *uow.Work) error
		want error
	}{
		"error":             {func(context.Context, context.CancelCauseFunc, *uow.Work) error { return refusal }, refusal},
		"cancelled context": {func(_ context.Context, cancel context.CancelCauseFunc, _ *uow.Work) error { cancel(ended); return nil }, ended},
		"failed statement ignored": {func(ctx context.Context, _ context.CancelCauseFunc, w *uow.Work) error {
			_, _ = w.DB().Exec(ctx, `select 1/0`)
			return nil
		}, uow.ErrAborted},
		"rollback by hand": {func(ctx context.Context, _ context.CancelCauseFunc, w *uow.Work) error {
			_, err := w.DB().Exec(ctx, `rollback`)
			return err
		}, uow.ErrEnded},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			d := &door{}
			d.recorder.Record(opened{ID: "x"})
			err := f.Do(ctx, func(ctx context.Context, w *uow.Work) error {
				w.Track(d)
				if err := insert(ctx, w, "x"); err != nil {
					return err
				}
				return c.end(ctx, cancel, w)
			})
			if !errors.Is(err, c.want) || errors.Is(err, uow.ErrOutcomeUnknown) {
				t.Errorf("Do returned %v, want %v", err, c.want)
			}
			if doors, events := f.stored(t); len(doors)+len(events) != 0 {
				t.Errorf("stored %q and %q", doors, events)
			}
			if left := d.recorder.Take(); len(left) != 1 {
				t.Errorf("the recorder holds %v", left)
			}
		})
	}
}

func TestPanicAndGoexitRollBack(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(){"panic": func() { panic("at the door") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			var recovered any
			var caller sync.WaitGroup
			caller.Go(func() {
				defer func() { recovered = recover() }()
				_ = f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
					if err := insert(ctx, w, "x"); err != nil {
						t.Error(err)
					}
					leave()
					return nil
				})
			})
			caller.Wait()
			if name == "panic" && recovered != "at the door" {
				t.Errorf("the panic arrived as %v", recovered)
			}
			if doors, _ := f.stored(t); len(doors) != 0 {
				t.Errorf("stored %q", doors)
			}
		})
	}
}

func TestNestedUseIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	err := f.Do(t.Context(), func(ctx context.Context, _ *uow.Work) error {
		return f.Do(ctx, func(context.Context, *uow.Work) error { return nil })
	})
	if !errors.Is(err, uow.ErrNested) {
		t.Errorf("Do in Do returned %v", err)
	}
}

func TestWorkIsOverAfterDo(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var kept *uow.Work
	if err := f.Do(t.Context(), func(_ context.Context, w *uow.Work) error { kept = w; return nil }); err != nil {
		t.Fatal(err)
	}
	_, execErr := kept.DB().Exec(t.Context(), `select 1`)
	_, queryErr := kept.DB().Query(t.Context(), `select 1`) //nolint:gocritic,sqlclosecheck // there are no rows
	for _, err := range []error{execErr, queryErr, kept.DB().QueryRow(t.Context(), `select 1`).Scan(new(int))} {
		if !errors.Is(err, uow.ErrClosed) {
			t.Errorf("used after Do: %v", err)
		}
	}
}

// TestSerializationFailureIsTriedAgain: fn runs anew, and what the failed attempt wrote is gone.
func TestSerializationFailureIsTriedAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, code     string
		failures, runs int
		stored         bool
	}{
		{name: "serialization failure", code: "40001", failures: 2, runs: 3, stored: true},
		{name: "deadlock", code: "40P01", failures: 1, runs: 2, stored: true},
		{name: "at most five attempts", code: "40001", failures: 9, runs: 5},
		{name: "nothing else", code: "23505", failures: 1, runs: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			runs := 0
			err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
				d := &door{}
				w.Track(d)
				d.recorder.Record(opened{ID: "x"})
				if err := insert(ctx, w, "x"); err != nil {
					return err
				}
				if runs++; runs <= c.failures {
					_, err := w.DB().Exec(ctx, `do $$ begin raise exception using errcode = '`+c.code+`'; end $$`)
					return fmt.Errorf("wrapped: %w", err)
				}
				return nil
			})
			doors, events := f.stored(t)
			if runs != c.runs || (err == nil) != c.stored || (len(doors) == 1) != c.stored || (len(events) == 1) != c.stored {
				t.Errorf("%d runs, err %v, stored %q and %q", runs, err, doors, events)
			}
		})
	}
}

// TestDeadlockOfTwoIsResolved makes a real one: both take one row and then want the other's.
func TestDeadlockOfTwoIsResolved(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if _, err := f.pool.Exec(t.Context(), `insert into doors values ('a'), ('b')`); err != nil {
		t.Fatal(err)
	}
	var both, done sync.WaitGroup
	both.Add(2)
	for _, order := range [][2]string{{"a", "b"}, {"b", "a"}} {
		done.Go(func() {
			var first sync.Once
			err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
				for i, id := range order {
					if _, err := w.DB().Exec(ctx, `select from doors where id = $1 for update`, id); err != nil {
						return err
					}
					if i == 0 {
						first.Do(func() { both.Done(); both.Wait() })
					}
				}
				d := &door{}
				d.recorder.Record(opened{ID: order[0]})
				w.Track(d)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	if _, events := f.stored(t); len(events) != 2 {
		t.Errorf("events are %q", events)
	}
}

func TestLimitsAreCheckedBeforeTheCommit(t *testing.T) {
	t.Parallel()
	many := make([]domain.Event, 1001)
	for i := range many {
		many[i] = rang{}
	}
	cases := map[string]struct {
		events      []domain.Event
		correlation string
	}{
		"eventsPerCommitMax": {events: many},
		"payloadBytesMax":    {events: []domain.Event{opened{Note: strings.Repeat("x", 256<<10)}}},
		"metadataBytesMax":   {events: []domain.Event{rang{}}, correlation: strings.Repeat("x", 8<<10)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			ctx := domain.WithCause(t.Context(), domain.Cause{Correlation: c.correlation})
			err := f.Do(ctx, func(ctx context.Context, w *uow.Work) error {
				d := &door{}
				w.Track(d)
				d.recorder.Record(c.events...)
				return insert(ctx, w, "x")
			})
			var limit *bus.LimitError
			if !errors.As(err, &limit) || limit.Limit != name || limit.Got <= limit.Max {
				t.Errorf("Do returned %v", err)
			}
			if doors, events := f.stored(t); len(doors)+len(events) != 0 {
				t.Errorf("stored %q and %q", doors, events)
			}
		})
	}
}

// TestHandlersRunAfterTheCommit: they see what was committed, may begin a unit of work of their own, and their failure
// leaves the commit as it is.
func TestHandlersRunAfterTheCommit(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if err := bus.Register(f.bus, "follow-up", func(ctx context.Context, e opened) error {
		if doors, events := f.stored(t); len(doors) != 1 || len(events) != 1 {
			t.Errorf("the handler sees %q and %q", doors, events)
		}
		return f.Do(ctx, func(ctx context.Context, w *uow.Work) error { return insert(ctx, w, "after "+e.ID) })
	}); err != nil {
		t.Fatal(err)
	}
	refusal := errors.New("the bell is broken")
	if err := bus.Register(f.bus, "ring", func(context.Context, opened) error { return refusal }); err != nil {
		t.Fatal(err)
	}
	err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
		d := &door{}
		d.recorder.Record(opened{ID: "x"})
		w.Track(d)
		return insert(ctx, w, "x")
	})
	var dispatch *uow.DispatchError
	var handler *bus.HandlerError
	if !errors.As(err, &dispatch) || !errors.As(err, &handler) || handler.Handler != "ring" || !errors.Is(err, refusal) {
		t.Errorf("Do returned %v", err)
	}
	if !strings.Contains(err.Error(), "committed") {
		t.Errorf("the error does not say that the commit stands: %v", err)
	}
	if doors, _ := f.stored(t); !slices.Equal(doors, []string{"after x", "x"}) {
		t.Errorf("rows are %q", doors)
	}
	if !strings.Contains(f.logs.String(), "handler=ring") {
		t.Errorf("the failure was not logged: %s", f.logs)
	}
}

// TestConnectionLostBeforeCommitIsNotUnknown: nothing of COMMIT was sent, so the answer is known.
func TestConnectionLostBeforeCommitIsNotUnknown(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
		if err := insert(ctx, w, "x"); err != nil {
			return err
		}
		_, err := w.DB().Exec(ctx, `select pg_terminate_backend(pg_backend_pid())`)
		return err
	})
	if err == nil || errors.Is(err, uow.ErrOutcomeUnknown) {
		t.Errorf("Do returned %v", err)
	}
	if doors, _ := f.stored(t); len(doors) != 0 {
		t.Errorf("stored %q", doors)
	}
}

// TestRefusedEventIsNotUnknown: the log refuses the events, which travel with COMMIT; nothing is stored.
func TestRefusedEventIsNotUnknown(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if _, err := f.pool.Exec(t.Context(), `alter table postbus.topic_door add constraint full_disk check (metadata = '')`); err != nil {
		t.Fatal(err)
	}
	err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
		d := &door{}
		d.recorder.Record(opened{ID: "x"})
		w.Track(d)
		return insert(ctx, w, "x")
	})
	if err == nil || errors.Is(err, uow.ErrOutcomeUnknown) {
		t.Errorf("Do returned %v", err)
	}
	if doors, events := f.stored(t); len(doors)+len(events) != 0 {
		t.Errorf("stored %q and %q", doors, events)
	}
}

// TestUnknownEventTypeIsRefused: what no consumer could read is not published.
func TestUnknownEventTypeIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	err := f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
		d := &door{}
		d.recorder.Record(painted{})
		w.Track(d)
		return insert(ctx, w, "x")
	})
	if !errors.Is(err, bus.ErrUnknownType) {
		t.Errorf("Do returned %v", err)
	}
	if doors, _ := f.stored(t); len(doors) != 0 {
		t.Errorf("stored %q", doors)
	}
}

type painted struct{}

func (painted) EventType() string { return "door.painted" }

// TestConnectionLostBeforeTheEventsIsNotUnknown: the session ends while it waits to write the events. COMMIT travels with
// them, but Postgres answered for a statement before it.
func TestConnectionLostBeforeTheEventsIsNotUnknown(t *testing.T) {
	t.Parallel()
	f := newFixture(t) // whose statements are not prepared yet
	blocker, err := f.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Rollback(context.WithoutCancel(t.Context()))
	if _, err := blocker.Exec(t.Context(), `lock table postbus.topic_door in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- f.Do(t.Context(), func(ctx context.Context, w *uow.Work) error {
			d := &door{}
			d.recorder.Record(opened{ID: "x"})
			w.Track(d)
			return insert(ctx, w, "x")
		})
	}()
	for killed := false; !killed && t.Context().Err() == nil; {
		if err := blocker.QueryRow(t.Context(), `select coalesce(bool_or(pg_terminate_backend(pid)), false)
			from pg_locks where not granted and database = (select oid from pg_database where datname = current_database())`).
			Scan(&killed); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; err == nil || errors.Is(err, uow.ErrOutcomeUnknown) {
		t.Errorf("Do returned %v", err)
	}
}
