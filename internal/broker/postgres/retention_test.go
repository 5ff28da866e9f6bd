package postgres

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// aged are the settings of a log whose closed partitions may go as soon as makeOld was called.
func aged(dropUnread bool) Config {
	return Config{Retention: Retention{Age: time.Hour, DropUnread: dropUnread}}
}

// makeOld has the partitions that are closed be so for a day. The topics are as old: that is since when the current partition is
// open, once all that were closed are gone.
func makeOld(t *testing.T, l *Log) {
	t.Helper()
	execute(t, l, `update postbus.topics set created_at = created_at - interval '1 day'`)
	execute(t, l, `update postbus.partitions set closed_at = closed_at - interval '1 day'`)
}

// logged gives the log a logger of its own, and what that has written so far.
func logged(l *Log) (written func() string) {
	var mu sync.Mutex
	var text bytes.Buffer
	l.logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &text}, nil))
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return text.String()
	}
}

type lockedWriter struct {
	mu   *sync.Mutex
	text *bytes.Buffer
}

func (w lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

// TestRetention has two partitions with an event each, closed, and one under way, which is closed in time, too; "fast" has
// read all, "slow" nothing.
func TestRetention(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config    Config
		consumers []string
		young     bool
		want      []int64
		says      string
	}{
		"all have read":           {aged(false), []string{"fast"}, false, []int64{2, 3, 4, 5}, "are dropped"},
		"nobody reads":            {aged(false), nil, false, []int64{2, 3, 4, 5}, "are dropped"},
		"one has not read":        {aged(false), []string{"fast", "slow"}, false, []int64{0, 1, 2, 3, 4, 5}, "have not read them: slow"},
		"unread, but told so":     {aged(true), []string{"fast", "slow"}, false, []int64{2, 3, 4, 5}, "consumers=[slow]"},
		"too young":               {aged(true), []string{"fast"}, true, []int64{0, 1, 2, 3, 4}, ""},
		"no policy, nothing goes": {Config{}, []string{"fast"}, false, []int64{0, 1, 2, 3, 4}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLog(t, c.config, c.consumers...)
			written := logged(l)
			for n := range 3 {
				publish(t, l, event("k", n))
				if n < 2 {
					closePartition(t, l)
				}
			}
			if slices.Contains(c.consumers, "fast") {
				r := newReading(t, l, "fast")
				r.drain(t, false)
				storePlace(t, l, "fast", r.at)
			}
			if !c.young {
				makeOld(t, l)
			}
			defer func() {
				if t.Failed() {
					t.Logf("partitions %v:\n%s", numbers(t, l), written())
				}
			}()
			eventually(t, "what retention is to do", func() bool {
				maintain(t, l)
				return slices.Equal(numbers(t, l), c.want) && strings.Contains(written(), c.says)
			})
			maintain(t, l)
			if n := strings.Count(written(), "level=WARN"); n > 2 { // one for a partition
				t.Errorf("it is said %d times:\n%s", n, written())
			}
			var rows, tables int
			if err := l.pool.QueryRow(t.Context(), `select (select count(*) from postbus.topic_user),
				(select count(*) from pg_class where relkind = 'r' and relname like 'topic\_%')`).Scan(&rows, &tables); err != nil {
				t.Fatal(err)
			}
			if rows != int(3-c.want[0]) || tables != len(c.want) {
				t.Errorf("%d rows in %d tables are left", rows, tables)
			}
		})
	}
}

// TestCursorBelowTheOldestPartition reads on from there.
func TestCursorBelowTheOldestPartition(t *testing.T) {
	t.Parallel()
	l := newLog(t, aged(true), "reader")
	written := logged(l)
	publish(t, l, event("k", 0))
	closePartition(t, l)
	m := event("k", 1)
	publish(t, l, m)
	makeOld(t, l)
	eventually(t, "the drop", func() bool { maintain(t, l); return numbers(t, l)[0] == 1 })
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	if got := in.await(t, 1); got[0] != string(m.Payload) {
		t.Errorf("read %q", got)
	}
	maintain(t, l)
	if n := strings.Count(written(), "had not read them"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, written())
	}
}

// TestRowOfAnOpenTransactionIsNotDropped: the transaction has drawn its position, the partition was closed, is old, and
// holds nothing that anybody can see and has not read.
func TestRowOfAnOpenTransactionIsNotDropped(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	for _, dropUnread := range []bool{false, true} {
		t.Run(fmt.Sprintf("DropUnread=%t", dropUnread), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			l := newLog(t, aged(dropUnread), "reader")
			tx, err := l.pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.WithoutCancel(ctx))
			batch := &pgx.Batch{}
			m := event("k", 0)
			if err := l.Append(batch, "user", m); err != nil {
				t.Fatal(err)
			}
			if err := tx.SendBatch(ctx, batch).Close(); err != nil {
				t.Fatal(err)
			}
			closePartition(t, l)
			makeOld(t, l)
			r := newReading(t, l, "reader")
			r.drain(t, true)
			if unread, err := l.unread(ctx, "user", 0); err != nil || len(unread) > 0 {
				t.Fatalf("unread by %v, %v; nothing is to be seen yet", unread, err)
			}
			if err := l.execDetach(ctx, "user", 0); !isBusy(err) {
				t.Errorf("detach while the transaction is open: %v", err)
			}
			if stays, err := l.heldFor(ctx, time.Millisecond, "user", 0); err != nil || !stays {
				t.Errorf("the transaction is not noticed: %t, %v", stays, err)
			}
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			if !dropUnread {
				if err := l.execDetach(ctx, "user", 0); !hasCode(err, codeUnread) {
					t.Errorf("detach of a row that is not read: %v", err)
				}
			}
			if r.drain(t, true); !slices.Equal(r.seen, []string{string(m.Payload)}) {
				t.Errorf("read %q", r.seen)
			}
			eventually(t, "the drop", func() bool { maintain(t, l); return numbers(t, l)[0] == 1 })
		})
	}
}

// TestDetachUnderOtherIsolation: a row commits while the detaching waits for the lock. Whether it was read is decided under the
// lock, and so after it, whatever the database's default isolation level is.
func TestDetachUnderOtherIsolation(t *testing.T) {
	t.Parallel()
	address := pgtest.URL(t, Migrations(DefaultSchema)) + "&options=-c%20default_transaction_isolation%3Drepeatable%5C%20read"
	l := openLog(t, pgtest.Open(t, address), aged(false), "reader")
	ctx := t.Context()
	publish(t, l, event("k", 0))
	closePartition(t, l)
	r := newReading(t, l, "reader")
	attempt := func(position int) error {
		r.drain(t, true)
		tx, err := l.pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctx, `insert into postbus.topic_user (position, slot, id, metadata, payload) overriding system value
			values ($1, 0, gen_random_uuid(), '{}', '')`, position); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- l.execDetach(ctx, "user", 0) }()
		eventually(t, "the lock is waited for", func() bool { return waiting(t, l) > 0 || len(done) > 0 })
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		return <-done
	}
	position := 100
	err := attempt(position)
	for ; isBusy(err); err = attempt(position) { // it waits for so short a time that the commit may come too late
		position++
	}
	if !hasCode(err, codeUnread) {
		t.Errorf("the partition has a committed row that nobody has read, and the detaching says %v", err)
	}
}

// TestInterruptedRetentionIsFinished by whoever comes next, also by a log that keeps everything.
func TestInterruptedRetentionIsFinished(t *testing.T) {
	t.Parallel()
	l := newLog(t, aged(false))
	publish(t, l, event("k", 0))
	closePartition(t, l)
	if err := l.execDetach(t.Context(), "user", 0); err != nil {
		t.Fatal(err)
	}
	if ok, err := l.detach(t.Context(), "user", 0); err != nil || !ok {
		t.Errorf("detach what another process has: %t, %v", ok, err)
	}
	maintain(t, openLog(t, l.pool, Config{}))
	var left bool
	if err := l.pool.QueryRow(t.Context(), `select to_regclass('postbus."topic_user$0"') is not null
		or exists (select from postbus.partitions where number = 0)`).Scan(&left); err != nil || left {
		t.Errorf("something is left: %t, %v", left, err)
	}
}

// TestPlaceOfAnotherClusterKeepsEverything: such a snapshot says nothing about the transactions here.
func TestPlaceOfAnotherClusterKeepsEverything(t *testing.T) {
	t.Parallel()
	l := newLog(t, aged(false), "reader")
	publish(t, l, event("k", 0))
	closePartition(t, l)
	execute(t, l, `update postbus.consumer_shares set snapshot = '900000000:900000000:'`)
	if unread, err := l.unread(t.Context(), "user", 0); err != nil || !slices.Equal(unread, []string{"reader"}) {
		t.Errorf("unread by %v, %v", unread, err)
	}
}

// moment is what a statement saw.
type moment struct {
	snapshot string
	floor    int64
}

// randomHistory has transactions write to the topic in any order and partitions end between them.
func randomHistory(t *testing.T, l *Log, random *rand.Rand) (moments []moment) {
	t.Helper()
	ctx := t.Context()
	var open []pgx.Tx
	defer func() {
		for _, tx := range open {
			_ = tx.Rollback(context.WithoutCancel(ctx))
		}
	}()
	for range 120 {
		var err error
		switch action := random.IntN(7); {
		case action < 2 && len(open) < 4:
			var tx pgx.Tx
			tx, err = l.pool.Begin(ctx)
			open = append(open, tx)
		case action < 4 && len(open) > 0:
			batch := &pgx.Batch{}
			if err := l.Append(batch, "user", event("k", 0)); err != nil {
				t.Fatal(err)
			}
			err = open[random.IntN(len(open))].SendBatch(ctx, batch).Close()
		case action == 4 && len(open) > 0:
			i := random.IntN(len(open))
			err = open[i].Commit(ctx)
			open = slices.Delete(open, i, i+1)
		case action == 5:
			closeReady(t, l)
			maintain(t, l)
		}
		if err != nil {
			t.Fatal(err)
		}
		var m moment
		err = l.pool.QueryRow(ctx, `select pg_current_snapshot()::text, coalesce(max(position), 0) from postbus.topic_user`).
			Scan(&m.snapshot, &m.floor)
		if err != nil {
			t.Fatal(err)
		}
		moments = append(moments, m)
	}
	return moments
}

// TestPassedIsExact compares what retention thinks of random places with what they mean, row by row.
func TestPassedIsExact(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLog(t, Config{}, "reader")
	eventually(t, "the first partitions are ready", func() bool { return partitionsOf(t, l).ready() })
	random := rand.New(rand.NewPCG(5, 6))
	moments := randomHistory(t, l, random)
	table := partitionsOf(t, l)
	if table.current < partitionsAhead {
		t.Fatalf("there are only %d closed partitions", table.current)
	}
	answers := make(map[bool]int)
	for range 250 {
		from := random.IntN(len(moments))
		s, end := moments[from], moments[from+random.IntN(len(moments)-from)]
		windowEnd, position := nullable(end.snapshot), firstPosition(random.Int64N(table.current+1))+random.Int64N(8)
		if random.IntN(3) == 0 {
			windowEnd, position = nil, 0
		}
		execute(t, l, `update postbus.consumer_shares set snapshot = $1, floor = $2, window_end = $3, position = $4`,
			s.snapshot, s.floor, windowEnd, position)
		n := random.Int64N(table.current + 1)
		var want bool
		err := l.pool.QueryRow(ctx, fmt.Sprintf(`select exists (select from postbus."topic_user$%d"
			where not pg_visible_in_snapshot(xid, $1)
			and not (coalesce(pg_visible_in_snapshot(xid, $2), false) and position <= $3))`, n),
			s.snapshot, windowEnd, position).Scan(&want)
		if err != nil {
			t.Fatal(err)
		}
		unread, err := l.unread(ctx, "user", n)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(unread) > 0; got != want {
			t.Fatalf("partition %d at snapshot %s, floor %d, window end %v, position %d: unread is %t",
				n, s.snapshot, s.floor, windowEnd, position, got)
		}
		answers[want]++
	}
	if answers[true] < 30 || answers[false] < 30 {
		t.Errorf("the places are one-sided: %v", answers)
	}
}

var rowsRemoved = regexp.MustCompile(`Rows Removed by Filter: (\d+)`)

// TestPassedIsCheap asks about a large partition for consumers near the end, and for one in the middle of a long window,
// before and after it has passed the partition. None of them goes through its rows: a lock is held meanwhile.
func TestPassedIsCheap(t *testing.T) {
	t.Parallel()
	const size = 20_000
	l := newLog(t, Config{}, "reader")
	foreign, err := newLog(t, Config{}).pool.Begin(t.Context()) // whose id is below that of all that follow
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Rollback(context.WithoutCancel(t.Context()))
	if _, err := foreign.Exec(t.Context(), "select pg_current_xact_id()"); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	var start, end string
	snapshot := func(s *string) {
		t.Helper()
		if err := l.pool.QueryRow(ctx, `select pg_current_snapshot()::text`).Scan(s); err != nil {
			t.Fatal(err)
		}
	}
	snapshot(&start)
	for range 20 {
		execute(t, l, fmt.Sprintf(`insert into postbus.topic_user (slot, id, metadata, payload)
			select n %% 4096, gen_random_uuid(), '{}', '{}' from generate_series(1, %d) as n`, size/20))
	}
	execute(t, l, `analyze postbus."topic_user$0"`)
	closePartition(t, l)
	publish(t, l, event("k", 0))
	snapshot(&end)
	for name, place := range map[string]struct {
		snapshot  string
		floor     int64
		windowEnd string
		position  int64
		unread    bool
	}{
		"at the end":                {end, firstPosition(1) + 1, "", 0, false},
		"before all":                {start, 0, "", 0, true},
		"in a window, in it":        {start, 0, end, size / 2, true},
		"in a window, at its end":   {start, 0, end, size - 1, true},
		"in a window, beyond it":    {start, 0, end, firstPosition(1), false},
		"in a window, at late rows": {end, firstPosition(1) + 1, end, 1, false},
	} {
		execute(t, l, `update postbus.consumer_shares set snapshot = $1, floor = $2, window_end = $3, position = $4`,
			place.snapshot, place.floor, nullable(place.windowEnd), place.position)
		unread, err := l.unread(ctx, "user", 0)
		if err != nil || len(unread) > 0 != place.unread {
			t.Errorf("%s: unread by %v, %v", name, unread, err)
		}
		if plan, removed := unreadPlan(t, l); removed > 100 {
			t.Errorf("%s: goes through %d rows:\n%s", name, removed, plan)
		}
	}
}

// unreadPlan is how Postgres looks for what is unread, and the most rows that it passes over in one place.
func unreadPlan(t *testing.T, l *Log) (plan string, removed int) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), l.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `set local enable_seqscan = off`); err != nil {
			return err
		}
		rows, err := tx.Query(t.Context(), `explain (analyze) `+l.unreadSQL("user", 0))
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		plan = strings.Join(lines, "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range rowsRemoved.FindAllStringSubmatch(plan, -1) {
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		removed = max(removed, n)
	}
	return plan, removed
}
