package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/broker"
)

// UnfinishedError is returned when a consumer cannot change the log that it reads, since it has something left in the old one
// or somebody is still running it there.
type UnfinishedError struct {
	Consumer string
	Status   Status
}

// Error says what is left.
func (e *UnfinishedError) Error() string {
	left := "runs in another process"
	switch s := e.Status; {
	case s.Waiting > 0:
		left = fmt.Sprintf("has events to handle, %d of them", s.Waiting)
	case s.Parked > 0:
		left = fmt.Sprintf("has %d events parked that failed or wait behind such", s.Parked)
	case s.Dead > 0:
		left = fmt.Sprintf("has %d dead events to be decided about", s.Dead)
	}
	return fmt.Sprintf("consumer %s %s", e.Consumer, left)
}

// OtherBrokerError is returned when consumers read from another broker than the one that is named.
type OtherBrokerError struct {
	Consumer string
	Broker   string // that they read from
}

// Error says which one.
func (e *OtherBrokerError) Error() string {
	return fmt.Sprintf("consumer %s reads over %s", e.Consumer, e.Broker)
}

// HandOver makes relays of topics read this log in the place of consumers, which read what the relays carry elsewhere. It
// happens at one moment: what has committed before was handled by each consumer, and what commits later is the relays'.
// Where a consumer has not handled all, or is running, nothing is changed and an *UnfinishedError returned. A
// consumer that was handed over already, or was never known here, is none of these. Afterwards Provision refuses the consumers.
//
// The identity, that of a broker.Kind, says which broker that is. Where any consumer reads from another one nothing is changed,
// and an *OtherBrokerError returned: what the other one has would be left there.
func (l *Log) HandOver(ctx context.Context, consumers, relays []Subscription, identity string) error {
	err := l.change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(provisionLock)); err != nil {
			return err
		}
		if err := l.sameBroker(ctx, tx, identity); err != nil {
			return err
		}
		old, err := l.notHandedOver(ctx, tx, consumers)
		if err != nil || len(old) == 0 {
			return err
		}
		// In this order. What a consumer has stored it stored before its lock, so if then nothing is left to it, nothing has
		// become visible between the two looks, and the relays begin where the consumers end.
		if err := l.lockConsumers(ctx, tx, names(old)...); err != nil {
			return err
		}
		var now string
		if err := tx.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&now); err != nil {
			return err
		}
		for _, r := range relays {
			if err := l.beginHere(ctx, tx, r); err != nil {
				return err
			}
		}
		for _, s := range old {
			if err := l.finished(ctx, tx, s); err != nil {
				return err
			}
		}
		return l.markHandedOver(ctx, tx, old, now, identity)
	})
	if err != nil {
		return fmt.Errorf("hand consumers over: %w", err)
	}
	return nil
}

// TakeBack undoes HandOver: from one moment on the consumers read this log again, and the relays are gone. Before, everything
// that was committed since HandOver has arrived in the other log, and the consumers have handled it there: it is looked for,
// event by event. Otherwise nothing is changed, and an *UnfinishedError returned.
func (l *Log) TakeBack(ctx context.Context, from *Log, consumers, relays []Subscription) error {
	err := l.change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(provisionLock)); err != nil {
			return err
		}
		// In this order, as in HandOver.
		if err := errors.Join(l.lockConsumers(ctx, tx, names(relays)...), from.lockConsumers(ctx, tx, names(consumers)...)); err != nil {
			return err
		}
		places := make(map[string]place)
		for _, r := range relays {
			p, err := l.place(ctx, tx, r.Topic, Spot{})
			if err != nil {
				return err
			}
			places[r.Topic] = p
		}
		for _, r := range relays {
			if err := l.finished(ctx, tx, r); err != nil {
				return err
			}
		}
		for _, s := range consumers {
			if err := l.takeBack(ctx, tx, from, s, places[s.Topic]); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `DELETE FROM `+l.table("consumers")+` WHERE consumer = ANY ($1)`, names(relays))
		return err
	})
	if err != nil {
		return fmt.Errorf("take consumers back: %w", err)
	}
	return nil
}

// takeBack puts one consumer at the place, if it has been handed over and has handled all.
func (l *Log) takeBack(ctx context.Context, tx pgx.Tx, from *Log, s Subscription, p place) error {
	missing := 0
	err := tx.QueryRow(ctx, `UPDATE `+l.table("consumers")+` AS c SET handed_over = NULL, broker = NULL
		FROM `+l.table("consumers")+` AS before
		WHERE c.consumer = $1 AND before.consumer = $1 AND before.handed_over IS NOT NULL
		RETURNING (SELECT count(*) FROM (SELECT FROM `+l.topicTable(s.Topic)+` AS t
			WHERE NOT pg_visible_in_snapshot(t.xid, before.handed_over) AND t.recorded_at > now() - $2::interval
			AND NOT EXISTS (SELECT FROM `+from.table("arrivals")+` AS a WHERE a.event_id = t.id AND a.topic = c.topic)
			LIMIT $3) AS missing)`,
		s.Consumer, broker.Remembered-24*time.Hour, waitingMax).Scan(&missing)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // it never was
		return nil
	case err != nil:
		return err
	case missing > 0:
		return &UnfinishedError{Consumer: s.Consumer, Status: Status{Waiting: missing}}
	}
	if err := from.finished(ctx, tx, s); err != nil {
		return err
	}
	return l.makeShares(ctx, tx, s.Consumer, p)
}

// beginHere makes a relay, and notes where it begins: what was before is nothing that it may ever be moved back to, since the
// consumers have handled it.
func (l *Log) beginHere(ctx context.Context, tx pgx.Tx, relay Subscription) error {
	isNew, err := l.provisionConsumer(ctx, tx, relay)
	if err != nil || !isNew {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE `+l.table("consumers")+` AS c SET since = s.snapshot, since_floor = s.floor
		FROM `+l.table("consumer_shares")+` AS s WHERE c.consumer = $1 AND s.consumer = $1 AND s.share = 0`, relay.Consumer)
	return err
}

// notBefore puts a place that goes back behind what was before the consumer's beginning, for one that has one.
func (l *Log) notBefore(ctx context.Context, tx pgx.Tx, consumer string, p place) (place, error) {
	if p.floor > 0 {
		return p, nil // now
	}
	err := tx.QueryRow(ctx, `SELECT coalesce(since::text, $2), coalesce(since_floor, $3) FROM `+l.table("consumers")+`
		WHERE consumer = $1`, consumer, p.snapshot, p.floor).Scan(&p.snapshot, &p.floor)
	return p, err
}

func names(subscriptions []Subscription) []string {
	all := make([]string, len(subscriptions))
	for i, s := range subscriptions {
		all[i] = s.Consumer
	}
	return all
}

// notHandedOver returns the consumers that are not marked yet.
func (l *Log) notHandedOver(ctx context.Context, tx pgx.Tx, consumers []Subscription) (old []Subscription, err error) {
	for _, s := range consumers {
		var over bool
		err := tx.QueryRow(ctx, `SELECT handed_over IS NOT NULL FROM `+l.table("consumers")+` WHERE consumer = $1`, s.Consumer).Scan(&over)
		switch {
		case err != nil && !errors.Is(err, pgx.ErrNoRows):
			return nil, err
		case !over:
			old = append(old, s)
		}
	}
	return old, nil
}

// finished returns an *UnfinishedError unless the consumer has handled everything and nobody is at it.
func (l *Log) finished(ctx context.Context, tx pgx.Tx, s Subscription) error {
	status, known, err := l.status(ctx, tx, s, waitingMax)
	if err != nil || !known {
		return err
	}
	if status.Waiting+status.Parked+status.Dead+len(status.Owners) > 0 {
		return &UnfinishedError{Consumer: s.Consumer, Status: status}
	}
	return nil
}

// sameBroker returns an *OtherBrokerError where a consumer was handed over to another broker.
func (l *Log) sameBroker(ctx context.Context, tx pgx.Tx, identity string) error {
	if _, err := tx.Exec(ctx, `UPDATE `+l.table("consumers")+` SET broker = $1
		WHERE handed_over IS NOT NULL AND broker IS NULL`, identity); err != nil {
		return err
	}
	other := new(OtherBrokerError)
	err := tx.QueryRow(ctx, `SELECT consumer, broker FROM `+l.table("consumers")+`
		WHERE handed_over IS NOT NULL AND broker <> $1 ORDER BY consumer LIMIT 1`, identity).Scan(&other.Consumer, &other.Broker)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return other
}

func (l *Log) markHandedOver(ctx context.Context, tx pgx.Tx, consumers []Subscription, now, identity string) error {
	for _, s := range consumers {
		if _, err := tx.Exec(ctx, `INSERT INTO `+l.table("consumers")+` AS c (consumer, topic, handed_over, broker)
			VALUES ($1, $2, $3::text::pg_snapshot, $4)
			ON CONFLICT (consumer) DO UPDATE SET handed_over = excluded.handed_over, broker = excluded.broker`,
			s.Consumer, s.Topic, now, identity); err != nil {
			return err
		}
	}
	// Without shares there is nothing to claim, for a process that has yet to hear of it either.
	_, err := tx.Exec(ctx, `DELETE FROM `+l.table("consumer_shares")+` WHERE consumer = ANY ($1)`, names(consumers))
	return err
}
