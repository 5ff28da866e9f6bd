package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

// Spot is a place in a topic as a person would name it. The zero value is now: after everything that has committed.
type Spot struct {
	kind     spotKind
	time     time.Time
	position int64
}

type spotKind int

const (
	spotNow spotKind = iota
	spotBeginning
	spotTime
	spotPosition
)

// Beginning is before the oldest event that the topic still has.
func Beginning() Spot { return Spot{kind: spotBeginning} }

// At is before the first event that was recorded at t or later, by the database's clock.
func At(t time.Time) Spot { return Spot{kind: spotTime, time: t} }

// After is after the event at that position. An event that has a lower position and commits later is still read.
func After(position int64) Spot { return Spot{kind: spotPosition, position: position} }

// place finds the spot in the topic, in one statement and so by one snapshot. It has no fence yet: the transaction that
// stores it may have its id from before the snapshot.
func (l *Log) place(ctx context.Context, tx pgx.Tx, topic string, s Spot) (p place, err error) {
	newest := `(SELECT coalesce(max(position), 0) FROM ` + l.topicTable(topic) + `)`
	var query string
	var args []any
	switch s.kind {
	case spotNow:
		query = `SELECT pg_current_snapshot()::text, ` + newest + `, '', 0::bigint`
	case spotBeginning:
		query = `SELECT ` + snapshotOfNothing + `, 0::bigint, '', 0::bigint`
	case spotTime:
		query = `SELECT ` + snapshotOfNothing + `, 0::bigint, pg_current_snapshot()::text, coalesce(
			(SELECT min(position) - 1 FROM ` + l.topicTable(topic) + ` WHERE recorded_at >= $1), ` + newest + `)`
		args = []any{s.time}
	case spotPosition:
		query = `SELECT ` + snapshotOfNothing + `, 0::bigint, pg_current_snapshot()::text, least($1::bigint, ` + newest + `)`
		args = []any{s.position}
	}
	p.fence = unboundedFence
	err = tx.QueryRow(ctx, query, args...).Scan(&p.snapshot, &p.floor, &p.windowEnd, &p.position)
	if err != nil {
		return place{}, fmt.Errorf("find the place in topic %s: %w", topic, err)
	}
	return p, nil
}

// Movement is what moving a consumer does, or would do: how many events wait for it before and after.
type Movement struct{ Before, After Status }

// errDryRun rolls a movement back that was only tried.
var errDryRun = errors.New("dry run")

// Move puts a consumer at a spot in its topic. With dryRun it only tells what that would do. Processes that work for it
// lose their shares, let go of what they are handling, and go on from the new place; what they were handling at that
// moment may have its effect beside. Events that come once more, because the consumer went back, take effect once more
// (the inbox forgets the consumer, unless it goes to now). It returns ErrUnknownConsumer.
func (l *Log) Move(ctx context.Context, s Subscription, to Spot, dryRun bool) (m Movement, err error) {
	err = l.change(ctx, func(tx pgx.Tx) error {
		if err := l.lockConsumers(ctx, tx, s.Consumer); err != nil {
			return err
		}
		var known bool
		if m.Before, known, err = l.status(ctx, tx, s, waitingMax); err != nil {
			return err
		}
		if !known {
			return fmt.Errorf("%w: %s", ErrUnknownConsumer, s.Consumer)
		}
		p, err := l.place(ctx, tx, s.Topic, to)
		if err != nil {
			return err
		}
		if p, err = l.notBefore(ctx, tx, s.Consumer, p); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE `+l.table("consumer_shares")+`
			SET snapshot = $2::text::pg_snapshot, floor = $3, fence = $6::text::xid8, window_end = $4::text::pg_snapshot,
				position = $5, ahead = '{}', epoch = epoch + 1, owner = NULL, lease_until = NULL, moved_at = clock_timestamp()
			WHERE consumer = $1`, s.Consumer, p.snapshot, p.floor, nullable(p.windowEnd), p.position, p.fence); err != nil {
			return err
		}
		if err := l.forgetEffects(ctx, tx, s.Consumer, to); err != nil {
			return err
		}
		if m.After, _, err = l.status(ctx, tx, s, waitingMax); err != nil || !dryRun {
			return err
		}
		return errDryRun
	})
	if err != nil && !errors.Is(err, errDryRun) {
		return Movement{}, fmt.Errorf("move consumer %s: %w", s.Consumer, err)
	}
	if !dryRun {
		l.Wake(s.Topic)
	}
	return m, nil
}

// lockConsumers locks all shares of the consumers, so that nothing of them is stored meanwhile.
func (l *Log) lockConsumers(ctx context.Context, tx pgx.Tx, consumers ...string) error {
	_, err := tx.Exec(ctx, `SELECT FROM `+l.table("consumer_shares")+` WHERE consumer = ANY ($1)
		ORDER BY share, consumer FOR UPDATE`, consumers)
	return err
}

// forgetEffects has events that are handled once more take effect once more: that is what going back is for.
func (l *Log) forgetEffects(ctx context.Context, tx pgx.Tx, consumer string, to Spot) error {
	if to.kind == spotNow {
		return nil
	}
	_, err := tx.Exec(ctx, `DELETE FROM `+l.inboxTable()+` WHERE consumer = $1`, consumer)
	return err
}

// Rename gives the place of a consumer to another name: that of the same consumer in a newer program. If the new name has a
// place already, as it does once the newer program was started, that place is dropped; what is parked for either name is
// kept. It returns ErrUnknownConsumer.
func (l *Log) Rename(ctx context.Context, from, to string) error {
	err := l.change(ctx, func(tx pgx.Tx) error {
		if err := l.lockConsumers(ctx, tx, from, to); err != nil {
			return err
		}
		// Whoever works for either name lets go. The epochs are above those of both, or what one has under way for the place
		// that is dropped would reach the other.
		tag, err := tx.Exec(ctx, `UPDATE `+l.table("consumer_shares")+` AS old SET owner = NULL, lease_until = NULL,
				epoch = 1 + greatest(old.epoch, (SELECT epoch FROM `+l.table("consumer_shares")+` AS new
					WHERE new.consumer = $2 AND new.share = old.share))
			WHERE consumer = $1`, from, to)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return fmt.Errorf("%w: %s", ErrUnknownConsumer, from)
		}
		if err := l.gatherParked(ctx, tx, from, to); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM `+l.table("consumers")+` AS new USING `+l.table("consumers")+` AS old
			WHERE new.consumer = $2 AND old.consumer = $1 AND new.topic = old.topic`, from, to); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE `+l.table("consumers")+` SET consumer = $2 WHERE consumer = $1`, from, to); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE `+l.inboxTable()+` SET consumer = $2 WHERE consumer = $1
			AND NOT EXISTS (SELECT FROM `+l.inboxTable()+` AS new WHERE new.event_id = inbox.event_id AND new.consumer = $2)`,
			from, to)
		return err
	})
	if err != nil {
		return fmt.Errorf("rename consumer %s: %w", from, err)
	}
	return nil
}

// Forget drops a consumer for good: its place, what is parked or dead for it, and which events have had their effect. With
// dryRun it only tells what is left of it. Retention does not wait for it any more. If a program names it again, it is a new
// one. It returns ErrUnknownConsumer, and ErrConsumerAtWork while a process holds shares of it; one that rests is not seen.
func (l *Log) Forget(ctx context.Context, consumer string, dryRun bool) (left Status, err error) {
	err = l.change(ctx, func(tx pgx.Tx) error {
		if err := l.lockConsumers(ctx, tx, consumer); err != nil {
			return err
		}
		var topic string
		err := tx.QueryRow(ctx, `SELECT topic FROM `+l.table("consumers")+` WHERE consumer = $1`, consumer).Scan(&topic)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("%w: %s", ErrUnknownConsumer, consumer)
		}
		if err != nil {
			return err
		}
		if left, _, err = l.status(ctx, tx, Subscription{Consumer: consumer, Topic: topic}, waitingMax); err != nil {
			return err
		}
		if len(left.Owners) > 0 {
			return fmt.Errorf("%w: %s", ErrConsumerAtWork, consumer)
		}
		for _, table := range []string{l.table("parked"), l.inboxTable(), l.table("consumers")} { // the last takes its shares along
			if _, err := tx.Exec(ctx, `DELETE FROM `+table+` WHERE consumer = $1`, consumer); err != nil {
				return err
			}
		}
		if dryRun {
			return errDryRun
		}
		return nil
	})
	if err != nil && !errors.Is(err, errDryRun) {
		return Status{}, fmt.Errorf("forget consumer %s: %w", consumer, err)
	}
	return left, nil
}

// gatherParked adds what is parked for a consumer to the lines of another one, whose rows are kept where both have one. Then
// each line has its first row as its head again.
func (l *Log) gatherParked(ctx context.Context, tx pgx.Tx, in, from string) error {
	parked := l.table("parked")
	if _, err := tx.Exec(ctx, `DELETE FROM `+parked+` AS p USING `+parked+` AS kept WHERE p.consumer = $2
		AND kept.consumer = $1 AND kept.key_hash = p.key_hash AND kept.position = p.position`, in, from); err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, `UPDATE `+parked+` SET consumer = $1 WHERE consumer = $2`, in, from)
	if err != nil || tag.RowsAffected() == 0 {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE `+parked+` AS p SET state = line.wanted,
			run_at = CASE WHEN line.wanted = 'retry' THEN clock_timestamp() END,
			dead_at = CASE WHEN line.wanted = 'held' THEN p.dead_at END
		FROM (SELECT key_hash, position, CASE
				WHEN row_number() OVER (PARTITION BY key_hash ORDER BY position) > 1 THEN 'behind'
				WHEN state = 'held' THEN 'held' ELSE 'retry' END AS wanted
			FROM `+parked+` WHERE consumer = $1 AND state <> 'dead') AS line
		WHERE p.consumer = $1 AND p.key_hash = line.key_hash AND p.position = line.position AND p.state <> line.wanted`, in)
	return err
}

// tellRenamed warns of consumers that are new while others of the topic are known that this program does not have: a
// consumer that was renamed in the program starts anew, and its old place stays behind.
func (l *Log) tellRenamed(ctx context.Context, tx pgx.Tx, fresh []Subscription, all []Subscription) error {
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.Consumer
	}
	for _, s := range fresh {
		rows, err := tx.Query(ctx, `SELECT consumer FROM `+l.table("consumers")+`
			WHERE topic = $1 AND consumer <> ALL ($2) ORDER BY consumer`, s.Topic, names)
		if err != nil {
			return err
		}
		others, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		if len(others) > 0 {
			l.logger.Warn("consumer is new, and others are known that this program does not have; if it was renamed, "+
				"give it the old place with --rename", slog.String("consumer", s.Consumer), slog.Any("consumers", others))
		}
	}
	return nil
}
