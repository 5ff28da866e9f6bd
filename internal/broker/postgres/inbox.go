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
//
// Two logs of a database may share an inbox (Config.Inbox), so that an effect stays one when a consumer changes from one to the
// other. Each then forgets what its own consumers have passed; xids are the same in both.
const (
	// inboxAge is how long a row is kept beyond the time at which its event was made, whatever the consumer has passed: a
	// process that was paused in the middle of a handler may come back.
	inboxAge = 7 * 24 * time.Hour
	// inboxAgeForeign holds for handlers that have no place in the log: those of jobs, and of consumers that are gone.
	// For ids that tell no time it holds as well.
	inboxAgeForeign = 60 * 24 * time.Hour
)

// Enter queues the note that the consumer has handled the event on a batch that the caller sends at the beginning of the
// transaction in which it does so. It affects one row, or none when the effect was committed before; a transaction
// that is at the same event is waited for.
func (l *Log) Enter(batch *pgx.Batch, consumer string, event uuid.UUID) {
	batch.Queue(`INSERT INTO `+l.inboxTable()+` (event_id, consumer) VALUES ($1, $2) ON CONFLICT DO NOTHING`, event, consumer)
}

// sweepInbox deletes what can come no more, as sweep.go has it, and returns how many rows there were.
func (l *Log) sweepInbox(ctx context.Context) (int64, error) {
	n, err := l.inboxSweep.run(ctx, l.pool, l.sweepInboxSQL())
	if err != nil {
		return n, fmt.Errorf("sweep inbox: %w", err)
	}
	return n, nil
}

// sweepInboxSQL asks for parked events row by row: OFFSET 0 keeps the planner from joining the tables whole.
func (l *Log) sweepInboxSQL() sweepSQL {
	free := `NOT EXISTS (SELECT FROM ` + l.table("parked") + ` AS p WHERE p.event_id = i.event_id AND p.consumer = i.consumer OFFSET 0)`
	// Whose place is in the other log, the other log knows.
	foreign := `false`
	if l.config.Inbox == l.config.Schema {
		foreign = `NOT EXISTS (SELECT FROM ` + l.table("consumers") + ` AS c WHERE c.consumer = i.consumer AND c.handed_over IS NOT NULL)`
	}
	return sweepSQL{
		slice: sliceSQL(l.inboxTable(), "consumer", `LEFT JOIN (
				SELECT DISTINCT ON (consumer) consumer, pg_snapshot_xmin(snapshot) AS passed FROM `+l.table("consumer_shares")+`
				ORDER BY 1, 2) AS s USING (consumer)
			WHERE substr(event_id::text, 15, 1) = '7' AND coalesce(xid < passed, handled_at < now() - $5::interval AND `+foreign+`)
			AND `+free),
		rest: restSQL(l.inboxTable(), "handled_at", `(consumer LIKE 'job:%' OR substr(event_id::text, 15, 1) <> '7')
			AND handled_at < now() - $2::interval
			AND coalesce(xid < (SELECT pg_snapshot_xmin(snapshot) FROM `+l.table("consumer_shares")+` AS s
				WHERE s.consumer = i.consumer ORDER BY 1 LIMIT 1), `+foreign+`) AND `+free),
		sliceAges: []any{inboxAge, inboxAgeForeign}, restAge: inboxAgeForeign,
	}
}
