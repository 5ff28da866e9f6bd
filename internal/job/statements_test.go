package job

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/dedicated"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// lookers are calls of everything that looks for jobs. Each may be made again and again, and none reads what it does not need.
var lookers = map[string]func(ctx context.Context, table *Table) error{
	"take": func(ctx context.Context, table *Table) error {
		_, err := table.take(ctx, "w", DefaultQueue, 10, make([]time.Time, len(priorities())))
		return err
	},
	"end": func(ctx context.Context, table *Table) error {
		_, _, err := table.end(ctx, table.pool, []outcome{{id: uuid.New(), verdict: verdictCompleted}})
		return err
	},
	"end in a lock key": func(ctx context.Context, table *Table) error {
		_, _, err := table.end(ctx, table.pool, []outcome{{id: uuid.New(), verdict: verdictCompleted, lock: "k"}})
		return err
	},
	"end without history": func(ctx context.Context, table *Table) error {
		table.config.Keep.Completed = 1
		_, _, err := table.end(ctx, table.pool, []outcome{{id: uuid.New(), verdict: verdictCompleted}})
		return err
	},
	"enqueue in a lock key": func(ctx context.Context, table *Table) error {
		_, err := table.Enqueue(ctx, note{"x"}, LockKey("k"), WithID(uuid.Max))
		return err
	},
	"cancel and retry": func(ctx context.Context, table *Table) error {
		_, err1 := table.Enqueue(ctx, note{"x"}, LockKey("k"), UniqueKey("u"), WithID(uuid.Max))
		_, err2 := table.Cancel(ctx, uuid.Max, "anna")
		_, err3 := table.Cancel(ctx, uuid.Max, "anna") // once it has ended
		_, err4 := table.Retry(ctx, Selection{IDs: []uuid.UUID{uuid.Max}}, "anna")
		return errors.Join(err1, err2, err3, err4)
	},
	"discard": func(ctx context.Context, table *Table) error {
		_, err := table.Discard(ctx, Selection{Kind: "other"}, "anna")
		return err
	},
	"dead": func(ctx context.Context, table *Table) error {
		_, err := table.Dead(ctx)
		return err
	},
	"get": func(ctx context.Context, table *Table) error {
		_, err := table.Get(ctx, uuid.New())
		return without(err, ErrNotFound)
	},
	"clean":  func(ctx context.Context, table *Table) error { _, err := table.Clean(ctx); return err },
	"due":    func(ctx context.Context, table *Table) error { return lookerOf(table).lookForDue(ctx) },
	"renew":  func(ctx context.Context, table *Table) error { return lookerOf(table).renew(ctx) },
	"resync": func(ctx context.Context, table *Table) error { return lookerOf(table).resync(ctx) },
	"lost": func(ctx context.Context, table *Table) error {
		return table.change(ctx, func(tx pgx.Tx) error { _, err := table.lostBy(ctx, tx, "w"); return err })
	},
	"progress": func(ctx context.Context, table *Table) error {
		d := newDelivery(ctx, lookerOf(table), row{id: uuid.New()}, DefaultQueue)
		defer d.end(nil)
		return without(Progress(d.ctx, 1), ErrNotRunning)
	},
}

// lookerOf is a worker that does nothing by itself.
func lookerOf(table *Table) *worker {
	return &worker{
		table: table, owner: "w", term: newTerm(time.Minute), leased: true, active: time.Now(), heartbeat: dedicated.New(table.pool),
		queues: map[string]int{DefaultQueue: 1}, floors: map[string]*floors{DefaultQueue: {}}, doubt: make(chan struct{}, 1), dirty: make(chan struct{}, 1),
	}
}

func without(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

// TestStatementsUseTheIndexesFromTheStart: a program that has been at work since the table was empty, when reading all of it was
// the fastest way, does not go on so when it has grown.
func TestStatementsUseTheIndexesFromTheStart(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	watcher := newTable(t, Config{})
	execute(t, watcher.pool, `alter table postbus.jobs set (autovacuum_enabled = off)`) // it would have plans made anew
	read := func() int {
		return value[int](t, watcher.pool, `select seq_tup_read::int from pg_stat_user_tables where relname = 'jobs'`)
	}
	for name, look := range lookers {
		t.Run(name, func(t *testing.T) {
			execute(t, watcher.pool, `truncate postbus.jobs, postbus.job_keys`)
			execute(t, watcher.pool, `vacuum analyze postbus.jobs`)
			ctx := context.WithoutCancel(t.Context())
			table, end := onOneConnection(t, watcher)
			for range 10 { // from the sixth time on Postgres may keep a plan
				if err := look(ctx, table); err != nil {
					t.Fatal(err)
				}
			}
			const grown = 5000
			many(t, watcher, grown, "state, run_at, finalized_at", "'completed', now(), now()")
			before := read()
			if err := look(ctx, table); err != nil {
				t.Fatal(err)
			}
			end() // a session tells what it has read when it ends
			if n := read() - before; n >= grown {
				t.Errorf("it has read %d jobs one by one", n)
			}
		})
	}
}

// onOneConnection is the same table, used on one connection until end has been called.
func onOneConnection(t *testing.T, watcher *Table) (table *Table, end func()) {
	t.Helper()
	config, err := pgxpool.ParseConfig(watcher.pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 1
	var full atomic.Bool // for a heartbeat, too
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		if full.Swap(true) {
			return errors.New("there is one connection")
		}
		return nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	pid := value[int](t, pool, `select pg_backend_pid()`)
	return openTable(t, pool, Config{NotifyOff: true}), func() {
		t.Helper()
		pool.Close()
		eventually(t, "the end of the session", func() bool {
			return value[int](t, watcher.pool, `select count(*) from pg_stat_activity where pid = $1`, pid) == 0
		})
	}
}

// TestModeOfThePoolStays: a mode that the URL names is used for all queries, since a pooler may need it.
func TestModeOfThePoolStays(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]pgx.QueryExecMode{
		"":                              pgx.QueryExecModeCacheDescribe,
		"?default_query_exec_mode=exec": pgx.QueryExecModeExec,
		"?default_query_exec_mode=simple_protocol": pgx.QueryExecModeSimpleProtocol,
	} {
		pool := pgtest.Open(t, "postgres://127.0.0.1:1/none"+setting) // it connects when it is used
		if got := perValue(pool); got != want {
			t.Errorf("%q: %s, want %s", setting, got, want)
		}
	}
}

// TestOpenTransactionDoesNotSlowTheTaking: while somebody keeps a transaction open, what was taken and has ended stays in the
// index. Looks then begin where the last one ended, and do not go through all of it each time.
func TestOpenTransactionDoesNotSlowTheTaking(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	table := newTable(t, Config{})
	defer keepOpen(t, table)()
	many(t, table, 30_000, "state, run_at", "'waiting', now() - interval '1 hour' + i * interval '1 millisecond'")
	execute(t, table.pool, `update postbus.jobs set state = 'completed', finalized_at = now()`)
	enqueue(t, table, "first")
	var f floors
	first := f.next(time.Now().Add(-slowTake)) // slow, however fast this machine is
	found, err := table.take(t.Context(), "w", DefaultQueue, 10, first.from)
	if err != nil || len(found) != 1 {
		t.Fatalf("took %d jobs, %v", len(found), err)
	}
	f.looked(first, reachedBy(found))
	second := newJob(t, "second")
	if _, err := table.EnqueueAll(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	look := func(from []time.Time) plan {
		return explain(t, table, table.sql.take, "w", DefaultQueue, 10, priorities(), from, int64(1_000_000), int64(200_000))
	}
	look(f.next(time.Now()).from).check(t, "a take", 150)
	if p := look(make([]time.Time, len(priorities()))); p.blocks < 500 {
		t.Errorf("a look from the beginning took %d blocks: nothing was tried", p.blocks)
	}
	if found, err = table.take(t.Context(), "w", DefaultQueue, 10, f.next(time.Now()).from); err != nil || len(found) != 1 || found[0].id != second.ID() {
		t.Errorf("took %+v, %v", found, err)
	}
}

// TestOpenTransactionDoesNotSlowTheHeartbeat, nor the storing of outcomes and progress: what ran before stays in the index of
// running jobs, and none goes through it.
func TestOpenTransactionDoesNotSlowTheHeartbeat(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	table := newTable(t, Config{})
	defer keepOpen(t, table)()
	many(t, table, 60_000, "state, owner, run_at", "'running', 'w', now()")
	execute(t, table.pool, `update postbus.jobs set state = 'completed', finalized_at = now()`)
	execute(t, table.pool, `analyze postbus.jobs`)
	const count = 50
	ids, epochs, verdicts := make([]uuid.UUID, count), make([]int64, count), make([]string, count)
	waits, none := make([]int64, count), make([]*string, count)
	for i := range ids {
		ids[i], verdicts[i] = enqueue(t, table, "x"), verdictCompleted
	}
	execute(t, table.pool, `update postbus.jobs set state = 'running', owner = 'w' where id = any ($1)`, ids)
	const most = 8 * count // blocks: a way down an index, and the row and what is written
	explain(t, table, table.sql.renew, "w", ids, int64(1_000_000)).check(t, "a heartbeat", most)
	explain(t, table, table.sql.end, ids, epochs, verdicts, waits, none, none, none, 3, failuresMax).check(t, "storing outcomes", 3*most)
	explain(t, table, table.sql.progress, ids[0], int64(0), "x").check(t, "storing progress", 50)
	p := explain(t, table, `select id from postbus.jobs where owner = $1 and state = 'running'`, "w")
	if p.blocks < 500 {
		t.Errorf("the index of running jobs took %d blocks: nothing was tried", p.blocks)
	}
}

// TestOpenTransactionDoesNotSlowTheLooks: the look for what becomes due begins where takes do.
func TestOpenTransactionDoesNotSlowTheLooks(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	table := newTable(t, Config{})
	defer keepOpen(t, table)()
	many(t, table, 30_000, "state, run_at", "'waiting', now() - interval '1 hour'")
	execute(t, table.pool, `update postbus.jobs set state = 'completed', finalized_at = now()`)
	w := lookerOf(table)
	look := func() plan {
		queues, levels, from := w.looks()
		return explain(t, table, table.sql.due, queues, levels, from, table.config.Poll.Microseconds())
	}
	if p := look(); p.blocks < 500 {
		t.Errorf("a look from the beginning took %d blocks: nothing was tried", p.blocks)
	}
	enqueue(t, table, "first")
	f := w.floors[DefaultQueue]
	first := f.next(time.Now().Add(-slowTake))
	found, err := table.take(t.Context(), "w", DefaultQueue, 10, first.from)
	if err != nil || len(found) != 1 {
		t.Fatalf("took %d jobs, %v", len(found), err)
	}
	f.looked(first, reachedBy(found))
	look().check(t, "a look", 150)
}

// TestFloors: looks go back to the beginning while those are fast, and once a second or so when they are slow.
func TestFloors(t *testing.T) {
	t.Parallel()
	var f floors
	slow := func(l looking) looking {
		l.asked = time.Now().Add(-2 * slowTake)
		return l
	}
	now := time.Now()
	job := row{priority: int16(PriorityMax), runAt: now}
	f.looked(f.next(time.Now()), reachedBy([]row{job}))
	if !f.next(now).whole {
		t.Error("it does not begin at the beginning after a look that was fast")
	}
	f.looked(slow(f.next(now)), reachedBy([]row{job}))
	next := f.next(time.Now())
	if want := now.Add(-floorSlack); next.whole || !next.from[0].Equal(want) || !next.from[1].IsZero() {
		t.Errorf("after a slow look it begins at %v, want %s for the first priority and the beginning for others", next, want)
	}
	later := row{priority: int16(PriorityMax), runAt: now.Add(time.Second)}
	f.looked(slow(next), reachedBy([]row{later, job}))
	if next = f.next(time.Now()); !next.from[0].Equal(later.runAt.Add(-floorSlack)) {
		t.Errorf("it does not go on from the latest: %v", next)
	}
	if next = f.next(time.Now().Add(2 * rescanEvery)); !next.whole || !next.from[0].IsZero() {
		t.Errorf("it does not go back: %v", next)
	}
}
