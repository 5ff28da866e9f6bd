package postgres

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"postbus/internal/pgtest"
)

// TestReadsTakeTurns: no more at once than there are turns, one that lasts gives way, and its end afterwards frees nobody else's.
func TestReadsTakeTurns(t *testing.T) {
	t.Parallel()
	turns := newTurns(1)
	begin := func(ctx context.Context) func() {
		t.Helper()
		done, err := turns.begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	began := time.Now()
	lasting := begin(t.Context())
	second := begin(t.Context())
	if waited := time.Since(began); waited < turnLimit {
		t.Errorf("two at once after %s", waited)
	}
	lasting()
	lasting()
	if len(turns) != 1 {
		t.Errorf("%d turns are taken, want that of the second", len(turns))
	}
	second()
	third := begin(t.Context()) // at once: nothing waits for a limit here
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := turns.begin(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("begin after the end of its context: %v", err)
	}
	third()
	if len(turns) != 0 {
		t.Errorf("%d turns are taken after all have ended", len(turns))
	}
}

// TestReadWaitsForItsTurn, and goes on when there is one.
func TestReadWaitsForItsTurn(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "mailer")
	publish(t, l, event("k", 0))
	for range readsMax {
		l.reads <- struct{}{} // they last, and nothing ends them
	}
	in := listen(t.Context(), t, subscriber(t, l, "mailer"), nil)
	eventually(t, "the claim of the shares", func() bool {
		var n int
		err := l.pool.QueryRow(t.Context(), `select count(*) from postbus.consumer_shares where owner is not null`).Scan(&n)
		return err == nil && n == shareCount
	})
	<-time.After(2 * turnLimit) // nothing tells that a read does not come
	if got := in.all(); len(got) > 0 {
		t.Errorf("%v was read out of turn", got)
	}
	<-l.reads
	in.await(t, 1)
}

// TestLockedTopicsHoldUpNoOther: consumers of topics that somebody has locked wait in the database, as many as may read at once.
func TestLockedTopicsHoldUpNoOther(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "mailer")
	topics := []string{"user"}
	subscriptions := []Subscription{{Consumer: "mailer", Topic: "user"}}
	for i := range readsMax {
		topic := fmt.Sprintf("locked%d", i)
		topics, subscriptions = append(topics, topic), append(subscriptions, Subscription{Consumer: topic, Topic: topic})
	}
	if err := l.Provision(t.Context(), topics, subscriptions); err != nil {
		t.Fatal(err)
	}
	keeper := pgtest.Open(t, l.pool.Config().ConnString())
	tx, err := keeper.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	for _, topic := range topics[1:] {
		if _, err := tx.Exec(t.Context(), "LOCK TABLE "+l.topicTable(topic)+" IN ACCESS EXCLUSIVE MODE"); err != nil {
			t.Fatal(err)
		}
	}
	for _, topic := range topics[1:] {
		s := subscriber(t, l, topic)
		if _, err := s.Subscribe(t.Context(), topic); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
	}
	eventually(t, "readers that wait for the locks", func() bool {
		var n int
		err := keeper.QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock'`).Scan(&n)
		return err == nil && n == readsMax
	})
	in := listen(t.Context(), t, subscriber(t, l, "mailer"), nil)
	publish(t, l, event("k", 0))
	in.await(t, 1)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}
