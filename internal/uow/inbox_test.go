package uow_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/pgtest"
	"postbus/internal/uow"

	"postbus/internal/broker/postgres"
)

// delivered is the context of a handler that an event is delivered to, once more with each call.
func delivered(ctx context.Context, consumer string, event uuid.UUID) context.Context {
	return domain.WithCause(ctx, domain.Cause{EventID: event, Consumer: consumer})
}

// effect is a handler's unit of work: a row, and an event.
func (f fixture) effect(ctx context.Context, id string, ran *int) error {
	return f.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		*ran++
		d := &door{}
		w.Track(d)
		d.recorder.Record(opened{ID: id})
		return insert(ctx, w, id)
	})
}

func TestEventTakesEffectOnceInEachConsumer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	event, other := uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())
	ran := 0
	for _, c := range []struct {
		consumer string
		event    uuid.UUID
		row      string
	}{
		{"a", event, "a1"}, {"a", event, "again"}, {"b", event, "b1"}, {"a", other, "a2"}, {"b", event, "again"},
	} {
		if err := f.effect(delivered(t.Context(), c.consumer, c.event), c.row, &ran); err != nil {
			t.Errorf("%s: %v", c.row, err)
		}
	}
	doors, events := f.stored(t)
	if !slices.Equal(doors, []string{"a1", "a2", "b1"}) || len(events) != 3 || ran != 3 {
		t.Errorf("%d runs left %q and %q", ran, doors, events)
	}
}

// TestFailedAttemptLeavesNothing: neither its rows, nor its events, nor a note that would keep the next attempt from them.
func TestFailedAttemptLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := delivered(t.Context(), "a", uuid.Must(uuid.NewV7()))
	refusal := errors.New("no")
	err := f.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		return errors.Join(insert(ctx, w, "half"), refusal)
	})
	if !errors.Is(err, refusal) {
		t.Errorf("Do returned %v", err)
	}
	ran := 0
	if err := f.effect(ctx, "whole", &ran); err != nil {
		t.Error(err)
	}
	if doors, _ := f.stored(t); !slices.Equal(doors, []string{"whole"}) {
		t.Errorf("stored %q", doors)
	}
}

// TestEventsOfAnEffectKnowTheirCause: the event that was handled, and what that one's own correlation was.
func TestEventsOfAnEffectKnowTheirCause(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	event := uuid.Must(uuid.NewV7())
	ctx := domain.WithCause(t.Context(), domain.Cause{EventID: event, Consumer: "a", Correlation: "visit"})
	if err := f.effect(ctx, "front", new(int)); err != nil {
		t.Fatal(err)
	}
	causes := f.column(t, `select metadata::json->>'causationid' || ' ' || (metadata::json->>'correlationid') from postbus.topic_door`)
	if want := []string{event.String() + " visit"}; !slices.Equal(causes, want) {
		t.Errorf("the causes are %q, want %q", causes, want)
	}
}

// TestSecondEffectIsRefused: one inbox row cannot tell which of two transactions it stands for.
func TestSecondEffectIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	event := uuid.Must(uuid.NewV7())
	for range 2 { // a repeat has no second one either
		ctx := delivered(t.Context(), "a", event)
		ran := 0
		if err := f.effect(ctx, "first", &ran); err != nil {
			t.Error(err)
		}
		if err := f.effect(ctx, "second", &ran); !errors.Is(err, uow.ErrSecondEffect) {
			t.Errorf("the second Do returned %v", err)
		}
	}
	if doors, _ := f.stored(t); !slices.Equal(doors, []string{"first"}) {
		t.Errorf("stored %q", doors)
	}
}

// TestSimultaneousDeliveriesTakeEffectOnce: the second waits for the first, and runs only if that one rolls back.
func TestSimultaneousDeliveriesTakeEffectOnce(t *testing.T) {
	t.Parallel()
	for name, commits := range map[string]bool{"the first commits": true, "the first rolls back": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			event := uuid.Must(uuid.NewV7())
			inside, goOn, first, second := make(chan struct{}), make(chan struct{}), make(chan error, 1), make(chan error, 1)
			go func() {
				first <- f.Do(delivered(t.Context(), "a", event), func(ctx context.Context, w *uow.Work) error {
					close(inside)
					<-goOn
					if !commits {
						return errors.New("no")
					}
					return insert(ctx, w, "first")
				})
			}()
			<-inside
			ran := 0
			go func() { second <- f.effect(delivered(t.Context(), "a", event), "second", &ran) }()
			f.awaitLock(t)
			close(goOn)
			if err := <-first; (err == nil) != commits {
				t.Errorf("the first returned %v", err)
			}
			if err := <-second; err != nil {
				t.Errorf("the second returned %v", err)
			}
			want := []string{"second"}
			if commits {
				want = []string{"first"}
			}
			if doors, _ := f.stored(t); !slices.Equal(doors, want) {
				t.Errorf("stored %q", doors)
			}
		})
	}
}

// awaitLock returns when a session of the test's database waits for a lock.
func (f fixture) awaitLock(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(time.Millisecond) {
		if n := f.column(t, `select pid::text from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock'`); len(n) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for a lock")
		}
	}
}

// TestFailedDispatchIsNoFailedEffect: the commit stands, so the event that comes again has no effect.
func TestFailedDispatchIsNoFailedEffect(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if err := bus.Register(f.bus, "fails", func(context.Context, opened) error { return errors.New("no") }); err != nil {
		t.Fatal(err)
	}
	event := uuid.Must(uuid.NewV7())
	ran := 0
	var dispatch *uow.DispatchError
	if err := f.effect(delivered(t.Context(), "a", event), "x", &ran); !errors.As(err, &dispatch) {
		t.Errorf("Do returned %v", err)
	}
	if err := f.effect(delivered(t.Context(), "a", event), "again", &ran); err != nil {
		t.Errorf("the repeat returned %v", err)
	}
	if doors, _ := f.stored(t); !slices.Equal(doors, []string{"x"}) {
		t.Errorf("stored %q", doors)
	}
}

// TestAnswerToCommitIsLost: whether or not the commit stood, the effect is there once when the event has come again.
func TestAnswerToCommitIsLost(t *testing.T) {
	t.Parallel()
	base := pgtest.New(t, postgres.Migrations(postgres.DefaultSchema))
	watcher := newFixtureOn(t, base)
	p := newProxy(t, hostOf(t, base.Config().ConnString()))
	f := newFixtureOn(t, pgtest.Open(t, p.through(t, base.Config().ConnString())))
	unknown := 0
	rounds := rounds(t)
	for i := range rounds {
		event, row := uuid.Must(uuid.NewV7()), uuid.NewString()
		ran := 0
		err := f.Do(delivered(t.Context(), "a", event), func(ctx context.Context, w *uow.Work) error {
			d := &door{}
			w.Track(d)
			d.recorder.Record(opened{ID: row})
			defer func() {
				p.swallow.Store(true)
				time.AfterFunc(time.Duration(i%10)*time.Millisecond, p.cut) // before, while and after it is carried out
			}()
			return insert(ctx, w, row)
		})
		p.swallow.Store(false)
		if errors.Is(err, uow.ErrOutcomeUnknown) {
			unknown++
		}
		for try := 0; err != nil; try++ { // the consumer gets it again
			if try == 10 {
				t.Fatal(err)
			}
			err = f.effect(delivered(t.Context(), "a", event), row, &ran)
		}
	}
	doors, events := watcher.stored(t)
	if len(doors) != rounds || len(events) != rounds {
		t.Errorf("%d rounds left %d rows and %d events", rounds, len(doors), len(events))
	}
	if unknown < rounds/2 {
		t.Errorf("only %d of %d outcomes were unknown: nothing was tried", unknown, rounds)
	}
}
