package postgres

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/pgtest"
)

// silently commits a message and wakes nobody.
func silently(t *testing.T, l *Log, key string, n int) {
	t.Helper()
	batch := &pgx.Batch{}
	if err := l.Append(batch, "user", event(key, n)); err != nil {
		t.Fatal(err)
	}
	if err := l.pool.SendBatch(t.Context(), batch).Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNotificationWakesOtherProcesses: another log on the same database, as in another process, which all but
// never polls, nor rests: before a rest it would look.
func TestNotificationWakesOtherProcesses(t *testing.T) {
	t.Parallel()
	address := pgtest.URL(t, Migrations(DefaultSchema))
	here := openLog(t, pgtest.Open(t, address), Config{}, "reader")
	there := openLog(t, pgtest.Open(t, address), Config{Poll: time.Hour, Rest: time.Hour}, "reader")
	in := listen(t.Context(), t, subscriber(t, there, "reader"), nil)
	eventually(t, "somebody listens", func() bool {
		var n int
		err := here.pool.QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where datname = current_database() and query like 'LISTEN%'`).Scan(&n)
		return err == nil && n == 1
	})
	for n := range 20 {
		publish(t, here, event("k", n))
		in.await(t, n+1)
	}
}

// TestPollingIsEnough: nobody tells of the commits.
func TestPollingIsEnough(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{NotifyOff: true, Poll: 20 * time.Millisecond}, "reader")
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	for n := range 5 {
		silently(t, l, "k", n)
		in.await(t, n+1)
	}
}

// TestIdleConsumerRests: it gives up its leases, takes no transaction ids, and is there again for the next event, however
// it learns of it.
func TestIdleConsumerRests(t *testing.T) {
	t.Parallel()
	l, _ := ownLog(t, Config{Lease: time.Second, Rest: 200 * time.Millisecond, Poll: 50 * time.Millisecond}, "reader")
	withoutAutovacuum(t, l)
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	nextID := func() (id string) {
		if err := l.pool.QueryRow(t.Context(), `select pg_snapshot_xmax(pg_current_snapshot())::text`).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	resting := func() {
		t.Helper()
		eventually(t, "rest", func() bool {
			status, _, err := l.Status(t.Context(), Subscription{Consumer: "reader", Topic: "user"})
			var members int
			errMembers := l.pool.QueryRow(t.Context(), `select count(*) from postbus.consumer_members`).Scan(&members)
			return err == nil && errMembers == nil && len(status.Owners) == 0 && members == 0
		})
	}
	publish(t, l, event("k", 0))
	in.await(t, 1)
	for n, wake := range []func(){
		func() { publish(t, l, event("k", 1)) },
		func() { silently(t, l, "k", 2) },
		func() { publish(t, l, event("k", 3)) },
	} {
		// What was under way when it came to rest, such as a listener that is just there, may wake it once more.
		eventually(t, "ten polls without a transaction id", func() bool {
			resting()
			before := nextID()
			<-time.After(500 * time.Millisecond)
			return nextID() == before
		})
		wake()
		in.await(t, n+2)
	}
}
