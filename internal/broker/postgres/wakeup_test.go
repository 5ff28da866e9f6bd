package postgres

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
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

// woken reports whether a look at the topic signals it.
func woken(t *testing.T, l *Log, s *sights) bool {
	t.Helper()
	signal := l.wakeup.next("user")
	if err := l.look(t.Context(), []string{"user"}, s); err != nil {
		t.Fatal(err)
	}
	select {
	case <-signal:
		return true
	default:
		return false
	}
}

// lookedAt is a topic that writers commit to in any order, with a lookout that reads nothing of it.
type lookedAt struct {
	log     *Log
	seen    sights
	random  *rand.Rand
	writers [4]struct {
		tx      pgx.Tx
		written bool
	}
	unseen         int // commits since the last look
	told, nothings int
}

func (s *lookedAt) step(t *testing.T) {
	t.Helper()
	w := &s.writers[s.random.IntN(len(s.writers))]
	var err error
	switch action := s.random.IntN(8); {
	case action < 2:
		s.look(t)
	case w.tx == nil:
		if w.tx, err = s.log.pool.Begin(t.Context()); err == nil && s.random.IntN(2) == 0 {
			_, err = w.tx.Exec(t.Context(), `select pg_current_xact_id()`) // long before it writes
		}
	case action < 5:
		batch := &pgx.Batch{}
		if action == 2 {
			batch.Queue(`savepoint s`)
		}
		err = errors.Join(s.log.Append(batch, "user", event("k", 1)), w.tx.SendBatch(t.Context(), batch).Close())
		w.written = true
	case action == 5:
		err = w.tx.Rollback(t.Context())
		w.tx, w.written = nil, false
	default:
		if err = w.tx.Commit(t.Context()); w.written {
			s.unseen++
		}
		w.tx, w.written = nil, false
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *lookedAt) look(t *testing.T) {
	t.Helper()
	switch told := woken(t, s.log, &s.seen); {
	case told:
		s.told++
	case s.unseen > 0:
		t.Fatalf("%d commits were not told of", s.unseen)
	default:
		s.nothings++
	}
	s.unseen = 0
}

// TestLooksMissNothing: whatever the order in which transactions get their ids, draw positions and end, a look after a commit
// tells of it. Nobody else is on the server, so that the newest transactions are not listed in any snapshot.
func TestLooksMissNothing(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const steps = 2000
	l, _ := ownLog(t, Config{}, "reader")
	execute(t, l, `alter system set synchronous_commit = off`) // nothing here depends on it
	withoutAutovacuum(t, l)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := lookedAt{log: l, random: rand.New(rand.NewPCG(seed, 0))}
	for range steps {
		s.step(t)
	}
	for _, w := range s.writers {
		if w.tx == nil {
			continue
		}
		if err := w.tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if s.told == 0 || s.nothings == 0 {
		t.Errorf("%d looks told of something, %d of nothing", s.told, s.nothings)
	}
}

// TestLooksAreCheap: transactions that have nothing to do with a topic wake nobody, whether they are open or end.
func TestLooksAreCheap(t *testing.T) {
	t.Parallel()
	l, _ := ownLog(t, Config{}, "reader")
	withoutAutovacuum(t, l)
	var s sights
	open := func() pgx.Tx {
		tx, err := l.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `select pg_current_xact_id()`); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	before := open()
	silently(t, l, "k", 1)
	for n, want := range []bool{true, true, false, false} { // when it is seen, and once more when it is known who was under way
		if got := woken(t, l, &s); got != want {
			t.Errorf("look %d: woken %t, want %t", n, got, want)
		}
	}
	for range 3 {
		foreign := open()
		if woken(t, l, &s) {
			t.Error("woken by a transaction that began later")
		}
		if err := foreign.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if woken(t, l, &s) {
			t.Error("woken by the end of a transaction that began later")
		}
	}
	if err := before.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !woken(t, l, &s) {
		t.Error("not woken by the end of a transaction that may have drawn a position")
	}
	if woken(t, l, &s) {
		t.Error("woken twice")
	}
}
