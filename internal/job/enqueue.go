package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// enqueueAttemptsMax is how often Enqueue is tried when Postgres asks to try again.
const enqueueAttemptsMax = 5

// Append queues the INSERT of jobs, in their order, on a batch that the caller sends within its transaction, preferably with
// the COMMIT: one statement for all of them, and three more when some have a lock key. A job whose id is known, or whose unique
// key is taken, is skipped without a word. Nothing is sent here, so no context is taken; the one of SendBatch holds. Wake
// is to be called after the commit.
//
// A lock key of the jobs is locked until the transaction ends.
func (t *Table) Append(batch *pgx.Batch, jobs ...Job) error {
	return t.append(batch, t.sql.insert, jobs, nil)
}

func (t *Table) append(batch *pgx.Batch, sql string, jobs []Job, stored func(pgx.Rows) error) error {
	if len(jobs) == 0 {
		return nil
	}
	if len(jobs) > jobsPerEnqueueMax {
		return &LimitError{Limit: "jobsPerEnqueueMax", Max: jobsPerEnqueueMax, Got: len(jobs)}
	}
	c := columnsOf(jobs)
	keys := lockKeysOf(jobs)
	if len(keys) > 0 {
		batch.Queue(perValueSQL)
		batch.Queue(t.sql.lockKeys, keys, make([]int64, len(keys)))
	}
	insert := batch.Queue(sql, c.ids, c.kinds, c.queues, c.priorities, c.ats, c.delays, c.locks, c.uniques, c.metadata, c.args)
	if stored != nil {
		insert.Query(stored)
	}
	if len(keys) > 0 {
		batch.Queue(t.sql.settleKeys, keys)
	}
	return nil
}

// columns are jobs as the arrays of the INSERT.
type columns struct {
	ids            []uuid.UUID
	kinds, queues  []string
	priorities     []int16
	ats            []*time.Time
	delays         []int64
	locks, uniques []*string
	metadata, args []string
}

func columnsOf(jobs []Job) (c columns) {
	for _, j := range jobs {
		c.ids = append(c.ids, j.id)
		c.kinds = append(c.kinds, j.kind)
		c.queues = append(c.queues, j.queue)
		c.priorities = append(c.priorities, int16(j.priority))
		c.ats = append(c.ats, j.at)
		c.delays = append(c.delays, j.delay.Microseconds())
		c.locks = append(c.locks, nullable(j.lock))
		c.uniques = append(c.uniques, nullable(j.unique))
		c.metadata = append(c.metadata, j.encoded)
		c.args = append(c.args, j.args)
	}
	return c
}

func lockKeysOf(jobs []Job) (keys []string) {
	for _, j := range jobs {
		if j.lock != "" {
			keys = append(keys, j.lock)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// insertSQL stores jobs. One with a lock key is behind at first; settleKeys makes it the head if there is none. The time
// is the clock's and not the transaction's, which may have begun long ago: the table is read from where it was read last.
func insertSQL(t *Table) string { return storeSQL(t, ``, ``) }

// crossSQL stores jobs that come from another database, those of them that have not come before. Another transaction that
// brings one of them is waited for.
func crossSQL(t *Table) string {
	return storeSQL(t, `WITH fresh AS (
			INSERT INTO `+t.table("job_crossed")+` (id) SELECT id FROM unnest($1::uuid[]) AS c (id) ORDER BY id
			ON CONFLICT DO NOTHING RETURNING id) `, `WHERE id IN (SELECT id FROM fresh)`)
}

func storeSQL(t *Table, with, where string) string {
	return with + `INSERT INTO ` + t.table("jobs") + ` (id, kind, queue, priority, state, run_at, lock_key, unique_key, metadata, args)
		SELECT id, kind, queue, priority, CASE WHEN lock_key IS NULL THEN 'waiting' ELSE 'behind' END,
			coalesce(at, clock_timestamp() + delay * interval '1 microsecond'), lock_key, unique_key, metadata, args
		FROM unnest($1::uuid[], $2::text[], $3::text[], $4::smallint[], $5::timestamptz[], $6::bigint[], $7::text[], $8::text[],
			$9::text[], $10::text[]) WITH ORDINALITY
			AS j (id, kind, queue, priority, at, delay, lock_key, unique_key, metadata, args, ordinality)
		` + where + ` ORDER BY ordinality
		ON CONFLICT DO NOTHING
		RETURNING id`
}

// lockKeysSQL locks keys until the transaction ends, in their order, so that two transactions never wait for each other,
// and notes the sequences that have passed the head. It writes the rows: a transaction that sees only what was there when
// it began gets a serialization failure instead of deciding by old rows.
func lockKeysSQL(t *Table) string {
	return `INSERT INTO ` + t.table("job_keys") + ` AS k (lock_key, passed)
		SELECT lock_key, max(passed) FROM unnest($1::text[], $2::bigint[]) AS u (lock_key, passed)
		GROUP BY lock_key ORDER BY lock_key
		ON CONFLICT (lock_key) DO UPDATE SET passed = greatest(k.passed, excluded.passed)`
}

// settleKeysSQL makes the first of those behind the head, where a locked key has no head, and forgets a key that has no
// jobs any more. It is a statement of its own, after lockKeys, so that it sees what was committed while that one waited.
// The condition on sequence keeps it from going through the entries of all that were behind before; TestManyBehindOneKey
// takes far longer without it.
func settleKeysSQL(t *Table) string {
	return `WITH headless AS (
			SELECT k.lock_key, (SELECT b.id FROM ` + t.table("jobs") + ` AS b
				WHERE b.lock_key = k.lock_key AND b.state = 'behind' AND b.sequence > k.passed ORDER BY b.sequence LIMIT 1) AS next
			FROM ` + t.table("job_keys") + ` AS k
			WHERE k.lock_key = ANY ($1) AND NOT EXISTS (SELECT FROM ` + t.table("jobs") + ` AS h
				WHERE h.lock_key = k.lock_key AND h.state IN ('waiting', 'running'))),
		forgotten AS (
			DELETE FROM ` + t.table("job_keys") + ` WHERE lock_key IN (SELECT lock_key FROM headless WHERE next IS NULL))
		UPDATE ` + t.table("jobs") + ` AS j SET state = 'waiting'
		FROM headless WHERE j.id = headless.next
		RETURNING j.queue`
}

// Receipt is what became of a job that was enqueued.
type Receipt struct {
	ID uuid.UUID
	// Skipped is true when nothing was stored: the id was known, or another job has the unique key.
	Skipped bool
}

// Enqueue stores one job, in a transaction of its own, and wakes the workers. It returns the errors of New. A caller that
// does not know whether the job was stored, since the connection was lost, may try again with the same WithID.
func (t *Table) Enqueue(ctx context.Context, args Args, options ...Option) (Receipt, error) {
	j, err := New(args, options...)
	if err != nil {
		return Receipt{}, err
	}
	receipts, err := t.EnqueueAll(ctx, j)
	if err != nil {
		return Receipt{}, err
	}
	return receipts[0], nil
}

// EnqueueAll stores jobs, all of them or none, in a transaction of its own, and wakes the workers. The receipts are in the
// order of the jobs. It returns a *LimitError for more than 10,000.
func (t *Table) EnqueueAll(ctx context.Context, jobs ...Job) ([]Receipt, error) {
	stored, err := t.store(ctx, t.sql.insert, jobs)
	if err != nil {
		return nil, fmt.Errorf("enqueue jobs: %w", err)
	}
	receipts := make([]Receipt, len(jobs))
	var queues []string
	for i, j := range jobs {
		receipts[i] = Receipt{ID: j.id, Skipped: !stored[j.id]}
		delete(stored, j.id) // the second of an id within the call was skipped
		queues = append(queues, j.queue)
	}
	t.Wake(queues...)
	return receipts, nil
}

// store carries out an INSERT of jobs, in a transaction of its own, and returns which were stored.
func (t *Table) store(ctx context.Context, sql string, jobs []Job) (stored map[uuid.UUID]bool, err error) {
	for attempt := 1; ; attempt++ {
		batch := &pgx.Batch{}
		stored = make(map[uuid.UUID]bool, len(jobs))
		err := t.append(batch, sql, jobs, func(rows pgx.Rows) error {
			ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
			for _, id := range ids {
				stored[id] = true
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		err = t.pool.SendBatch(ctx, batch).Close() // one transaction, as all that is sent at once
		if err == nil {
			return stored, nil
		}
		if attempt == enqueueAttemptsMax || !wantsRetry(err) {
			return nil, err
		}
	}
}

// wantsRetry is true for what Postgres asks to try again: serialization_failure and deadlock_detected; and for
// unique_violation: no statement here stores what was there when it looked, so another has stored it meanwhile.
func wantsRetry(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01" || pg.Code == "23505")
}

func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
