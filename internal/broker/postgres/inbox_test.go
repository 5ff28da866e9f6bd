package postgres

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postbus/internal/servertest"
)

// enter notes an effect of the consumer in a transaction of its own and tells whether it was the first.
func enter(t *testing.T, l *Log, consumer string, event uuid.UUID) bool {
	t.Helper()
	batch := &pgx.Batch{}
	l.Enter(batch, consumer, event)
	results := l.pool.SendBatch(t.Context(), batch)
	tag, err := results.Exec()
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		t.Fatal(err)
	}
	return tag.RowsAffected() == 1
}

// madeAt is the id of an event that was made that long ago.
func madeAt(ago time.Duration) uuid.UUID {
	id := uuid.Must(uuid.NewV7())
	ms := time.Now().Add(-ago).UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id
}

// TestInboxIsSweptOfWhatCannotComeAgain: what is old and passed goes; what is young, or not passed by every share, stays.
func TestInboxIsSweptOfWhatCannotComeAgain(t *testing.T) {
	t.Parallel()
	l, _ := ownLog(t, Config{}, "a", "behind") // another's transaction would keep the places from passing
	old, young := madeAt(inboxAge+time.Minute), madeAt(inboxAge-time.Minute)
	for _, consumer := range []string{"a", "behind", "job"} {
		enter(t, l, consumer, old)
		enter(t, l, consumer, young)
	}
	untimed := uuid.New() // of a kind that tells no time
	copy(untimed[:6], old[:6])
	for _, consumer := range []string{"a", "behind", "job:default"} {
		enter(t, l, consumer, untimed)
	}
	sweep := func(want int64) {
		t.Helper()
		l.inboxSweep.began = time.Time{} // as in a day
		if n, err := l.sweepInbox(t.Context()); err != nil || n != want {
			t.Errorf("swept %d rows, want %d: %v", n, want, err)
		}
	}
	sweep(0) // nobody has passed anything since
	if _, err := l.Move(t.Context(), Subscription{Consumer: "a", Topic: "user"}, Spot{}, false); err != nil {
		t.Fatal(err)
	}
	// One share of it is still where it was.
	if _, err := l.pool.Exec(t.Context(), `UPDATE postbus.consumer_shares AS s SET snapshot = o.snapshot
		FROM postbus.consumer_shares AS o WHERE s.consumer = 'a' AND s.share = 7 AND o.consumer = 'behind' AND o.share = 7`); err != nil {
		t.Fatal(err)
	}
	sweep(0)
	if _, err := l.Move(t.Context(), Subscription{Consumer: "a", Topic: "user"}, Spot{}, false); err != nil {
		t.Fatal(err)
	}
	sweep(1)
	if _, err := l.pool.Exec(t.Context(), `UPDATE postbus.inbox SET handled_at = now() - $1::interval`, inboxAgeForeign+time.Hour); err != nil {
		t.Fatal(err)
	}
	sweep(3) // the job's old one: nobody's place tells, so its age does; and those whose ids do not tell it
	for _, c := range []struct {
		consumer string
		event    uuid.UUID
		first    bool
	}{{"a", old, true}, {"a", young, false}, {"behind", old, false}, {"behind", young, false}, {"job", old, true}, {"job", young, false},
		{"a", untimed, true}, {"behind", untimed, false}, {"job:default", untimed, true}} {
		if first := enter(t, l, c.consumer, c.event); first != c.first {
			t.Errorf("%s: the effect of %s is the first: %v", c.consumer, c.event, first)
		}
	}
}

// TestSweepingTheInboxLooksAtOldRowsOnly: all that may go goes in one round; young ones, and what jobs have done, are passed by.
func TestSweepingTheInboxLooksAtOldRowsOnly(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const many = 2*sweepRowsMax + 7
	l := newLog(t, Config{}, "a")
	const timed = `(lpad(to_hex((extract(epoch FROM now() - $2::interval) * 1000)::bigint), 12, '0') || '7' || lpad(to_hex(n), 19, '0'))::uuid`
	add := func(consumer, age, id string, n int) {
		t.Helper()
		execute(t, l, `INSERT INTO postbus.inbox (event_id, consumer, handled_at) SELECT `+id+`, $1, now() - $2::interval
			FROM generate_series(1, $3::int) AS n`, consumer, age, n)
	}
	add("a", "1 minute", timed, 50000)
	add("job:default", "30 days", timed, 50000)
	add("a", "30 days", "gen_random_uuid()", 1000)
	execute(t, l, `VACUUM ANALYZE postbus.inbox`)
	add("gone", "61 days", timed, many)
	add("job:default", "61 days", "gen_random_uuid()", many)
	if n, err := l.sweepInbox(t.Context()); err != nil || n != 2*many {
		t.Errorf("swept %d rows of %d: %v", n, 2*many, err)
	}
	add("gone", "60 days", timed, 100) // behind where it stands
	add("gone", "29 days", timed, 100) // beyond
	add("job:default", "61 days", timed, 100)
	execute(t, l, `VACUUM postbus.inbox`)
	sql := l.sweepInboxSQL()
	stands := &l.inboxSweep
	blocks := blocksOf(t, l, sql.slice, append([]any{stands.id, stands.name, sweepRowsMax}, sql.sliceAges...)...)
	blocks += blocksOf(t, l, sql.rest, sweepRowsMax, sql.restAge)
	if blocks > 200*10 {
		t.Errorf("for 200 rows it looks at %d blocks", blocks)
	}
}

// TestGoingBackTakesEffectAgain: that is what it is for. Going to now forgets nothing.
func TestGoingBackTakesEffectAgain(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "a", "b")
	event := uuid.Must(uuid.NewV7())
	enter(t, l, "a", event)
	enter(t, l, "b", event)
	a := Subscription{Consumer: "a", Topic: "user"}
	for _, c := range []struct {
		to     Spot
		dryRun bool
		first  bool
	}{{Beginning(), true, false}, {Spot{}, false, false}, {Beginning(), false, true}} {
		if _, err := l.Move(t.Context(), a, c.to, c.dryRun); err != nil {
			t.Fatal(err)
		}
		if first := enter(t, l, "a", event); first != c.first {
			t.Errorf("to %+v, dry run %v: the effect is the first: %v", c.to, c.dryRun, first)
		}
	}
	if enter(t, l, "b", event) {
		t.Error("another consumer's effects are forgotten")
	}
}

// TestInboxFollowsARenamedConsumer: its effects are still known.
func TestInboxFollowsARenamedConsumer(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "old")
	event := uuid.Must(uuid.NewV7())
	enter(t, l, "old", event)
	if err := l.Rename(t.Context(), "old", "new"); err != nil {
		t.Fatal(err)
	}
	if enter(t, l, "new", event) {
		t.Error("the renamed consumer would take effect again")
	}
}
