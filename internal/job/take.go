package job

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// row is a job as it was taken.
type row struct {
	id       uuid.UUID
	sequence int64
	epoch    int64
	kind     string
	priority int16
	runAt    time.Time
	attempt  int
	lock     string
	metadata string
	args     []byte
}

// takeSQL takes the next due jobs of a queue, the highest priority first, and renews the worker's lease, or begins it.
//
// The lease is left as it is while no more than leaseSlack of it is over: while somebody's transaction is open each version of
// its row stays, and the next take goes through all of them. So it never becomes shorter either, although the time here is drawn
// before the wait for the row. The row is locked in any case.
//
// A row that another takes at the same time is passed over. The lateral join is carried out priority by priority and ends
// with the limit, so that no row is locked that is not taken. The floors are where the last look ended (floors).
// Whoever declares a worker dead deletes its row first and then looks for its jobs: a job is either taken before that, and
// found, or the lease is begun anew after it. A take that finds nothing writes nothing and needs no transaction id.
func takeSQL(t *Table) string {
	return `WITH picked AS MATERIALIZED (
			SELECT next.id
			FROM unnest($4::smallint[], $5::timestamptz[]) AS p (priority, floor)
			CROSS JOIN LATERAL (
				SELECT id FROM ` + t.table("jobs") + `
				WHERE state = 'waiting' AND queue = $2 AND priority = p.priority
					AND run_at >= p.floor AND run_at <= statement_timestamp()
				ORDER BY run_at, sequence LIMIT $3::bigint FOR UPDATE SKIP LOCKED) AS next
			LIMIT $3::bigint),
		leased AS (
			INSERT INTO ` + t.table("job_workers") + ` AS w (owner, lease_until)
			SELECT $1::text, clock_timestamp() + $6::bigint * interval '1 microsecond' WHERE EXISTS (SELECT FROM picked)
			ON CONFLICT (owner) DO UPDATE SET lease_until = excluded.lease_until
				WHERE w.lease_until < excluded.lease_until - $7::bigint * interval '1 microsecond')
		UPDATE ` + t.table("jobs") + ` AS j
		SET state = 'running', owner = $1, epoch = j.epoch + 1, attempt = j.attempt + 1, started_at = clock_timestamp()
		FROM picked WHERE j.id = picked.id
		RETURNING j.id, j.sequence, j.epoch, j.kind, j.priority, j.run_at, j.attempt, coalesce(j.lock_key, ''), j.metadata, j.args`
}

// leaseSlack is how much of a lease may be over when a take leaves it as it is: about a heartbeat.
func (t *Table) leaseSlack() time.Duration { return t.config.Lease / 5 }

// take takes up to n jobs of the queue, in the order in which they are to be begun.
func (t *Table) take(ctx context.Context, owner, queue string, n int, floors []time.Time) ([]row, error) {
	rows, err := t.pool.Query(ctx, t.sql.take, t.perValue, owner, queue, n, priorities(), floors, t.config.Lease.Microseconds(),
		t.leaseSlack().Microseconds())
	if err != nil {
		return nil, fmt.Errorf("take jobs of %s: %w", queue, err)
	}
	taken, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (j row, err error) {
		err = r.Scan(&j.id, &j.sequence, &j.epoch, &j.kind, &j.priority, &j.runAt, &j.attempt, &j.lock, &j.metadata, &j.args)
		return j, err
	})
	if err != nil {
		return nil, fmt.Errorf("take jobs of %s: %w", queue, err)
	}
	slices.SortFunc(taken, func(a, b row) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), a.runAt.Compare(b.runAt), cmp.Compare(a.sequence, b.sequence))
	})
	return taken, nil
}

// decodeMetadata reads what Metadata gave; what is not an object has none.
func decodeMetadata(encoded string) map[string]string {
	metadata := make(map[string]string)
	if err := json.Unmarshal([]byte(encoded), &metadata); err != nil || metadata == nil {
		return make(map[string]string)
	}
	return metadata
}

const (
	// slowTake is how long a look from the beginning may take before the next ones begin where it ended.
	slowTake = 5 * time.Millisecond
	// floorSlack is how far back they begin nevertheless. A job's time is drawn right before its commit.
	floorSlack = 250 * time.Millisecond
	// rescanEvery is how soon a look goes back to the beginning all the same, and rescanShare the part of the time that such
	// looks may take.
	rescanEvery = time.Second
	rescanShare = 20
)

// floors are where the looks at a queue begin, for each priority. Normally that is the beginning. While somebody keeps a
// transaction open, though, nothing that was taken since leaves the index, and each look would go through all of it: then
// looks begin shortly before where the last one ended. What comes in below is found when a look goes back, once a second
// or so.
type floors struct {
	at     []time.Time // nil: from the beginning
	rescan time.Time
}

// looking is one look at a queue.
type looking struct {
	asked time.Time   // by this process's clock
	from  []time.Time // for each priority, by the database's
	whole bool        // from the beginning
}

func (f *floors) next(now time.Time) looking {
	if f.at != nil && now.Before(f.rescan) {
		return looking{asked: now, from: slices.Clone(f.at)}
	}
	return looking{asked: now, from: make([]time.Time, len(priorities())), whole: true}
}

// looked notes how far a take has come in each priority, by the database's clock. The zero time tells nothing.
func (f *floors) looked(l looking, reached []time.Time) {
	took := time.Since(l.asked)
	switch {
	case l.whole && took < slowTake:
		f.at = nil
	case l.whole:
		f.at = make([]time.Time, len(l.from))
		f.rescan = time.Now().Add(max(rescanEvery, rescanShare*took))
	}
	for i := range f.at {
		if floor := reached[i].Add(-floorSlack); !reached[i].IsZero() && floor.After(f.at[i]) {
			f.at[i] = floor
		}
	}
}

// reachedBy is how far a take has come.
func reachedBy(found []row) []time.Time {
	reached := make([]time.Time, len(priorities()))
	for _, r := range found {
		i := int(int16(PriorityMax) - r.priority)
		if r.runAt.After(reached[i]) {
			reached[i] = r.runAt
		}
	}
	return reached
}
