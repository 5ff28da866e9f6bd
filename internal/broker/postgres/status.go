package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// waitingMax is as far as the events that wait for a consumer are counted; counting a long backlog would cost more than
// the number is worth.
const waitingMax = 10_000

// Status is where a consumer stands.
type Status struct {
	// Owners names the processes that work for the consumer, with how many of its shares each holds.
	Owners map[string]int
	// Waiting is how many events of the topic it has yet to pass, counted up to a limit; More tells that there are others.
	Waiting int
	More    bool
	// Parked is how many events failed or wait behind such, counted up to the limit as well, and Dead how many are dead.
	Parked, Dead int
	// Oldest is the age of the oldest of them, by the database's clock; 0 when none waits.
	Oldest time.Duration
}

// Status tells where a consumer stands. It reports false for one that was never provisioned, and returns ErrHandedOver for one
// that reads from a broker.
func (l *Log) Status(ctx context.Context, s Subscription) (status Status, known bool, err error) {
	return l.status(ctx, l.pool, s, waitingMax)
}

// Unread tells how old the oldest event of the topic is, by the database's clock, that the consumer has yet to pass: 0 when
// there is none, or when the consumer is not known, and false when too many wait to say.
func (l *Log) Unread(ctx context.Context, consumer, topic string) (oldest time.Duration, known bool, err error) {
	status, _, err := l.Status(ctx, Subscription{Consumer: consumer, Topic: topic})
	return status.Oldest, !status.More, err
}

type rowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// handedOver returns ErrHandedOver if that is why a consumer has no shares.
func (l *Log) handedOver(ctx context.Context, db rowQuerier, consumer string) error {
	var over bool
	err := db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+l.table("consumers")+` WHERE consumer = $1 AND handed_over IS NOT NULL)`,
		consumer).Scan(&over)
	switch {
	case err != nil:
		return fmt.Errorf("read status of %s: %w", consumer, err)
	case over:
		return fmt.Errorf("%w: %s", ErrHandedOver, consumer)
	}
	return nil
}

func (l *Log) status(ctx context.Context, db rowQuerier, s Subscription, most int) (status Status, known bool, err error) {
	shares := 0
	err = db.QueryRow(ctx, `SELECT coalesce(sum(n), 0)::int, coalesce(jsonb_object_agg(owner, n) FILTER (WHERE owner <> ''), '{}')
		FROM (SELECT CASE WHEN lease_until > clock_timestamp() THEN owner ELSE '' END AS owner, count(*) AS n
			FROM `+l.table("consumer_shares")+` JOIN `+l.table("consumers")+` USING (consumer)
			WHERE consumer = $1 AND topic = $2 GROUP BY 1) AS owners`, s.Consumer, s.Topic).Scan(&shares, &status.Owners)
	if err != nil {
		return status, false, fmt.Errorf("read status of %s: %w", s.Consumer, err)
	}
	if shares == 0 {
		return status, false, l.handedOver(ctx, db, s.Consumer)
	}
	var age float64
	err = db.QueryRow(ctx, `WITH
		shares AS (SELECT * FROM `+l.table("consumer_shares")+` WHERE consumer = $1),
		waiting AS (
			SELECT recorded_at FROM `+l.topicTable(s.Topic)+` AS t JOIN shares AS s ON s.share = t.slot % $2::smallint
			WHERE `+unreadByShares+`
			LIMIT $3)
		SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(recorded_at)), 0)::float8 FROM waiting`,
		s.Consumer, shareCount, most+1).Scan(&status.Waiting, &age)
	if err != nil {
		return status, false, fmt.Errorf("read status of %s: %w", s.Consumer, err)
	}
	err = db.QueryRow(ctx, `SELECT
		(SELECT count(*) FROM (SELECT FROM `+l.table("parked")+` WHERE consumer = $1 AND state IN ('retry', 'behind') LIMIT $2) AS p),
		(SELECT count(*) FROM (SELECT FROM `+l.table("parked")+` WHERE consumer = $1 AND state IN ('held', 'dead')
			AND resolved_at IS NULL LIMIT $2) AS d)`, s.Consumer, most).Scan(&status.Parked, &status.Dead)
	if err != nil {
		return status, false, fmt.Errorf("read status of %s: %w", s.Consumer, err)
	}
	if status.Waiting > most {
		status.Waiting, status.More = most, true
	}
	status.Oldest = time.Duration(age * float64(time.Second))
	return status, true, nil
}
