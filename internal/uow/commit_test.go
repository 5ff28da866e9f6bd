package uow_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/pgtest"
	"postbus/internal/uow"
)

// execModes are the ways in which connections speak to Postgres, as default_query_exec_mode of the URL, with how many
// flights it takes to write events and to commit for the first time, and from then on.
var execModes = map[string]struct{ cold, warm int32 }{
	"cache_statement": {2, 1},
	"cache_describe":  {2, 1},
	"describe_exec":   {2, 2},
	"exec":            {1, 1},
	"simple_protocol": {1, 1},
}

// proxied is a fixture whose one connection goes through a proxy, and one that does not.
func proxied(t *testing.T, mode string) (f, watcher fixture, p *proxy) {
	t.Helper()
	address := pgtest.URL(t, postgres.Migrations(postgres.DefaultSchema))
	watcher = newFixtureOn(t, pgtest.Open(t, address))
	p = newProxy(t, hostOf(t, address))
	f = newFixtureOn(t, pgtest.Open(t, p.through(t, address)+"&pool_max_conns=1&default_query_exec_mode="+mode))
	return f, watcher, p
}

// open is a use case with n events. last is called at the end of fn.
func (f fixture) open(ctx context.Context, id string, n int, last func()) error {
	return f.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		d := &door{}
		w.Track(d)
		for range n {
			d.recorder.Record(opened{ID: id})
		}
		defer last()
		return insert(ctx, w, id)
	})
}

// TestLostAnswerToCommitIsUnknown: the commit stands, the answer never comes, and Do claims neither.
func TestLostAnswerToCommitIsUnknown(t *testing.T) {
	t.Parallel()
	for mode, flights := range execModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f, watcher, p := proxied(t, mode)
			dispatched := false
			if err := bus.Register(f.bus, "watch", func(_ context.Context, e opened) error { dispatched = e.ID == "lost"; return nil }); err != nil {
				t.Fatal(err)
			}
			if err := f.open(t.Context(), "first", 1, func() {}); err != nil { // has the statements prepared
				t.Fatal(err)
			}
			cut := make(chan struct{})
			go func() {
				defer close(cut)
				for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
					var n int
					if err := watcher.pool.QueryRow(context.Background(), `select count(*) from doors`).Scan(&n); err != nil || n == 2 {
						break
					}
				}
				p.cut()
			}()
			err := f.open(t.Context(), "lost", 1, func() { p.muffled.Store(p.flights.Load() + flights.warm) })
			<-cut
			if !errors.Is(err, uow.ErrOutcomeUnknown) {
				t.Errorf("Do returned %v", err)
			}
			if doors, events := watcher.stored(t); len(doors) != 2 || len(events) != 2 {
				t.Errorf("the commit that was to stand left %q and %q", doors, events)
			}
			if dispatched {
				t.Error("an event of unknown outcome was dispatched")
			}
		})
	}
}

// TestConnectionLostWhilePreparingIsNotUnknown: on a connection that has committed nothing yet the statements are parsed
// before any is sent to be carried out, COMMIT among them.
func TestConnectionLostWhilePreparingIsNotUnknown(t *testing.T) {
	t.Parallel()
	for mode, flights := range execModes {
		if flights.cold == 1 {
			continue
		}
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f, watcher, p := proxied(t, mode)
			for name, events := range map[string]int{"with an event": 1, "COMMIT alone": 0} {
				err := f.open(t.Context(), "x", events, func() { p.hangUp.Store(true) })
				if err == nil || errors.Is(err, uow.ErrOutcomeUnknown) {
					t.Errorf("%s: Do returned %v", name, err)
				}
				p.hangUp.Store(false) // of the next connection, which knows no statements either
			}
			if doors, events := watcher.stored(t); len(doors)+len(events) != 0 {
				t.Errorf("stored %q and %q", doors, events)
			}
		})
	}
}

// TestEventsAndCommitAreOneFlight on a connection that knows the statements.
func TestEventsAndCommitAreOneFlight(t *testing.T) {
	t.Parallel()
	for mode, flights := range execModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f, watcher, p := proxied(t, mode)
			for i, want := range []int32{flights.cold, flights.warm, flights.warm} {
				before := int32(0)
				if err := f.open(t.Context(), string(rune('a'+i)), 2, func() { before = p.flights.Load() }); err != nil {
					t.Fatal(err)
				}
				if got := p.flights.Load() - before; got != want {
					t.Errorf("commit %d took %d flights, want %d", i, got, want)
				}
			}
			if doors, events := watcher.stored(t); !slices.Equal(doors, []string{"a", "b", "c"}) || len(events) != 6 {
				t.Errorf("stored %q and %q", doors, events)
			}
		})
	}
}
