package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Limits on what is shown of dead jobs at once.
const (
	groupsMax   = 1000
	deadListMax = 200
)

// Group is dead jobs of a queue and kind that failed of the same.
type Group struct {
	Queue, Kind, Fingerprint string
	Count                    int
	First, Last              time.Time // when they died
	Example                  uuid.UUID // the one that died last
	Class, Error             string    // of its last failure
}

// Dead returns the dead jobs by queue, kind and fingerprint, the largest group first.
func (t *Table) Dead(ctx context.Context) ([]Group, error) {
	rows, err := t.pool.Query(ctx, `SELECT queue, kind, coalesce(fingerprint, ''), count(*), min(finalized_at), max(finalized_at),
			(array_agg(id ORDER BY finalized_at DESC, id))[1],
			coalesce((array_agg(failures -> -1 ->> 'class' ORDER BY finalized_at DESC, id))[1], ''),
			coalesce((array_agg(failures -> -1 ->> 'error' ORDER BY finalized_at DESC, id))[1], '')
		FROM `+t.table("jobs")+`
		WHERE state = 'dead' GROUP BY queue, kind, fingerprint ORDER BY count(*) DESC, queue, kind, fingerprint LIMIT $1`,
		t.perValue, groupsMax)
	if err != nil {
		return nil, fmt.Errorf("look at dead jobs: %w", err)
	}
	groups, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Group])
	if err != nil {
		return nil, fmt.Errorf("look at dead jobs: %w", err)
	}
	return groups, nil
}

// DeadJobs returns the selected jobs, the longest dead first, at most 200.
func (t *Table) DeadJobs(ctx context.Context, which Selection) ([]Status, error) {
	if which.empty() {
		return nil, nil
	}
	rows, err := t.pool.Query(ctx, `SELECT id FROM `+t.table("jobs")+` WHERE `+which.where()+`
		ORDER BY finalized_at, sequence LIMIT $6`, append([]any{t.perValue}, append(which.args(), deadListMax)...)...)
	if err != nil {
		return nil, fmt.Errorf("look at dead jobs: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("look at dead jobs: %w", err)
	}
	var all []Status
	for _, id := range ids {
		s, err := t.Get(ctx, id)
		if errors.Is(err, ErrNotFound) { // its time was up meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// CountDead tells how many jobs a selection means.
func (t *Table) CountDead(ctx context.Context, which Selection) (n int, err error) {
	if which.empty() {
		return 0, nil
	}
	err = t.pool.QueryRow(ctx, `SELECT count(*) FROM `+t.table("jobs")+` WHERE `+which.where(),
		append([]any{t.perValue}, which.args()...)...).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count dead jobs: %w", err)
	}
	return n, nil
}
