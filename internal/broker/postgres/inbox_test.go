package postgres

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
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
	sweep := func(want int64) {
		t.Helper()
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
	sweep(1) // the job's old one: nobody's place tells, so its age does
	for _, c := range []struct {
		consumer string
		event    uuid.UUID
		first    bool
	}{{"a", old, true}, {"a", young, false}, {"behind", old, false}, {"behind", young, false}, {"job", old, true}, {"job", young, false}} {
		if first := enter(t, l, c.consumer, c.event); first != c.first {
			t.Errorf("%s: the effect of %s is the first: %v", c.consumer, c.event, first)
		}
	}
}

// TestSweepingTheInboxLooksAtOldRowsOnly: it begins at the beginning of the primary key and ends at the age.
func TestSweepingTheInboxLooksAtOldRowsOnly(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "a")
	if _, err := l.pool.Exec(t.Context(), `INSERT INTO postbus.inbox (event_id, consumer) SELECT
		(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || lpad(to_hex(n), 20, '0'))::uuid, 'a'
		FROM generate_series(1, 50000) AS n`); err != nil {
		t.Fatal(err)
	}
	if _, err := l.pool.Exec(t.Context(), `VACUUM ANALYZE postbus.inbox`); err != nil {
		t.Fatal(err)
	}
	var plan string
	rows, err := l.pool.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) `+l.sweepInboxSQL(),
		inboxAge, inboxAgeForeign, inboxSweepMax)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		plan += line + "\n"
	}
	if !strings.Contains(plan, "Index Scan using inbox_pkey") || strings.Contains(plan, "Seq Scan on inbox") {
		t.Errorf("the plan is\n%s", plan)
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
