package postgres

import (
	"context"
	"crypto/md5" //nolint:gosec // spreads keys; nothing is guarded by it
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// What a consumer cannot handle is parked, with its key. The table has a line for each key: rows in the order of their
// positions, of which the head is tried again, or is dead and holds the others:
//
//	retry    the head; it is tried when run_at has come
//	behind   waits for those before it
//	held     the head; it is dead, and somebody has to decide
//	dead     dead, and out of the line: its key went on
//
// Rows that were taken along from another log (takealong.go) have positions below zero.
//
// A row that was handled is deleted, and the next one becomes the head (promote). Only the owner of the key's share touches
// a line, and only while its epoch holds: every change locks the share's row first. Operators do the same.
//
// A line ends when it has no rows left. The owner knows the keys that have one (parked, in line.go), and lets none of
// their events past it.

// Limits on parking.
const (
	failuresMax        = 25        // of one row that are kept: the first and the latest; all of them by the policy's default
	errorBytesMax      = 2 << 10   // of a failure's text
	stackBytesMax      = 8 << 10   // of its stack
	lineRowsMax        = 100       // that are taken from a line at once
	lineBytesMax       = 1 << 20   // likewise; one row at least
	dueKeysMax         = 64        // lines that are looked at in one turn
	parkedKeysMax      = 100_000   // of this process; beyond, a consumer slows down as when everything fails
	parkedTextOmission = " […]"    // ends what was cut
	classUnexplained   = "refused" // of a refusal without a class
)

// change is one thing to be done to a line.
type change struct {
	share    *share
	key      string
	position int64
	kind     changeKind
	entry    *entry        // to be parked
	state    string        // that it gets, for park and fail
	wait     time.Duration // of stateRetry
	failure  *failure      // nil for what only waits
}

type changeKind int

const (
	changePark   changeKind = iota // a row that was read from the log
	changeFail                     // a row that failed once more
	changeHandle                   // a row that was handled
)

const (
	stateRetry  = "retry"
	stateBehind = "behind"
	stateHeld   = "held"
	stateDead   = "dead"
)

// failure is what is kept of an attempt.
type failure struct {
	At      time.Time `json:"at"`
	Attempt int       `json:"attempt"`
	Class   string    `json:"class"`
	Error   string    `json:"error"`
	Stack   string    `json:"stack,omitempty"`
	Version string    `json:"version"`
}

// waitingRow is a row of a line, to be handled.
type waitingRow struct {
	row
	attempts int
}

func keyHash(key string) uuid.UUID { return uuid.UUID(md5.Sum([]byte(key))) } //nolint:gosec // see the import

// lockShares locks the rows of the shares that it still has by these epochs, and returns which they are.
func (h holder) lockShares(ctx context.Context, tx pgx.Tx, epochs map[int16]int64) (map[int16]bool, error) {
	var shares []int16
	var wanted []int64
	for number, epoch := range epochs {
		shares, wanted = append(shares, number), append(wanted, epoch)
	}
	rows, err := tx.Query(ctx, `SELECT s.share FROM `+h.log.table("consumer_shares")+` AS s
		JOIN unnest($3::smallint[], $4::bigint[]) AS w (share, epoch) USING (share, epoch)
		WHERE s.consumer = $1 AND s.owner = $2 AND `+h.log.sameServer("$5", "NULL")+` ORDER BY s.share FOR UPDATE OF s`,
		h.consumer, h.owner, shares, wanted, h.server)
	if err != nil {
		return nil, err
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int16])
	held := make(map[int16]bool, len(numbers))
	for _, n := range numbers {
		held[n] = true
	}
	return held, err
}

// park carries changes out, those of shares that it still has, in one transaction. It returns which shares those are: of
// the others nothing was changed.
func (h holder) park(ctx context.Context, changes []change) (held map[int16]bool, err error) {
	epochs := make(map[int16]int64)
	for _, c := range changes {
		epochs[c.share.number] = c.share.epoch
	}
	err = h.log.change(ctx, func(tx pgx.Tx) error {
		if held, err = h.lockShares(ctx, tx, epochs); err != nil {
			return err
		}
		batch := &pgx.Batch{}
		var lines []uuid.UUID
		passed := make(map[int16][]int64)
		for _, c := range changes {
			if !held[c.share.number] {
				continue
			}
			hash := keyHash(c.key)
			if !slices.Contains(lines, hash) {
				lines = append(lines, hash)
			}
			if err := h.log.queueChange(batch, h.consumer, hash, c); err != nil {
				return err
			}
			if c.kind == changePark {
				passed[c.share.number] = append(passed[c.share.number], c.position)
			}
		}
		// The line has it from here on. A successor whose place is before it must not take it from the log as well, after the
		// line has ended.
		for number, positions := range passed {
			batch.Queue(`UPDATE `+h.log.table("consumer_shares")+` SET ahead = ahead || $3::bigint[] WHERE consumer = $1 AND share = $2`,
				h.consumer, number, positions)
		}
		if batch.Len() == 0 {
			return nil
		}
		batch.Queue(h.log.promoteSQL(), h.consumer, lines)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return nil, fmt.Errorf("park events of %s: %w", h.consumer, err)
	}
	return held, nil
}

func (l *Log) queueChange(batch *pgx.Batch, consumer string, hash uuid.UUID, c change) error {
	table := l.table("parked")
	if c.kind == changeHandle {
		batch.Queue(`DELETE FROM `+table+` WHERE consumer = $1 AND key_hash = $2 AND position = $3`, consumer, hash, c.position)
		return nil
	}
	failures, fingerprint := []byte("[]"), (*string)(nil)
	if c.failure != nil {
		var err error
		if failures, err = json.Marshal([]failure{*c.failure}); err != nil {
			return fmt.Errorf("encode failure: %w", err)
		}
		alike := fingerprintOf(c.entry.eventType(), c.failure)
		fingerprint = &alike
	}
	const timing = `CASE WHEN $4 = 'retry' THEN clock_timestamp() + $5::interval END,
		CASE WHEN $4 IN ('held', 'dead') THEN clock_timestamp() END`
	if c.kind == changeFail {
		batch.Queue(`UPDATE `+table+` SET (state, run_at, dead_at) = ($4::text, `+timing+`), attempts = attempts + 1,
				failures = CASE WHEN jsonb_array_length(failures) >= $6 THEN failures - 1 ELSE failures END || $7::jsonb, fingerprint = $8
			WHERE consumer = $1 AND key_hash = $2 AND position = $3`,
			consumer, hash, c.position, c.state, c.wait, failuresMax, failures, fingerprint)
		return nil
	}
	attempts := 0
	if c.failure != nil {
		attempts = 1
	}
	batch.Queue(`INSERT INTO `+table+` (consumer, key_hash, position, state, run_at, dead_at, share, attempts, event_id, type, key,
			metadata, payload, failures, fingerprint)
		SELECT $1, $2, $3, $4::text, `+timing+`, $6, $7, $8, $9, $10, $11, $12, $13, $14
		ON CONFLICT DO NOTHING`,
		consumer, hash, c.position, c.state, c.wait, c.share.number, attempts, c.entry.id, c.entry.eventType(), c.key,
		c.entry.raw, c.entry.payload, failures, fingerprint)
	return nil
}

// promoteSQL makes the first row of each of the lines its head, if it is not yet. It finds the first by index and the row by
// its address, however many wait behind it: joined by their keys the two would be read whole while the table's statistics
// are those of an empty one.
func (l *Log) promoteSQL() string {
	return `UPDATE ` + l.table("parked") + ` SET state = 'retry', run_at = clock_timestamp() WHERE ctid = ANY (ARRAY(
		SELECT head.ctid FROM unnest($2::uuid[]) AS line (key_hash) CROSS JOIN LATERAL (
			SELECT ctid, state FROM ` + l.table("parked") + ` AS first
			WHERE first.consumer = $1 AND first.key_hash = line.key_hash AND first.state <> 'dead' ORDER BY position LIMIT 1) AS head
		WHERE head.state = 'behind'))`
}

// parkedKeys returns the keys of the shares that have a line, and whether its head is to be tried.
func (h holder) parkedKeys(ctx context.Context, shares []int16) (keys map[string]parkedHead, err error) {
	rows, err := h.log.pool.Query(ctx, `SELECT key, share, state = 'retry' FROM `+h.log.table("parked")+`
		WHERE consumer = $1 AND share = ANY ($2) AND state IN ('retry', 'held') AND `+h.log.sameServer("$3", "NULL"),
		h.consumer, shares, h.server)
	if err != nil {
		return nil, fmt.Errorf("read parked keys of %s: %w", h.consumer, err)
	}
	keys = make(map[string]parkedHead)
	var key string
	var head parkedHead
	_, err = pgx.ForEachRow(rows, []any{&key, &head.share, &head.retry}, func() error {
		head.retry = head.retry || keys[key].retry
		keys[key] = head
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read parked keys of %s: %w", h.consumer, err)
	}
	return keys, nil
}

type parkedHead struct {
	share int16
	retry bool
}

// dueKeys returns keys whose head is to be tried by now, the longest due first. A row further behind that is to be tried too,
// since one before it was dead and came back, is no head. The head is asked for row by row, as in promoteSQL.
func (h holder) dueKeys(ctx context.Context, shares []int16) (keys []string, err error) {
	rows, err := h.log.pool.Query(ctx, `SELECT key FROM `+h.log.table("parked")+` AS p
		WHERE consumer = $1 AND state = 'retry' AND run_at <= clock_timestamp() AND share = ANY ($2) AND `+h.log.sameServer("$4", "NULL")+`
		AND position = (SELECT position FROM `+h.log.table("parked")+` AS first WHERE first.consumer = p.consumer
			AND first.key_hash = p.key_hash AND first.state <> 'dead' ORDER BY position LIMIT 1)
		ORDER BY run_at LIMIT $3`, h.consumer, shares, dueKeysMax, h.server)
	if err != nil {
		return nil, fmt.Errorf("read due keys of %s: %w", h.consumer, err)
	}
	if keys, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return nil, fmt.Errorf("read due keys of %s: %w", h.consumer, err)
	}
	return keys, nil
}

// line returns the first rows of a key's line that may be handled, and whether it has any row at all. What comes after a
// dead row that holds the key is not for now.
func (h holder) line(ctx context.Context, key string) (waiting []waitingRow, exists bool, err error) {
	rows, err := h.log.pool.Query(ctx, `SELECT position, share, state = 'held' OR run_at > clock_timestamp(), attempts, event_id, metadata,
			payload
		FROM (SELECT *, sum(octet_length(payload)) OVER (ORDER BY position) - octet_length(payload) AS before
			FROM (SELECT * FROM `+h.log.table("parked")+` WHERE consumer = $1 AND key_hash = $2 AND state <> 'dead'
				ORDER BY position LIMIT $3) AS line) AS line
		WHERE before < $4 AND `+h.log.sameServer("$5", "NULL")+` ORDER BY position`,
		h.consumer, keyHash(key), lineRowsMax, lineBytesMax, h.server)
	if err != nil {
		return nil, false, fmt.Errorf("read parked events of %s: %w", h.consumer, err)
	}
	stopped := false
	var w waitingRow
	var stops *bool
	_, err = pgx.ForEachRow(rows, []any{&w.position, &w.share, &stops, &w.attempts, &w.id, &w.raw, &w.payload}, func() error {
		exists = true
		if stopped = stopped || stops != nil && *stops; stopped {
			return nil
		}
		next := w
		if next.metadata, err = decodeMetadata(w.raw); err != nil {
			return fmt.Errorf("position %d: metadata is not JSON", w.position)
		}
		next.payload = append([]byte(nil), w.payload...)
		waiting = append(waiting, next)
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read parked events of %s: %w", h.consumer, err)
	}
	return waiting, exists, nil
}

// cut makes a text fit for a column: without what Postgres refuses, and not too long.
func cut(s string, bytes int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	if len(s) > bytes {
		s = strings.ToValidUTF8(s[:bytes-len(parkedTextOmission)], "") + parkedTextOmission
	}
	return s
}
