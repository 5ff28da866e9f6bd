package postgres

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Limits on what a consumer holds in memory: the rows of one page, and all messages that were read and not yet
// acknowledged.
const (
	pageRowsMax      = 500
	unackedMax       = 2000
	unackedBytesMax  = 16 << 20
	unboundedFence   = "18446744073709551615" // the highest xid8: no fence is known yet
	snapshotOfNobody = ""                     // no window is under way
)

// place is where a consumer stands; doc.go tells how the parts belong together. It is a value: each message carries the
// place that is reached when it and all before it are acknowledged.
type place struct {
	snapshot  string
	floor     int64
	fence     string
	windowEnd string
	position  int64
}

// endWindow is the place after the last message of the window that is under way.
func (p place) endWindow() place {
	return place{snapshot: p.windowEnd, floor: max(p.floor, p.position), fence: unboundedFence}
}

// row is one stored message.
type row struct {
	position int64
	share    int16
	id       uuid.UUID
	raw      string           // the metadata as they are stored
	metadata message.Metadata // decoded, until they are handed out
	payload  []byte
	after    place
}

func (r *row) key() string {
	if key := r.metadata.Get(keyAttribute); key != "" {
		return key
	}
	return r.id.String()
}

// eventType is what the row's metadata say, whether they were handed out or not.
func (r *row) eventType() string {
	m, _ := decodeMetadata(r.raw) // it was decoded before
	return m.Get(typeAttribute)
}

func (r *row) bytes() int { return len(r.payload) + metadataBytesEstimate }

// metadataBytesEstimate is what a row's metadata count towards unackedBytesMax.
const metadataBytesEstimate = 1 << 10

// page is what one look at the topic found.
type page struct {
	rows []row
	next place
	more bool // the window goes on after these rows
}

// read takes the next page after from, of the shares given; nil means of all. When no window is under way it opens one,
// whose end is what this statement sees.
func (h holder) read(ctx context.Context, topic string, from place, shares []int16) (page, error) {
	query := h.log.tailQuery(topic)
	if from.position < from.floor {
		query = h.log.headQuery(topic)
	}
	done, err := h.log.reads.begin(ctx)
	if err != nil {
		return page{}, fmt.Errorf("read topic %s: %w", topic, err)
	}
	defer done()
	rows, err := h.log.pool.Query(ctx, query, h.log.perValue, pgx.NamedArgs{
		"snapshot": from.snapshot, "end": nullable(from.windowEnd), "fence": from.fence,
		"floor": from.floor, "position": from.position, "limit": pageRowsMax, "shares": shares, "count": shareCount,
		"sealed": h.log.seals.before(h.server, topic, from.snapshot), "server": h.server, "latest": from.latest(),
	})
	if err != nil {
		return page{}, fmt.Errorf("read topic %s: %w", topic, err)
	}
	defer rows.Close()
	result := page{next: from}
	bytes := 0
	for rows.Next() {
		var now string
		var position *int64
		var slot *int16
		var id *uuid.UUID
		var metadata *string
		r := row{}
		if err := rows.Scan(&now, &position, &slot, &id, &metadata, &r.payload); err != nil {
			return page{}, fmt.Errorf("read topic %s: %w", topic, err)
		}
		if result.next.windowEnd == snapshotOfNobody {
			result.next.windowEnd = now
		}
		if position == nil { // nothing new; the row is there for the snapshot's sake
			break
		}
		r.raw = *metadata
		if r.metadata, err = decodeMetadata(r.raw); err != nil {
			return page{}, fmt.Errorf("read topic %s, position %d: metadata is not JSON", topic, *position)
		}
		r.position, r.share, r.id = *position, *slot%shareCount, *id
		result.next.position = r.position
		r.after = result.next
		result.rows = append(result.rows, r)
		if bytes += r.bytes(); bytes > pageBytesMax {
			break
		}
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return page{}, fmt.Errorf("read topic %s: %w", topic, err)
	}
	result.more = len(result.rows) == pageRowsMax || bytes > pageBytesMax
	if !result.more {
		result.next = result.next.endWindow()
		if n := len(result.rows); n > 0 {
			result.rows[n-1].after = result.next
		}
	}
	return result, nil
}

const (
	columns = `position, slot, id, metadata, payload`
	visible = `(@end::pg_snapshot IS NULL OR pg_visible_in_snapshot(xid, @end::pg_snapshot))
		AND (@shares::smallint[] IS NULL OR slot % @count::smallint = ANY (@shares::smallint[]))`
	pageBytesMax = unackedBytesMax / 4 // of a page; the row that goes beyond is its last
)

// answerSQL gives the snapshot also when there is no row, and no row after the one that fills the page: its bytes would travel
// with every page before its own. A payload's length is known without reading it.
func (l *Log) answerSQL(query string) string {
	return fmt.Sprintf(`SELECT pg_current_snapshot()::text, `+columns+` FROM (VALUES (1)) AS one LEFT JOIN LATERAL (
		SELECT * FROM (
			SELECT *, sum(octet_length(payload) + %d) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING)
				- octet_length(payload) - %[1]d AS bytes_before
			FROM (%[3]s) AS found) AS found
		WHERE bytes_before <= %[2]d ORDER BY position) AS r ON true WHERE `+l.sameServer("@server", "@latest::text::xid8"),
		metadataBytesEstimate, pageBytesMax, query)
}

// tailQuery reads beyond floor, where every visible row is new. The primary key gives it in order.
func (l *Log) tailQuery(topic string) string {
	return l.answerSQL(`SELECT ` + columns + ` FROM ` + l.topicTable(topic) + `
		WHERE position > greatest(@floor::bigint, @position::bigint) AND ` + visible + ` ORDER BY position LIMIT @limit`)
}

// headQuery reads the beginning of a window: besides the tail, the late rows up to floor, found by transaction. Their
// branches are apart, because an OR of them would be answered by reading the table.
func (l *Log) headQuery(topic string) string {
	// Adding nothing keeps the planner from walking the primary key up to floor, which is the whole topic. What is up to
	// sealed has no late rows; that bound is a plain one, for the planner to leave partitions out by.
	late := `SELECT ` + columns + ` FROM ` + l.topicTable(topic) + `
		WHERE position > @sealed AND position + 0 > @position AND position + 0 <= @floor AND ` + visible + ` AND `
	return l.answerSQL(`SELECT * FROM (
		(` + late + ` xid = ANY (ARRAY(SELECT pg_snapshot_xip(@snapshot::pg_snapshot))))
		UNION ALL
		(` + late + ` xid >= pg_snapshot_xmax(@snapshot::pg_snapshot) AND xid < @fence::xid8)
		UNION ALL
		(SELECT ` + columns + ` FROM ` + l.topicTable(topic) + `
			WHERE position > @floor AND ` + visible + ` ORDER BY position LIMIT @limit)
	) AS window_rows ORDER BY position LIMIT @limit`)
}

// perValue is the mode for queries that are planned each time, for their very values: a plan for all values, which
// Postgres may take for a prepared statement, opens all partitions of a topic. A mode that was chosen for the pool, as
// behind a pooler, prepares nothing or is there for a reason, and stays.
func perValue(pool *pgxpool.Pool) pgx.QueryExecMode {
	mode := pool.Config().ConnConfig.DefaultQueryExecMode
	if mode == pgx.QueryExecModeCacheStatement {
		return pgx.QueryExecModeCacheDescribe
	}
	return mode
}

func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
