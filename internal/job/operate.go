package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Status is a job as the table has it.
type Status struct {
	ID          uuid.UUID
	Kind, Queue string
	Priority    int8
	State       string
	RunAt       time.Time
	CreatedAt   time.Time
	LockKey     string
	UniqueKey   string
	Args        json.RawMessage
	Metadata    map[string]string
	Attempt     int        // of the last run that was begun; 0 before the first
	Lost        int        // how often its worker died
	Owner       string     // the worker that runs it, as host/pid/…
	StartedAt   *time.Time // of the last run; nil before the first
	CancelAt    *time.Time // when somebody cancelled it
	FinalizedAt *time.Time // nil until it has ended
	Progress    json.RawMessage
	Result      json.RawMessage
	Failures    []Failure // the first and the latest ones
	Fingerprint string    // of the last failure
	Notes       []Note
}

// Note tells who did what to a job, and when.
type Note struct {
	At   time.Time `json:"at"`
	By   string    `json:"by"`   // who, and why where they said so
	What string    `json:"what"` // retried, discarded, cancelled
}

// Get returns a job, or ErrNotFound.
func (t *Table) Get(ctx context.Context, id uuid.UUID) (Status, error) {
	s := Status{ID: id}
	var metadata, args string
	var progress, result *string
	var failures, notes []byte
	err := t.pool.QueryRow(ctx, `SELECT kind, queue, priority, state, run_at, created_at, coalesce(lock_key, ''),
			coalesce(unique_key, ''), args, metadata, attempt, lost, coalesce(owner, ''), started_at, cancel_at, finalized_at,
			progress, result, failures, coalesce(fingerprint, ''), notes
		FROM `+t.table("jobs")+` WHERE id = $1`, t.perValue, id).
		Scan(&s.Kind, &s.Queue, &s.Priority, &s.State, &s.RunAt, &s.CreatedAt, &s.LockKey, &s.UniqueKey, &args, &metadata,
			&s.Attempt, &s.Lost, &s.Owner, &s.StartedAt, &s.CancelAt, &s.FinalizedAt, &progress, &result, &failures,
			&s.Fingerprint, &notes)
	if errors.Is(err, pgx.ErrNoRows) {
		return Status{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	if err != nil {
		return Status{}, fmt.Errorf("get job: %w", err)
	}
	s.Args, s.Metadata = json.RawMessage(args), decodeMetadata(metadata)
	if progress != nil {
		s.Progress = json.RawMessage(*progress)
	}
	if result != nil {
		s.Result = json.RawMessage(*result)
	}
	if err := errors.Join(json.Unmarshal(failures, &s.Failures), json.Unmarshal(notes, &s.Notes)); err != nil {
		return Status{}, fmt.Errorf("read job's history: %w", err)
	}
	return s, nil
}

// Cancel keeps a job from running, or ends the context of its handler, within a second or so, and keeps it from being tried
// again. It returns the state that the job is in then: StateCancelled; StateRunning, when it has been told; or the state in
// which it had ended before. A running job whose handler succeeds all the same is completed. It returns ErrNotFound.
func (t *Table) Cancel(ctx context.Context, id uuid.UUID, by string) (state string, err error) {
	var woken []string
	err = t.change(ctx, func(tx pgx.Tx) error {
		var lock string
		err := tx.QueryRow(ctx, `SELECT coalesce(lock_key, ''), state FROM `+t.table("jobs")+` WHERE id = $1`, t.perValue, id).
			Scan(&lock, &state)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("%w: %s", ErrNotFound, id)
		}
		if err != nil {
			return err
		}
		woken, err = t.underKeys(ctx, tx, keysIn(lock), func() error {
			err := tx.QueryRow(ctx, `UPDATE `+t.table("jobs")+` SET
					state = CASE WHEN state = 'running' THEN state ELSE 'cancelled' END,
					finalized_at = CASE WHEN state = 'running' THEN NULL ELSE clock_timestamp() END,
					cancel_at = coalesce(cancel_at, clock_timestamp()), notes = notes || $2::jsonb
				WHERE id = $1 AND state IN ('waiting', 'behind', 'running') RETURNING state`,
				t.perValue, id, noteOf(by, "cancelled")).Scan(&state)
			if errors.Is(err, pgx.ErrNoRows) { // it has ended
				return tx.QueryRow(ctx, `SELECT state FROM `+t.table("jobs")+` WHERE id = $1`, t.perValue, id).Scan(&state)
			}
			return err
		})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("cancel job: %w", err)
	}
	if state == StateRunning {
		woken = append(woken, cancelSignal)
		t.beatNow()
	}
	t.Wake(woken...)
	return state, nil
}

// beatNow has this process's worker look for what is to be cancelled.
func (t *Table) beatNow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.worker != nil {
		signal(t.worker.beat)
	}
}

// underKeys locks the keys, has change change jobs, and lets the next ones follow. It returns the queues to wake.
func (t *Table) underKeys(ctx context.Context, tx pgx.Tx, keys []string, change func() error) (woken []string, err error) {
	if len(keys) > 0 {
		if _, err := tx.Exec(ctx, t.sql.lockKeys, keys, make([]int64, len(keys))); err != nil {
			return nil, err
		}
	}
	if err := change(); err != nil || len(keys) == 0 {
		return nil, err
	}
	rows, err := tx.Query(ctx, t.sql.settleKeys, t.perValue, keys)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func keysIn(locks ...string) (keys []string) {
	for _, lock := range locks {
		if lock != "" {
			keys = append(keys, lock)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func noteOf(by, what string) string {
	encoded, err := json.Marshal([]Note{{At: time.Now().UTC(), By: cut(by, noteBytesMax), What: what}})
	if err != nil {
		return "[]" // it is made of text and a time
	}
	return string(encoded)
}

// noteBytesMax bounds what is kept of a note.
const noteBytesMax = 2 << 10

// Selection says which dead jobs are meant: those with one of the ids, or those of a queue, of a kind, with a fingerprint, with a
// lock key, or what of these is given. An empty one selects nothing. By its id a job is meant also when it was cancelled or discarded.
type Selection struct {
	IDs         []uuid.UUID
	Queue       string
	Kind        string
	Fingerprint string
	LockKey     string
}

func (s Selection) empty() bool {
	return len(s.IDs) == 0 && s.Queue == "" && s.Kind == "" && s.Fingerprint == "" && s.LockKey == ""
}

// where is the condition of a selection, which is not empty, with the parameters of args.
func (s Selection) where() string {
	const alike = ` AND ($1 = '' OR queue = $1) AND ($2 = '' OR kind = $2) AND ($3 = '' OR fingerprint = $3)
		AND ($5 = '' OR lock_key = $5)`
	if len(s.IDs) > 0 {
		return `state IN ('dead', 'cancelled', 'discarded') AND id = ANY ($4)` + alike
	}
	return `state = 'dead' AND coalesce(cardinality($4::uuid[]), 0) = 0` + alike
}

func (s Selection) args() []any { return []any{s.Queue, s.Kind, s.Fingerprint, s.IDs, s.LockKey} }

// sweepMax is how many jobs one transaction of Retry or Discard changes.
const sweepMax = 1000

// Retry has dead jobs tried again, from the first attempt on, in the order in which they were enqueued; one with a lock key
// goes behind those that its key has by now. What they failed of stays noted, with who retried them. One whose unique key
// was taken meanwhile stays dead. It returns how many there were.
func (t *Table) Retry(ctx context.Context, which Selection, by string) (int, error) {
	update := `UPDATE ` + t.table("jobs") + ` AS j
		SET state = CASE WHEN j.lock_key IS NULL THEN 'waiting' ELSE 'behind' END, sequence = next.sequence,
			run_at = clock_timestamp(), attempt = 0, lost = 0, cancel_at = NULL, finalized_at = NULL, notes = j.notes || $2::jsonb
		FROM (SELECT id, nextval(pg_get_serial_sequence($3, 'sequence')) AS sequence FROM (
				SELECT DISTINCT ON (c.kind, coalesce(c.unique_key, c.id::text)) c.id, c.sequence FROM ` + t.table("jobs") + ` AS c
				WHERE c.id = ANY ($1) AND NOT EXISTS (SELECT FROM ` + t.table("jobs") + ` AS o
					WHERE o.kind = c.kind AND o.unique_key = c.unique_key AND o.state IN ('waiting', 'behind', 'running'))
				ORDER BY c.kind, coalesce(c.unique_key, c.id::text), c.sequence) AS chosen
			ORDER BY chosen.sequence) AS next
		WHERE j.id = next.id AND j.state IN ('dead', 'cancelled', 'discarded') RETURNING j.queue`
	n, err := t.sweep(ctx, which, update, noteOf(by, "retried"), t.table("jobs"))
	if err != nil {
		return n, fmt.Errorf("retry jobs: %w", err)
	}
	return n, nil
}

// Discard gives dead jobs up: they are kept like cancelled ones, with who did it. It returns how many there were.
func (t *Table) Discard(ctx context.Context, which Selection, by string) (int, error) {
	n, err := t.sweep(ctx, which, `UPDATE `+t.table("jobs")+` AS j
		SET state = 'discarded', finalized_at = clock_timestamp(), notes = j.notes || $2::jsonb
		WHERE j.id = ANY ($1) AND j.state = 'dead' RETURNING j.queue`, noteOf(by, "discarded"))
	if err != nil {
		return n, fmt.Errorf("discard jobs: %w", err)
	}
	return n, nil
}

// sweep carries out an update of the selected jobs, some at a time, each time with the lock keys of those.
func (t *Table) sweep(ctx context.Context, which Selection, update string, args ...any) (n int, err error) {
	after := int64(-1)
	last := int64(0) // what is retried draws a new sequence, beyond it
	err = t.pool.QueryRow(ctx, `SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence($1, 'sequence')::regclass), 0)`,
		t.table("jobs")).Scan(&last)
	for err == nil && after < last {
		var woken []string
		var changed int
		var next int64
		err = t.change(ctx, func(tx pgx.Tx) error {
			var ids []uuid.UUID
			var locks []string
			var err error
			ids, locks, next, err = t.selected(ctx, tx, which, after, last)
			if err != nil {
				return err
			}
			changed, woken = 0, nil
			if len(ids) == 0 {
				return nil
			}
			var queues []string
			woken, err = t.underKeys(ctx, tx, keysIn(locks...), func() error {
				rows, err := tx.Query(ctx, update, append([]any{t.perValue, ids}, args...)...)
				if err == nil {
					queues, err = pgx.CollectRows(rows, pgx.RowTo[string])
				}
				return err
			})
			changed, woken = len(queues), append(woken, queues...)
			return err
		})
		if err == nil {
			after = next
			n += changed
			slices.Sort(woken)
			t.Wake(slices.Compact(woken)...)
		}
	}
	return n, err
}

// selected returns the next of the selected jobs beyond a sequence, and up to which sequence it has looked.
func (t *Table) selected(ctx context.Context, tx pgx.Tx, which Selection, after, last int64) (
	ids []uuid.UUID, locks []string, next int64, err error,
) {
	if which.empty() {
		return nil, nil, last, nil
	}
	rows, err := tx.Query(ctx, `SELECT id, coalesce(lock_key, ''), sequence FROM `+t.table("jobs")+`
		WHERE `+which.where()+` AND sequence > $6 AND sequence <= $7 ORDER BY sequence LIMIT $8`,
		append([]any{t.perValue}, append(which.args(), after, last, sweepMax)...)...)
	if err != nil {
		return nil, nil, 0, err
	}
	var id uuid.UUID
	var lock string
	_, err = pgx.ForEachRow(rows, []any{&id, &lock, &next}, func() error {
		ids, locks = append(ids, id), append(locks, lock)
		return nil
	})
	if len(ids) < sweepMax {
		next = last
	}
	return ids, locks, next, err
}
