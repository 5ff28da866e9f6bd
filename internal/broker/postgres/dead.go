package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Limits on dead letters.
const (
	deadListMax      = 200                 // that are listed at once
	deadPayloadMax   = 256 << 10           // bytes of a payload that is edited, as of one that is published
	resolvedAge      = 30 * 24 * time.Hour // that a discarded one is kept, with the note
	resolvedSweepMax = 5000                // that one statement deletes
)

// Dead selects dead events: all of a consumer's, or those that failed alike, or of a key, or one.
type Dead struct {
	Consumer string
	Group    string    // "" for any
	Key      string    // "" for any
	Event    uuid.UUID // uuid.Nil for any
}

// DeadGroup are the dead events of a consumer that failed alike.
type DeadGroup struct {
	Consumer, Group, Type, Class, Error string
	Count                               int
	First, Last                         time.Time
}

// DeadLetter is an event that a consumer has given up.
type DeadLetter struct {
	Consumer, Group, Type, Key string
	Event                      uuid.UUID
	// Holds tells whether later events of the key wait for a decision, and Behind how many, up to a limit.
	Holds    bool
	Behind   int
	Attempts int
	DeadAt   time.Time
	Metadata json.RawMessage
	Payload  []byte
	// Failures are the first attempt and the latest, Notes what operators did.
	Failures, Notes json.RawMessage
}

// Resolution is what somebody has decided about dead events.
type Resolution int

const (
	// Retry has them tried again, in the order of each key and with new attempts.
	Retry Resolution = iota
	// Discard gives them up for good. They are kept with the note for thirty days. Keys that they held go on.
	Discard
	// Release lets the keys that they hold go on, and leaves them dead.
	Release
)

// Note says who decided, and why.
type Note struct{ By, Text string }

// ErrNotOne is returned when a payload is given for other than exactly one dead event.
var ErrNotOne = errors.New("a payload is for exactly one dead event")

// whereDead are the conditions of a selection, as parameters $1 to $4.
const whereDead = `consumer = $1 AND state IN ('held', 'dead') AND resolved_at IS NULL
	AND ($2 = '' OR fingerprint = $2) AND ($3 = '' OR key = $3) AND ($4::uuid IS NULL OR event_id = $4)`

func (d Dead) args() []any {
	var event *uuid.UUID
	if d.Event != uuid.Nil {
		event = &d.Event
	}
	return []any{d.Consumer, d.Group, d.Key, event}
}

// DeadGroups lists what is dead, by consumer and by how it failed, at most 200 groups.
func (l *Log) DeadGroups(ctx context.Context) ([]DeadGroup, error) {
	rows, err := l.pool.Query(ctx, `SELECT consumer, coalesce(fingerprint, ''), min(type), min(failures -> -1 ->> 'class'),
			min(failures -> -1 ->> 'error'), count(*), min(dead_at), max(dead_at)
		FROM `+l.table("parked")+` WHERE state IN ('held', 'dead') AND resolved_at IS NULL
		GROUP BY consumer, fingerprint ORDER BY consumer, min(dead_at) LIMIT $1`, deadListMax)
	if err != nil {
		return nil, fmt.Errorf("list dead events: %w", err)
	}
	groups, err := pgx.CollectRows(rows, pgx.RowToStructByPos[DeadGroup])
	if err != nil {
		return nil, fmt.Errorf("list dead events: %w", err)
	}
	return groups, nil
}

// DeadLetters returns the selected dead events, the longest dead first, at most 200.
func (l *Log) DeadLetters(ctx context.Context, which Dead) ([]DeadLetter, error) {
	rows, err := l.pool.Query(ctx, `SELECT consumer, coalesce(fingerprint, ''), type, key, event_id, state = 'held',
			CASE WHEN state = 'held' THEN (SELECT count(*) FROM (SELECT FROM `+l.table("parked")+` AS b
				WHERE b.consumer = p.consumer AND b.key_hash = p.key_hash AND b.state = 'behind' LIMIT $6) AS behind) ELSE 0 END,
			attempts, dead_at, metadata::json, payload, failures, notes
		FROM `+l.table("parked")+` AS p WHERE `+whereDead+` ORDER BY dead_at, position LIMIT $5`,
		append(which.args(), deadListMax, waitingMax)...)
	if err != nil {
		return nil, fmt.Errorf("read dead events: %w", err)
	}
	letters, err := pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetter])
	if err != nil {
		return nil, fmt.Errorf("read dead events: %w", err)
	}
	return letters, nil
}

// Resolve carries a decision about the selected dead events out, with a note of who made it, and returns how many there
// were. With dryRun it only counts. A payload, if not nil, takes the place of the event's own, which must be the only one
// selected (ErrNotOne). It may be called while the consumer works; keys go on within a second.
func (l *Log) Resolve(ctx context.Context, which Dead, what Resolution, note Note, payload []byte, dryRun bool) (n int, err error) {
	if len(payload) > deadPayloadMax {
		return 0, fmt.Errorf("resolve dead events: payload has %d bytes, deadPayloadMax is %d", len(payload), deadPayloadMax)
	}
	err = l.change(ctx, func(tx pgx.Tx) error {
		// What the owners of these lines do meanwhile waits.
		if _, err := tx.Exec(ctx, `SELECT FROM `+l.table("consumer_shares")+` WHERE consumer = $1 ORDER BY share FOR UPDATE`,
			which.Consumer); err != nil {
			return err
		}
		if n, err = l.resolve(ctx, tx, which, what, note, payload); err != nil {
			return err
		}
		if payload != nil && n != 1 {
			return ErrNotOne
		}
		if dryRun {
			return errDryRun
		}
		return nil
	})
	if err != nil && !errors.Is(err, errDryRun) {
		return 0, fmt.Errorf("resolve dead events of %s: %w", which.Consumer, err)
	}
	if !dryRun {
		l.wakeup.signal(dueMark + which.Consumer)
	}
	return n, nil
}

func (l *Log) resolve(ctx context.Context, tx pgx.Tx, which Dead, what Resolution, note Note, payload []byte) (n int, err error) {
	where := whereDead
	if what == Release {
		where += ` AND state = 'held'`
	}
	noted, err := json.Marshal([]map[string]any{{
		"at": time.Now().UTC(), "by": cut(note.By, errorBytesMax), "did": what.String(), "note": cut(note.Text, errorBytesMax),
		"edited": payload != nil,
	}})
	if err != nil {
		return 0, fmt.Errorf("encode note: %w", err)
	}
	rows, err := tx.Query(ctx, `UPDATE `+l.table("parked")+` SET notes = notes || $5::jsonb, `+resolutionSQL(what)+`
		WHERE `+where+` RETURNING key_hash`, append(which.args(), noted, payload)...)
	if err != nil {
		return 0, err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return 0, err
	}
	_, err = tx.Exec(ctx, l.promoteSQL(), which.Consumer, lines)
	return len(lines), err
}

func resolutionSQL(what Resolution) string {
	const edited = `payload = coalesce($6::bytea, payload)`
	switch what {
	case Retry: // those that are their lines' heads are made so afterwards
		return `state = 'behind', dead_at = NULL, attempts = 0, ` + edited
	case Discard:
		return `state = 'dead', resolved_at = clock_timestamp(), ` + edited
	default:
		return `state = 'dead', ` + edited
	}
}

// String is the verb, as it stands in notes.
func (r Resolution) String() string {
	switch r {
	case Retry:
		return "retry"
	case Discard:
		return "discard"
	default:
		return "release"
	}
}

// sweepResolved deletes what was discarded long ago.
func (l *Log) sweepResolved(ctx context.Context) error {
	_, err := l.pool.Exec(ctx, `DELETE FROM `+l.table("parked")+` WHERE ctid = ANY (ARRAY(SELECT ctid FROM `+l.table("parked")+`
		WHERE resolved_at < now() - $1::interval LIMIT $2))`, resolvedAge, resolvedSweepMax)
	if err != nil {
		return fmt.Errorf("sweep discarded events: %w", err)
	}
	return nil
}
