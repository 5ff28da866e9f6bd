package job

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// What a worker can say of a job that it has taken.
const (
	verdictCompleted = "completed"
	verdictRetry     = "retry"   // after a wait
	verdictSnoozed   = "snoozed" // after a wait; the attempt does not count
	verdictBack      = "back"    // not begun, or interrupted; the attempt does not count
	verdictDead      = "dead"
	verdictLost      = "lost" // said by another: the worker has died
)

// The states of a job; doc.go tells what they mean.
const (
	StateWaiting   = "waiting"
	StateBehind    = "behind"
	StateRunning   = "running"
	StateCompleted = "completed"
	StateDead      = "dead"
	StateCancelled = "cancelled"
	StateDiscarded = "discarded"
)

// failuresMax is how many failures of a job are kept: the first, and the last ones.
const failuresMax = 25

// outcome is what is to be stored of a job that was taken.
type outcome struct {
	id          uuid.UUID
	epoch       int64
	sequence    int64
	lock        string
	verdict     string
	wait        time.Duration
	failure     *string // JSON
	fingerprint *string
	result      *string // JSON
}

// runs is true for a job that is running. Adding nothing keeps the planner from the index of those, which may be full of entries of
// jobs that ran before.
const runs = `j.state || '' = 'running'`

// endSQL stores outcomes. An epoch that is not the job's any more changes nothing. A job that somebody wanted cancelled is
// not tried again.
func endSQL(t *Table) string {
	return `UPDATE ` + t.table("jobs") + ` AS j SET
			state = CASE WHEN o.verdict = 'completed' THEN 'completed' WHEN j.cancel_at IS NOT NULL THEN 'cancelled'
				WHEN o.verdict = 'dead' OR (o.verdict = 'lost' AND j.lost + 1 >= $8::int) THEN 'dead' ELSE 'waiting' END,
			finalized_at = CASE WHEN o.verdict IN ('completed', 'dead') OR j.cancel_at IS NOT NULL
				OR (o.verdict = 'lost' AND j.lost + 1 >= $8::int) THEN clock_timestamp() END,
			run_at = CASE WHEN o.verdict IN ('retry', 'snoozed') THEN clock_timestamp() + o.wait * interval '1 microsecond'
				ELSE j.run_at END,
			attempt = j.attempt - (o.verdict IN ('snoozed', 'back'))::int,
			lost = j.lost + (o.verdict = 'lost')::int,
			owner = NULL, result = coalesce(o.result, j.result), fingerprint = coalesce(o.fingerprint, j.fingerprint),
			failures = CASE WHEN o.failure IS NULL THEN j.failures
				ELSE (CASE WHEN jsonb_array_length(j.failures) >= $9::int THEN j.failures - 1 ELSE j.failures END)
					|| (o.failure::jsonb || jsonb_build_object('attempt', j.attempt)) END
		FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[])
			AS o (id, epoch, verdict, wait, failure, fingerprint, result)
		WHERE j.id = o.id AND j.epoch = o.epoch AND ` + runs + `
		RETURNING j.id, j.queue, j.state`
}

// progressSQL notes how far a job is.
func progressSQL(t *Table) string {
	return `UPDATE ` + t.table("jobs") + ` AS j SET progress = $3 WHERE j.id = $1 AND j.epoch = $2 AND ` + runs
}

// ended is what became of a job.
type ended struct {
	id    uuid.UUID
	queue string
	state string
}

// batchSender is a pool, which makes one transaction of a batch, or a transaction.
type batchSender interface {
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}

// end stores outcomes, and lets those follow that waited behind a lock key: all of it or nothing. It returns the jobs whose
// outcome was stored, for one that is missing is another worker's by now, and the queues to wake once it is committed.
func (t *Table) end(ctx context.Context, db batchSender, outcomes []outcome) (all []ended, woken []string, err error) {
	batch := &pgx.Batch{}
	batch.Queue(perValueSQL)
	keys, passed := keysOf(outcomes)
	if len(keys) > 0 {
		batch.Queue(t.sql.lockKeys, keys, passed)
	}
	t.queueEnd(batch, outcomes, &all)
	if len(keys) > 0 {
		batch.Queue(t.sql.settleKeys, keys).Query(func(rows pgx.Rows) (err error) {
			woken, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
	}
	if err := db.SendBatch(ctx, batch).Close(); err != nil {
		return nil, nil, fmt.Errorf("store outcomes of jobs: %w", err)
	}
	for _, e := range all {
		if e.state == StateWaiting {
			woken = append(woken, e.queue)
		}
	}
	slices.Sort(woken)
	return all, slices.Compact(woken), nil
}

func (t *Table) queueEnd(batch *pgx.Batch, outcomes []outcome, all *[]ended) {
	collect := func(rows pgx.Rows) error {
		var e ended
		_, err := pgx.ForEachRow(rows, []any{&e.id, &e.queue, &e.state}, func() error {
			*all = append(*all, e)
			return nil
		})
		return err
	}
	var forget, keep []outcome
	for _, o := range outcomes {
		if o.verdict == verdictCompleted && t.config.Keep.Completed >= 0 && t.config.Keep.Completed < time.Millisecond {
			forget = append(forget, o)
		} else {
			keep = append(keep, o)
		}
	}
	if len(forget) > 0 {
		ids, epochs := idsOf(forget)
		batch.Queue(`DELETE FROM `+t.table("jobs")+` AS j USING unnest($1::uuid[], $2::bigint[]) AS o (id, epoch)
			WHERE j.id = o.id AND j.epoch = o.epoch AND `+runs+`
			RETURNING j.id, j.queue, 'completed'`, ids, epochs).Query(collect)
	}
	if len(keep) > 0 {
		ids, epochs := idsOf(keep)
		n := len(keep)
		verdicts, waits := make([]string, n), make([]int64, n)
		failures, fingerprints, results := make([]*string, n), make([]*string, n), make([]*string, n)
		for i, o := range keep {
			verdicts[i], waits[i] = o.verdict, o.wait.Microseconds()
			failures[i], fingerprints[i], results[i] = o.failure, o.fingerprint, o.result
		}
		batch.Queue(t.sql.end, ids, epochs, verdicts, waits, failures, fingerprints, results, t.config.LostMax, failuresMax).Query(collect)
	}
}

func idsOf(outcomes []outcome) (ids []uuid.UUID, epochs []int64) {
	for _, o := range outcomes {
		ids = append(ids, o.id)
		epochs = append(epochs, o.epoch)
	}
	return ids, epochs
}

// keysOf returns the lock keys of the jobs, and the sequence of each job in its key.
func keysOf(outcomes []outcome) (keys []string, passed []int64) {
	for _, o := range outcomes {
		if o.lock != "" {
			keys = append(keys, o.lock)
			passed = append(passed, o.sequence)
		}
	}
	return keys, passed
}
