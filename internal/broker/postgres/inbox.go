package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// The inbox holds (event, consumer) for each effect that was committed, so that an event that is delivered again has none.
// A row is written in the transaction of its effect. It may go when no delivery can bring its event again: when the
// consumer has passed it for good. The event was committed before its handler began, and a row's transaction id is drawn
// after that; so if a share's snapshot has no transaction under way up to the row's id, it has the event too. What is parked may come
// again however long ago it was passed.
const (
	// inboxAge is how long a row is kept beyond the time at which its event was made, whatever the consumer has passed: a
	// process that was paused in the middle of a handler may come back.
	inboxAge = 7 * 24 * time.Hour
	// inboxAgeForeign holds for handlers that have no place in the log: those of jobs, and of consumers that are gone.
	inboxAgeForeign = 60 * 24 * time.Hour
	// inboxSweepMax is how many rows one statement deletes.
	inboxSweepMax = 5000
)

// Enter queues the note that the consumer has handled the event on a batch that the caller sends at the beginning of the
// transaction in which it does so. It affects one row, or none when the effect was committed before; a transaction
// that is at the same event is waited for.
func (l *Log) Enter(batch *pgx.Batch, consumer string, event uuid.UUID) {
	batch.Queue(`INSERT INTO `+l.table("inbox")+` (event_id, consumer) VALUES ($1, $2) ON CONFLICT DO NOTHING`, event, consumer)
}

// sweepInbox deletes what can come no more. Ids are UUIDv7 and begin with the time, so the rows in question are the first
// ones of the primary key, and live ones are not looked at. It returns how many there were.
func (l *Log) sweepInbox(ctx context.Context) (int64, error) {
	tag, err := l.pool.Exec(ctx, l.sweepInboxSQL(), inboxAge, inboxAgeForeign, inboxSweepMax)
	if err != nil {
		return 0, fmt.Errorf("sweep inbox: %w", err)
	}
	return tag.RowsAffected(), nil
}

func (l *Log) sweepInboxSQL() string {
	return `DELETE FROM ` + l.table("inbox") + ` WHERE (event_id, consumer) IN (
		SELECT event_id, consumer FROM ` + l.table("inbox") + ` AS i
		WHERE event_id < (lpad(to_hex((extract(epoch FROM now() - $1::interval) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
		AND coalesce(xid < (SELECT pg_snapshot_xmin(snapshot) FROM ` + l.table("consumer_shares") + ` AS s
				WHERE s.consumer = i.consumer ORDER BY 1 LIMIT 1),
			handled_at < now() - $2::interval)
		AND NOT EXISTS (SELECT FROM ` + l.table("parked") + ` AS p WHERE p.event_id = i.event_id AND p.consumer = i.consumer)
		ORDER BY event_id LIMIT $3)`
}
