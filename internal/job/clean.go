package job

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// cleanMax is how many jobs one statement of Clean deletes.
const cleanMax = 1000

// Maintain deletes jobs that have been kept for long enough, again and again, until ctx ends. Any number of processes may
// do so.
func (t *Table) Maintain(ctx context.Context) error {
	for ctx.Err() == nil {
		if _, err := t.Clean(ctx); err != nil && ctx.Err() == nil {
			t.logger.Warn("work table is not cleaned, will go on by itself", slog.Any("error", err))
		}
		sleep(ctx, t.config.CleanEvery)
	}
	return nil
}

// Clean deletes the jobs that have ended and were kept for as long as Config.Keep says, and returns how many. It reads the
// index of those that have ended, from the oldest on, and touches no job that has not; TestCleaningReadsOnlyWhatHasEnded has
// the plan.
func (t *Table) Clean(ctx context.Context) (n int, err error) {
	keep := t.config.Keep
	for state, age := range map[string]time.Duration{
		StateCompleted: keep.Completed, StateDead: keep.Dead, StateCancelled: keep.Cancelled, StateDiscarded: keep.Cancelled,
	} {
		for deleted := cleanMax; deleted == cleanMax && age >= 0; n += deleted {
			tag, err := t.pool.Exec(ctx, cleanSQL(t), t.perValue, state, age.Microseconds(), cleanMax)
			if err != nil {
				return n, fmt.Errorf("clean work table: %w", err)
			}
			deleted = int(tag.RowsAffected())
		}
	}
	return n, nil
}

func cleanSQL(t *Table) string {
	return `DELETE FROM ` + t.table("jobs") + ` WHERE id = ANY (ARRAY(
		SELECT id FROM ` + t.table("jobs") + `
		WHERE state = $1 AND finalized_at IS NOT NULL AND finalized_at < statement_timestamp() - $2::bigint * interval '1 microsecond'
		ORDER BY finalized_at LIMIT $3 FOR UPDATE SKIP LOCKED))`
}
