package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Limits on what a consumer takes along from one log to the other.
const (
	takenMax      = 100_000   // events
	takenBytesMax = 256 << 20 // of their payloads and metadata
)

// takeAlong moves what a consumer has left in this log into lines of the other one (parking.go): what is parked as it is; behind
// it what it has not handled of what the snapshot sees; and behind that what is missing of the other log. It returns how many
// there are. A line holds its key, so that what comes in the other log later waits behind it.
//
// Rows of a line are in the order of their positions, and a transaction that is under way may have drawn any position of the
// other log before, for an event that comes behind. So what was taken along has positions below zero.
func (l *Log) takeAlong(ctx context.Context, tx pgx.Tx, to *Log, s Subscription, upTo string, w onTheWay) (n int, err error) {
	// Postgres makes no text of a JSON document with a NUL in it. A backslash before it may be one that stands for itself.
	const attributes = `LATERAL (SELECT regexp_replace(metadata, '(?<!\\)((?:\\\\)*)\\u0000', '\1\\ufffd', 'g')::json) AS attributes (m)`
	const fresh = `NULL, slot %% $5::smallint, 0, id, coalesce(m ->> '` + typeAttribute + `', ''),
		coalesce(nullif(m ->> '` + keyAttribute + `', ''), id::text), metadata, payload, '[]'::jsonb, NULL, '[]'::jsonb, now(),
		NULL, NULL, NULL`
	var bytes int64
	err = tx.QueryRow(ctx, fmt.Sprintf(`WITH
		shares AS (SELECT * FROM %[1]s WHERE consumer = $1),
		unread AS (
			SELECT t.position, t.slot, t.id, t.metadata, t.payload FROM %[2]s AS t JOIN shares AS s ON s.share = t.slot %% $5::smallint
			WHERE `+unreadByShares+` AND pg_visible_in_snapshot(t.xid, $2::text::pg_snapshot)
			LIMIT $4),
		missing AS (
			SELECT position, slot, id, metadata, payload FROM %[4]s WHERE position = ANY ($3::bigint[])
			UNION ALL SELECT position, share, event_id, metadata, payload FROM %[5]s WHERE consumer = $6 AND position = ANY ($7::bigint[])),
		kept AS (
			SELECT 0 AS part, position, state, share, attempts, event_id, type, key, metadata, payload, failures, fingerprint, notes,
				parked_at, run_at, dead_at, resolved_at
			FROM (SELECT * FROM %[3]s WHERE consumer = $1 LIMIT $4) AS parked
			UNION ALL SELECT 1, position, `+fresh+` FROM unread, `+attributes+`
			UNION ALL SELECT 2, position, `+fresh+` FROM missing, `+attributes+`),
		size AS (SELECT coalesce(sum(octet_length(payload) + octet_length(metadata)), 0)::bigint AS bytes FROM kept),
		lines AS (
			SELECT *, md5(convert_to(key, 'UTF8'))::uuid AS key_hash,
				row_number() OVER (ORDER BY part, position) - 1 - count(*) OVER () AS place,
				row_number() OVER (PARTITION BY key, coalesce(state = 'dead', false) ORDER BY part, position) = 1 AS first
			FROM kept WHERE (SELECT bytes FROM size) <= $8),
		taken AS (INSERT INTO %[5]s (consumer, key_hash, position, share, state, run_at, attempts, event_id, type, key, metadata, payload,
			failures, fingerprint, notes, parked_at, dead_at, resolved_at)
		SELECT $1, key_hash, place, share, coalesce(state, CASE WHEN first THEN 'retry' ELSE 'behind' END),
			CASE WHEN state IS NULL AND first THEN clock_timestamp() ELSE run_at END, attempts, event_id, type, key, metadata, payload,
			failures, fingerprint, notes, parked_at, dead_at, resolved_at
		FROM lines RETURNING 1)
		SELECT (SELECT count(*) FROM taken), bytes FROM size`,
		l.table("consumer_shares"), l.topicTable(s.Topic), l.table("parked"), to.topicTable(s.Topic), to.table("parked")),
		l.perValue, s.Consumer, upTo, w.missing, takenMax+1, shareCount, w.relay, w.refused, takenBytesMax).Scan(&n, &bytes)
	if err != nil {
		return 0, fmt.Errorf("take along what is left to %s: %w", s.Consumer, err)
	}
	switch {
	case bytes > takenBytesMax:
		return 0, &UnfinishedError{Consumer: s.Consumer, Bytes: takenBytesMax}
	case n > takenMax:
		return 0, &UnfinishedError{Consumer: s.Consumer, Left: takenMax}
	}
	if _, err := tx.Exec(ctx, `DELETE FROM `+l.table("parked")+` WHERE consumer = $1`, s.Consumer); err != nil {
		return 0, fmt.Errorf("take along what is left to %s: %w", s.Consumer, err)
	}
	return n, nil
}

// unreadByShares is a condition on rows t, with the share s of a consumer that each is of, for what the consumer has yet to handle:
// what no share's place covers. The bounds on top keep the look-up off what all of them have passed. It is in terms of `shares`.
const unreadByShares = `(t.position > (SELECT min(floor) FROM shares)
		OR t.xid >= (SELECT pg_snapshot_xmin(snapshot) FROM shares ORDER BY 1 LIMIT 1))
	AND NOT pg_visible_in_snapshot(t.xid, s.snapshot)
	AND NOT (coalesce(pg_visible_in_snapshot(t.xid, s.window_end), false) AND t.position <= s.position)
	AND t.position <> ALL (s.ahead)`

// onTheWay is where the events are that were committed since a relay began.
type onTheWay struct {
	relay           string
	upTo            string // the snapshot that sees all of them
	arrived, unsent int
	missing         []int64 // sent, and not arrived
	refused         []int64 // parked by the relay, since the broker refuses them, and not arrived
	early           []int64 // arrived, though the relay has yet to note that they were sent
}

// onTheWay looks for each event since the relay began, among those that have arrived in the other log. What has not is noted as
// arrived: the consumers will have it, and the broker may bring it any time later. Of what was not sent some may have been, by a
// process that could not note it. Nothing arrives meanwhile.
func (l *Log) onTheWay(ctx context.Context, tx pgx.Tx, from *Log, relay Subscription) (w onTheWay, err error) {
	w.relay = relay.Consumer
	all := 0
	if err := tx.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&w.upTo); err != nil {
		return w, err
	}
	known := `EXISTS (SELECT FROM ` + from.table("arrivals") + ` AS a WHERE a.event_id = %s AND a.topic = $2) AS known`
	err = tx.QueryRow(ctx, `WITH
		shares AS (SELECT * FROM `+l.table("consumer_shares")+` WHERE consumer = $1),
		refused AS (SELECT position, event_id, `+fmt.Sprintf(known, "p.event_id")+` FROM `+l.table("parked")+` AS p WHERE consumer = $1),
		events AS (
			SELECT t.position, t.id, recorded_at, NOT (`+unreadByShares+`) AS sent, `+fmt.Sprintf(known, "t.id")+`
			FROM `+l.topicTable(relay.Topic)+` AS t JOIN shares AS s ON s.share = t.slot % $5::smallint, `+l.sinceSQL()+`
			WHERE `+afterSince+` AND pg_visible_in_snapshot(t.xid, $3::text::pg_snapshot)
			AND NOT EXISTS (SELECT FROM refused WHERE refused.position = t.position)),
		looked AS MATERIALIZED (
			SELECT position, id, sent, known OR sent AND recorded_at < now() - $4::interval AS arrived, false AS parked FROM events
			UNION ALL SELECT position, event_id, true, known, true FROM refused),
		noted AS (
			INSERT INTO `+from.table("arrivals")+` (event_id, topic, arrived_at)
			SELECT id, $2, CASE WHEN sent THEN 'infinity' ELSE now() END FROM looked WHERE NOT arrived ON CONFLICT DO NOTHING)
		SELECT count(*), count(*) FILTER (WHERE arrived), count(*) FILTER (WHERE NOT arrived AND NOT sent),
			coalesce(array_agg(position ORDER BY position) FILTER (WHERE NOT arrived AND sent AND NOT parked), '{}'),
			coalesce(array_agg(position ORDER BY position) FILTER (WHERE NOT arrived AND parked), '{}'),
			coalesce(array_agg(position ORDER BY position) FILTER (WHERE arrived AND NOT sent), '{}')
		FROM looked`, l.perValue, relay.Consumer, relay.Topic, w.upTo, arrivalsKnown, shareCount).
		Scan(&all, &w.arrived, &w.unsent, &w.missing, &w.refused, &w.early)
	switch {
	case err != nil:
		return w, fmt.Errorf("look for the events of topic %s: %w", relay.Topic, err)
	case all != w.arrived+w.unsent+len(w.missing)+len(w.refused):
		return w, fmt.Errorf("of %d events of topic %s %d have arrived, %d not, and %d were not sent", all, relay.Topic, w.arrived,
			len(w.missing)+len(w.refused), w.unsent)
	case len(w.missing)+len(w.refused) > takenMax || len(w.early) > takenMax:
		return w, &UnfinishedError{Consumer: relay.Consumer, Left: takenMax}
	}
	return w, nil
}

// sinceSQL is where the relay $1 began, and afterSince a condition on rows t for what was committed later.
func (l *Log) sinceSQL() string {
	return `(SELECT coalesce(since, ` + snapshotOfNothing + `::pg_snapshot) AS since, coalesce(since_floor, 0) AS since_floor
		FROM ` + l.table("consumers") + ` WHERE consumer = $1) AS began`
}

const afterSince = `(t.position > since_floor OR t.xid >= pg_snapshot_xmin(since)) AND NOT pg_visible_in_snapshot(t.xid, since)`

// Snapshot tells which transactions have committed by now, for Since.
func (l *Log) Snapshot(ctx context.Context) (snapshot string, err error) {
	if err := l.pool.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&snapshot); err != nil {
		return "", fmt.Errorf("take snapshot: %w", err)
	}
	return snapshot, nil
}

// Since counts the events of the relays' topics that were committed since the consumers were handed over and before the snapshot,
// and those among them that have yet to arrive in the other log.
func (l *Log) Since(ctx context.Context, to *Log, relays []Subscription, snapshot string) (committed, missing int, err error) {
	for _, r := range relays {
		var n, m int
		err := l.pool.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (
				SELECT FROM `+to.table("arrivals")+` AS a WHERE a.event_id = t.id AND a.topic = $2))
			FROM `+l.topicTable(r.Topic)+` AS t, `+l.sinceSQL()+`
			WHERE `+afterSince+` AND pg_visible_in_snapshot(t.xid, $3::text::pg_snapshot)`, r.Consumer, r.Topic, snapshot).Scan(&n, &m)
		if err != nil {
			return 0, 0, fmt.Errorf("look for the events of topic %s: %w", r.Topic, err)
		}
		committed, missing = committed+n, missing+m
	}
	return committed, missing, nil
}
