package postgres

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
)

// anchor makes a log that was restored into another cluster readable there. Its rows and places name transaction ids of the
// cluster that it came from; where the new one has not got that far, those seem to lie in the future, and a reader would
// wait for them, or pass over rows, without a word.
//
// A row that is visible although its transaction id is not below the snapshot's xmax cannot have been written here, and
// neither can such a place; that is how it is recognised. A move that keeps transaction ids (a physical copy, pg_upgrade,
// another database of the cluster) needs nothing and is not touched.
//
// The rows are given an id that every snapshot sees, the first that there is. Each share is put at the last position
// before what it has not handled, with what it has handled beyond.
func (l *Log) anchor(ctx context.Context, tx pgx.Tx, topic string) error {
	// Its partitions' marks are told apart from those that this very transaction has made.
	if _, err := tx.Exec(ctx, `UPDATE `+l.table("partitions")+`
		SET attached = '3', fence = CASE WHEN closed_at IS NOT NULL THEN pg_current_xact_id() END
		WHERE topic = $1 AND greatest(attached, fence) >= pg_snapshot_xmax(pg_current_snapshot())
		AND attached IS DISTINCT FROM pg_current_xact_id_if_assigned()`, topic); err != nil {
		return fmt.Errorf("anchor partitions of topic %s: %w", topic, err)
	}
	var foreign bool
	err := tx.QueryRow(ctx, `SELECT
		EXISTS (SELECT FROM `+l.topicTable(topic)+` WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
		OR EXISTS (SELECT FROM `+l.table("consumer_shares")+` JOIN `+l.table("consumers")+` USING (consumer)
			WHERE topic = $1 AND pg_snapshot_xmax(coalesce(window_end, snapshot)) > pg_snapshot_xmax(pg_current_snapshot()))`,
		topic).Scan(&foreign)
	if err != nil || !foreign {
		return err
	}
	if _, err := tx.Exec(ctx, `SELECT FROM `+l.table("consumer_shares")+` WHERE consumer IN (
		SELECT consumer FROM `+l.table("consumers")+` WHERE topic = $1) ORDER BY share, consumer FOR UPDATE`, topic); err != nil {
		return fmt.Errorf("anchor consumers of topic %s: %w", topic, err)
	}
	tag, err := tx.Exec(ctx, `
		WITH handled AS (
			SELECT s.consumer, s.share, t.position,
				pg_visible_in_snapshot(t.xid, s.snapshot)
				OR (coalesce(pg_visible_in_snapshot(t.xid, s.window_end), false) AND t.position <= s.position)
				OR t.position = ANY (s.ahead) AS done
			FROM `+l.topicTable(topic)+` AS t
			JOIN `+l.table("consumer_shares")+` AS s ON s.share = t.slot % $2::smallint
			JOIN `+l.table("consumers")+` AS c ON c.consumer = s.consumer AND c.topic = $1
		), reached AS (
			SELECT c.consumer, s.share, coalesce(min(h.position) FILTER (WHERE NOT done) - 1, max(h.position), 0) AS position
			FROM `+l.table("consumers")+` AS c JOIN `+l.table("consumer_shares")+` AS s USING (consumer)
			LEFT JOIN handled AS h ON h.consumer = s.consumer AND h.share = s.share
			WHERE c.topic = $1 GROUP BY c.consumer, s.share
		)
		UPDATE `+l.table("consumer_shares")+` AS s
		SET snapshot = `+snapshotOfNothing+`, floor = 0, fence = pg_current_xact_id(), window_end = pg_current_snapshot(),
			position = r.position, epoch = s.epoch + 1, owner = NULL, lease_until = NULL, moved_at = clock_timestamp(),
			ahead = ARRAY(SELECT h.position FROM handled AS h WHERE h.consumer = s.consumer AND h.share = s.share
				AND h.done AND h.position > r.position)
		FROM reached AS r WHERE r.consumer = s.consumer AND r.share = s.share`, topic, shareCount)
	if err != nil {
		return fmt.Errorf("anchor consumers of topic %s: %w", topic, err)
	}
	// What the inbox knows was handled before the move, and so before anything that the consumers will pass here.
	if _, err := tx.Exec(ctx, `UPDATE `+l.inboxTable()+` SET xid = '3'
		WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())`); err != nil {
		return fmt.Errorf("anchor inbox: %w", err)
	}
	rows, err := l.anchorRows(ctx, tx, topic)
	if err != nil {
		return fmt.Errorf("anchor topic %s: %w", topic, err)
	}
	l.logger.Warn("this log was moved here from another cluster; its consumers go on where they were",
		slog.String("topic", topic), slog.Int64("rows_affected", rows),
		slog.Int64("count", tag.RowsAffected()/shareCount))
	return nil
}

// anchorRows gives rows an id that every snapshot sees. Those from after a relay's beginning, if the topic has one, get the second
// id that there is, and so its beginning is where the first is seen and the second is not.
func (l *Log) anchorRows(ctx context.Context, tx pgx.Tx, topic string) (int64, error) {
	tag, err := tx.Exec(ctx, `WITH relay AS (SELECT since FROM `+l.table("consumers")+` WHERE topic = $1 AND since IS NOT NULL)
		UPDATE `+l.topicTable(topic)+` SET xid = CASE WHEN pg_visible_in_snapshot(xid, (SELECT since FROM relay)) THEN '3'
			WHEN EXISTS (SELECT FROM relay) THEN '4' ELSE '3' END::xid8
		WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()) OR pg_visible_in_snapshot(xid, (SELECT since FROM relay))`, topic)
	if err != nil {
		return 0, err
	}
	_, err = tx.Exec(ctx, `UPDATE `+l.table("consumers")+` SET since = '4:4:' WHERE topic = $1 AND since IS NOT NULL`, topic)
	return tag.RowsAffected(), err
}

// snapshotOfNothing sees no transaction: 3 is the first id that Postgres gives out.
const snapshotOfNothing = `'3:3:'`
