package job

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// countMax is how far jobs are counted.
const countMax = 10_000

// QueueStatus is where a queue stands.
type QueueStatus struct {
	Waiting int           // due, and not tried yet; countMax at most
	Oldest  time.Duration // how long the first of those has been due; 0 if there is none
	Parked  int           // tried, and to be tried again, or behind their lock key
	Dead    int
	Running map[string]int // by worker, as host/pid/…
}

// QueueStatus tells where a queue stands. It only reads. A queue that has no jobs is not known, and empty.
func (t *Table) QueueStatus(ctx context.Context, queue string) (QueueStatus, error) {
	var s QueueStatus
	var oldest float64
	err := t.pool.QueryRow(ctx, `WITH waiting AS (
			SELECT due.run_at FROM unnest($2::smallint[]) AS p (priority) CROSS JOIN LATERAL (
				SELECT run_at FROM `+t.table("jobs")+` WHERE state = 'waiting' AND queue = $1 AND priority = p.priority
					AND run_at <= statement_timestamp() AND attempt = 0 ORDER BY run_at LIMIT $3) AS due
			LIMIT $3)
		SELECT (SELECT count(*) FROM waiting),
			(SELECT coalesce(extract(epoch FROM clock_timestamp() - min(run_at)), 0)::float8 FROM waiting),
			(SELECT count(*) FROM (SELECT FROM `+t.table("jobs")+` WHERE queue = $1
				AND (state = 'behind' OR (state = 'waiting' AND attempt > 0)) LIMIT $3) AS parked),
			(SELECT count(*) FROM (SELECT FROM `+t.table("jobs")+` WHERE queue = $1 AND state = 'dead' LIMIT $3) AS dead)`,
		t.perValue, queue, priorities(), countMax).Scan(&s.Waiting, &oldest, &s.Parked, &s.Dead)
	if err != nil {
		return QueueStatus{}, fmt.Errorf("look at queue %s: %w", queue, err)
	}
	s.Oldest = time.Duration(oldest * float64(time.Second))
	rows, err := t.pool.Query(ctx, `SELECT coalesce(owner, ''), count(*) FROM `+t.table("jobs")+`
		WHERE state = 'running' AND queue = $1 GROUP BY 1`, t.perValue, queue)
	if err != nil {
		return QueueStatus{}, fmt.Errorf("look at queue %s: %w", queue, err)
	}
	s.Running = make(map[string]int)
	var owner string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&owner, &n}, func() error {
		s.Running[owner] = n
		return nil
	})
	if err != nil {
		return QueueStatus{}, fmt.Errorf("look at queue %s: %w", queue, err)
	}
	return s, nil
}
