package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/servertest"
)

// partitionsOf looks at the topic "user".
func partitionsOf(t *testing.T, l *Log) partitions {
	t.Helper()
	all, err := l.survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.topic == "user" {
			return p
		}
	}
	t.Fatal("there is no topic user")
	return partitions{}
}

// numbers lists the partitions of the topic "user".
func numbers(t *testing.T, l *Log) (list []int64) {
	t.Helper()
	for _, p := range partitionsOf(t, l).parts {
		list = append(list, p.number)
	}
	return list
}

// closePartition has the topic's next event be the first of another partition. That has to be known to all transactions
// on the server, of which other tests have some.
func closePartition(t *testing.T, l *Log) {
	t.Helper()
	eventually(t, "the next partition is ready", func() bool { return closeReady(t, l) })
}

// closeReady does it only if the next partition is ready.
func closeReady(t *testing.T, l *Log) bool {
	t.Helper()
	p := partitionsOf(t, l)
	if !p.ready() {
		return false
	}
	if err := l.closeCurrent(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	maintain(t, l)
	return true
}

func maintain(t *testing.T, l *Log) {
	t.Helper()
	if err := l.maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func execute(t *testing.T, l *Log, sql string, args ...any) {
	t.Helper()
	if _, err := l.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// TestAppendNeverRunsOutOfPartitions publishes from many goroutines while two processes close partitions as fast as they
// can, far faster than one a minute. No INSERT fails, and a subscriber gets every event once and those of a key in order.
func TestAppendNeverRunsOutOfPartitions(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const publishers, closedMin = 3, 15
	l := newLog(t, Config{PartitionRows: 1}, "reader")
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	defer group.Wait()
	sent := make([]int, publishers)
	for p := range publishers {
		group.Go(func() {
			for ctx.Err() == nil {
				batch := &pgx.Batch{}
				if err := l.Append(batch, "user", event(fmt.Sprint("k", p), sent[p]), event(fmt.Sprint("k", p), sent[p]+1)); err != nil {
					t.Error(err)
					return
				}
				if err := l.pool.SendBatch(t.Context(), batch).Close(); err != nil {
					t.Errorf("publish: %v", err)
					return
				}
				sent[p] += 2
			}
		})
	}
	other := openLog(t, l.pool, Config{PartitionRows: 1})
	for _, maintainer := range []*Log{l, other} {
		group.Go(func() {
			for ctx.Err() == nil {
				if err := maintainer.maintain(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("maintain: %v", err)
					return
				}
			}
		})
	}
	eventually(t, "many closed partitions", func() bool { return partitionsOf(t, l).current >= closedMin })
	stop()
	group.Wait()
	total := 0
	for _, n := range sent {
		total += n
	}
	got := in.await(t, total)
	if len(got) != total {
		t.Errorf("%d events were read, %d published", len(got), total)
	}
	next := make(map[string]int)
	for _, payload := range got {
		var key string
		var n int
		if _, err := fmt.Sscanf(payload, `{"key":%q,"n":%d}`, &key, &n); err != nil {
			t.Fatal(err)
		}
		if n != next[key] {
			t.Fatalf("key %s: %d came instead of %d", key, n, next[key])
		}
		next[key]++
	}
}

// TestTopicOutlivesItsMaintenance publishes beyond a partition's last position when nobody has maintained anything.
func TestTopicOutlivesItsMaintenance(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	r := newReading(t, l, "reader")
	execute(t, l, `select setval('postbus."topic_user$position"', $1)`, firstPosition(1)-3)
	var want []string
	for n := range 6 {
		m := event("k", n)
		want = append(want, string(m.Payload))
		publish(t, l, m)
	}
	if r.drain(t, false); !slices.Equal(r.seen, want) {
		t.Errorf("read %q, want %q", r.seen, want)
	}
	maintain(t, l)
	got := partitionsOf(t, l)
	if got.current != 1 || !got.parts[0].closed || got.parts[1].closed || got.newest() != 1+partitionsAhead {
		t.Errorf("afterwards the partitions are %+v", got)
	}
}

func TestPartitionIsDue(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	aging := Config{PartitionRows: 100, Retention: Retention{Age: 8 * hour}}
	parts := func(n int) []partition {
		p := make([]partition, n)
		for i := range p {
			p[i] = partition{number: int64(i), ready: true}
		}
		return p
	}
	for name, c := range map[string]struct {
		config Config
		table  partitions
		want   bool
	}{
		"young and small":   {aging, partitions{last: 99, open: hour - 1, parts: parts(3)}, false},
		"full":              {aging, partitions{last: 100, open: 0, parts: parts(3)}, true},
		"old":               {aging, partitions{last: 1, open: hour, parts: parts(3)}, true},
		"old and empty":     {aging, partitions{last: 0, open: 100 * hour, parts: parts(3)}, false},
		"old, kept forever": {Config{PartitionRows: 100}, partitions{last: 1, open: 100 * hour, parts: parts(3)}, false},
		"without successor": {aging, partitions{last: 100, open: hour, parts: parts(1)}, false},
		"unready successor": {aging, partitions{last: 100, open: hour, parts: []partition{{}, {number: 1}}}, false},
		"a later one, full": {aging, partitions{last: firstPosition(2) + 100, current: 2, parts: parts(4)}, true},
		"a later one":       {aging, partitions{last: firstPosition(2) + 99, current: 2, parts: parts(4)}, false},
		"one of many":       {aging, partitions{last: 199, parts: parts(partitionsPerDoubling)}, false},
		"full one of many":  {aging, partitions{last: 200, parts: parts(partitionsPerDoubling)}, true},
		"nearly used up":    {aging, partitions{last: closeMarginPositions, parts: parts(3)}, false},
	} {
		if got := c.table.due(c.config.withDefaults()); got != c.want {
			t.Errorf("%s: due is %t", name, got)
		}
	}
}

// TestMaintenanceOfATopicAtRest does nothing to it, and takes no transaction id.
func TestMaintenanceOfATopicAtRest(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, _ := ownLog(t, Config{PartitionRows: 1, Retention: Retention{Age: time.Nanosecond}}, "reader")
	withoutAutovacuum(t, l)
	next := func() (id string) {
		t.Helper()
		if err := l.pool.QueryRow(t.Context(), `select pg_snapshot_xmax(pg_current_snapshot())::text`).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := next()
	for range 3 {
		maintain(t, l)
	}
	if after := next(); after != before {
		t.Errorf("the next transaction id went from %s to %s", before, after)
	}
	if got := numbers(t, l); !slices.Equal(got, []int64{0, 1, 2}) {
		t.Errorf("the partitions are %v", got)
	}
}

// TestTopicsAreNotMistakenForEachOthersParts has topics whose names are like those of another's indexes and partitions.
func TestTopicsAreNotMistakenForEachOthersParts(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l := newLog(t, Config{})
	long := strings.Repeat("x", 40)
	topics := []string{"user", "user_0", "user_xid", "user_key", "user_pkey", "user_position", "user_position_seq", long, long[1:]}
	for range 2 {
		if err := l.Provision(t.Context(), topics, nil); err != nil {
			t.Fatal(err)
		}
		for _, topic := range topics {
			batch := &pgx.Batch{}
			if err := l.Append(batch, topic, event("k", 1)); err != nil {
				t.Fatal(err)
			}
			if err := l.pool.SendBatch(t.Context(), batch).Close(); err != nil {
				t.Fatal(err)
			}
		}
		all, err := l.survey(t.Context())
		if err != nil || len(all) != len(topics) {
			t.Fatalf("survey has %d topics of %d, %v", len(all), len(topics), err)
		}
		for _, p := range all { // they are ready, or nobody writes
			if err := l.closeCurrent(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		maintain(t, l)
	}
	all, err := l.survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.current != 2 || len(p.parts) != 5 {
			t.Errorf("topic %s is at partition %d of %d", p.topic, p.current, len(p.parts))
		}
	}
}

// TestProvisionMakesPartitionsAhead of a topic that nobody has maintained.
func TestProvisionMakesPartitionsAhead(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{})
	execute(t, l, `select setval('postbus."topic_user$position"', $1)`, firstPosition(2)+1)
	again := openLog(t, l.pool, Config{})
	if got := numbers(t, again); !slices.Equal(got, []int64{0, 1, 2, 3, 4}) {
		t.Errorf("the partitions are %v", got)
	}
}

// TestTransactionKnowsThePartitionOfItsLastEvent writes in one transaction before and after others have filled partitions.
// It has its lock on the topic by then, and would not find out that one was added.
func TestTransactionKnowsThePartitionOfItsLastEvent(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{PartitionRows: 1}, "reader")
	tx, err := l.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	for range 2 {
		batch := &pgx.Batch{}
		if err := l.Append(batch, "user", event("k", 0)); err != nil {
			t.Fatal(err)
		}
		if err := tx.SendBatch(t.Context(), batch).Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 * partitionsAhead {
			publish(t, l, event("k", 0))
			maintain(t, l)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another partition", func() bool {
		publish(t, l, event("k", 0))
		maintain(t, l)
		return partitionsOf(t, l).current > partitionsAhead
	})
}

// TestTransactionFromBeforeTheAttachingCommitted has a higher id than the one that attaches a partition, and does not know the
// partition all the same. It has to find one for its next event.
func TestTransactionFromBeforeTheAttachingCommitted(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, _ := ownLog(t, Config{}) // another's transaction would keep partitions from being ready
	ctx := t.Context()
	begin := func() pgx.Tx {
		t.Helper()
		tx, err := l.pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	attaching := begin()
	for _, sql := range append(l.addSQL("user", 3), `select pg_current_xact_id()`) {
		if _, err := attaching.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	long := begin()
	defer long.Rollback(context.WithoutCancel(ctx))
	insert := func() {
		t.Helper()
		batch := &pgx.Batch{}
		if err := l.Append(batch, "user", event("long", 0)); err != nil {
			t.Fatal(err)
		}
		if err := long.SendBatch(ctx, batch).Close(); err != nil {
			t.Errorf("an INSERT finds no partition: %v", err)
		}
	}
	insert()
	if err := attaching.Commit(ctx); err != nil { // and that process is gone; others find what it has left
		t.Fatal(err)
	}
	for range 5 {
		publish(t, l, event("k", 0))
		closeReady(t, l)
		maintain(t, l)
	}
	insert()
	if err := long.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		publish(t, l, event("k", 0))
		closeReady(t, l)
		maintain(t, l)
	}
	if current := partitionsOf(t, l).current; current < 3 {
		t.Errorf("with that transaction gone, partition %d is the current one", current)
	}
}

// TestLateRowOfAClosedPartition: a transaction has its row in a partition that is closed meanwhile, and read to its end.
func TestLateRowOfAClosedPartition(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, _ := ownLog(t, Config{}, "reader") // another's transaction would hold back what is visible
	ctx := t.Context()
	r := newReading(t, l, "reader")
	late, err := l.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback(context.WithoutCancel(ctx))
	batch := &pgx.Batch{}
	m := event("late", 1)
	if err := l.Append(batch, "user", m); err != nil {
		t.Fatal(err)
	}
	if err := late.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		publish(t, l, event("k", n))
		closeReady(t, l) // twice; the third partition is not ready while that transaction is open
		maintain(t, l)
		r.drain(t, n%2 == 0)
	}
	if at := l.seals.before(l.seals.server, "user", r.at.snapshot); at != 0 {
		t.Errorf("the topic is said to be sealed up to %d, and there is a transaction that has written to it", at)
	}
	if err := late.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if r.drain(t, true); len(r.seen) != 4 || r.seen[3] != string(m.Payload) {
		t.Errorf("read %q", r.seen)
	}
	if at := l.seals.before(l.seals.server, "user", r.at.snapshot); at != firstPosition(2) {
		t.Errorf("after it the topic is sealed up to %d, not %d", at, firstPosition(2))
	}
}

// TestInterleavingsWhilePartitionsAreClosed plays some of the schedules of TestEveryInterleavingOfTwoWritersAndAReader with
// partitions that end anywhere.
func TestInterleavingsWhilePartitionsAreClosed(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const played, closedMin = 120, 10
	s := newStage(t)
	l := s.log
	l.config.PartitionRows = 1
	s.readPages(t, stored)
	ctx, stop := context.WithCancel(t.Context())
	var closing sync.WaitGroup
	defer closing.Wait()
	defer stop()
	closing.Go(func() {
		for ctx.Err() == nil {
			if err := l.maintain(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
				return
			}
		}
	})
	all := schedules()
	random := rand.New(rand.NewPCG(3, 4))
	for range played {
		plan := all[random.IntN(len(all))]
		o, err := s.play(t.Context(), plan)
		if err != nil {
			t.Fatalf("%v: %v", plan, err)
		}
		if o.lost() || o.extra() || o.disordered() {
			t.Fatalf("%v: read %q, committed %q", plan, o.seen, o.committed)
		}
	}
	if n := partitionsOf(t, l).current; n < closedMin {
		t.Errorf("only %d partitions were closed", n)
	}
}

// TestReadsOpenFewPartitions fails when a reading at the end of a long topic would open its old partitions, or when it
// is planned once for all values: then it also goes through all positions for the late rows.
func TestReadsOpenFewPartitions(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	_, server := ownLog(t, Config{}) // another's transaction would hold back what is sealed
	config, err := pgxpool.ParseConfig(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 1 // the server makes a plan for all values after some readings in one session
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	l := openLog(t, pool, Config{}, "reader")
	r := newReading(t, l, "reader")
	for n := range 12 {
		publish(t, l, event("k", n))
		closePartition(t, l)
		r.drain(t, false)
	}
	after := l.seals.before(l.seals.server, "user", r.at.snapshot)
	rows, err := l.pool.Query(t.Context(), "explain "+l.headQuery("user"), pgx.QueryExecModeCacheDescribe, pgx.NamedArgs{
		"snapshot": r.at.snapshot, "end": nullable(""), "fence": r.at.fence, "floor": r.at.floor, "position": int64(0), "limit": 500,
		"sealed": after, "shares": []int16(nil), "count": shareCount,
	})
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	plan := strings.Join(lines, "\n")
	for n := range int64(11) {
		if strings.Contains(plan, fmt.Sprintf(`"topic_user$%d"`, n)) {
			t.Errorf("partition %d is opened:\n%s", n, plan)
			break
		}
	}
	var generic int
	err = l.pool.QueryRow(t.Context(), `select coalesce(sum((to_jsonb(p)->>'generic_plans')::int), 0)
		from pg_prepared_statements as p where statement like '%window'||'_rows%'`).Scan(&generic)
	if err != nil || generic > 0 {
		t.Errorf("%d readings had a plan for all values, %v", generic, err)
	}
}
