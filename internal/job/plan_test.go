package job

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/servertest"
)

// plan is what Postgres did for a statement.
type plan struct {
	text   string
	blocks int // that were looked at
}

// explain carries a statement out, in a transaction that is rolled back.
func explain(t *testing.T, table *Table, query string, args ...any) plan {
	t.Helper()
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	return explainIn(t, tx, query, args...)
}

func explainIn(t *testing.T, tx pgx.Tx, query string, args ...any) plan {
	t.Helper()
	var encoded []byte
	if err := tx.QueryRow(t.Context(), `explain (analyze, buffers, format json) `+query, args...).Scan(&encoded); err != nil {
		t.Fatalf("explain %s: %v", query, err)
	}
	var plans []struct {
		Plan map[string]any `json:"Plan"`
	}
	if err := json.Unmarshal(encoded, &plans); err != nil {
		t.Fatal(err)
	}
	hit, _ := plans[0].Plan["Shared Hit Blocks"].(float64)
	read, _ := plans[0].Plan["Shared Read Blocks"].(float64)
	return plan{text: string(encoded), blocks: int(hit + read)}
}

func (p plan) check(t *testing.T, what string, blocksMax int) {
	t.Helper()
	if p.blocks > blocksMax {
		t.Errorf("%s looked at %d blocks, at most %d:\n%s", what, p.blocks, blocksMax, p.text)
	}
}

// keepOpen begins a transaction that has a snapshot, so that nothing that is replaced from now on is cleared away until end.
func keepOpen(t *testing.T, table *Table) (end func()) {
	t.Helper()
	tx, err := table.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `select count(*) from postbus.jobs`); err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback(t.Context()) } // it has done nothing
}

// many stores rows without anybody looking.
func many(t *testing.T, table *Table, n int, columns, values string) {
	t.Helper()
	execute(t, table.pool, fmt.Sprintf(`insert into postbus.jobs (id, kind, queue, priority, metadata, args, %s)
		select gen_random_uuid(), 'test-note', 'default', 0, '{}', '{"text":"x"}', %s from generate_series(1, %d) as i`, columns, values, n))
}

// TestManyScheduledJobsCostNothing: neither a look for due jobs nor a take reads those that are scheduled, but an index entry
// for each priority.
func TestManyScheduledJobsCostNothing(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	table := newTable(t, Config{})
	many(t, table, 50_000, "state, run_at", "'waiting', now() + interval '1 day' + i * interval '1 second'")
	execute(t, table.pool, `analyze postbus.jobs`)
	queues, levels, from := lookerOf(table).looks()
	explain(t, table, table.sql.due, queues, levels, from, table.config.Poll.Microseconds()).check(t, "a look", 100)
	explain(t, table, table.sql.take, "w", DefaultQueue, 10, priorities(), make([]time.Time, len(priorities())),
		int64(1_000_000), int64(200_000)).check(t, "a take", 100)
	id := enqueue(t, table, "due")
	work(t, table, 1, nil)
	awaitState(t, table, id, StateCompleted)
}

// TestManyBehindOneKey: what waits behind a held key is not looked at by a take, and what was behind before is not looked at when
// the key goes on, also while somebody keeps a transaction open, so that no entry leaves the indexes.
func TestManyBehindOneKey(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	table := newTable(t, Config{})
	defer keepOpen(t, table)()
	enqueue(t, table, "head", LockKey("k"))
	many(t, table, 100_000, "state, run_at, lock_key", "'behind', now(), 'k'")
	execute(t, table.pool, `analyze postbus.jobs`)
	explain(t, table, table.sql.take, "w", DefaultQueue, 10, priorities(), make([]time.Time, len(priorities())),
		int64(1_000_000), int64(200_000)).check(t, "a take", 150)
	r := takeOne(t, table, "w")
	// Half of them were the head and have ended.
	execute(t, table.pool, `update postbus.jobs set state = 'completed', finalized_at = now() where sequence <= 50000`)
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), table.sql.lockKeys, []string{"k"}, []int64{max(r.sequence, 50000)}); err != nil {
		t.Fatal(err)
	}
	explainIn(t, tx, table.sql.settleKeys, []string{"k"}).check(t, "the next of the key", 150)
	if n := value[int](t, table.pool, `select count(*) from postbus.jobs where state = 'behind'`); n != 50_001 {
		t.Errorf("%d are behind", n)
	}
}

// TestCleaningReadsOnlyWhatHasEnded.
func TestCleaningReadsOnlyWhatHasEnded(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	table := newTable(t, Config{})
	many(t, table, 50_000, "state, run_at", "'waiting', now()")
	many(t, table, 100, "state, run_at, finalized_at", "'completed', now(), now() - interval '2 days'")
	execute(t, table.pool, `analyze postbus.jobs`)
	p := explain(t, table, cleanSQL(table), StateCompleted, (24 * time.Hour).Microseconds(), cleanMax)
	if strings.Contains(p.text, `"Seq Scan"`) || !strings.Contains(p.text, "jobs_ended") {
		t.Errorf("cleaning read:\n%s", p.text)
	}
}

// TestForgettingReadsOnlyWhatIsOld: what is remembered for good reason is not looked at.
func TestForgettingReadsOnlyWhatIsOld(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	table := newTable(t, Config{})
	execute(t, table.pool, `insert into postbus.job_crossed select gen_random_uuid(), now() from generate_series(1, 50000)`)
	execute(t, table.pool, `insert into postbus.job_crossed select gen_random_uuid(), now() - interval '8 days' from generate_series(1, 5)`)
	execute(t, table.pool, `analyze postbus.job_crossed`)
	explain(t, table, forgetSQL(table), crossedKeep.Microseconds(), cleanMax).check(t, "forgetting", 80)
}
