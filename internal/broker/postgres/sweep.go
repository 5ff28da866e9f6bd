package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What is remembered by the ids of events is forgotten in the order of the ids, which are UUIDv7 and begin with the time. A
// sweep goes from the first id to those that are too young, and stands there: the next round begins where it stands, and looks
// at nothing but what has become old since. What it had to leave behind it looks at again in a day, from the first id on.
//
// Ids of others may be of another kind, and what jobs have done is kept for much longer than the rest. Those have an index of
// their own by time (the table's _rest), so that they need not be passed by every minute.
const (
	sweepRowsMax  = 5000 // that one statement looks at
	sweepSteps    = 200  // statements of each kind in one round
	sweepAllEvery = 24 * time.Hour
)

// sweep is where a table's sweep stands in this process. Its zero value is ready.
type sweep struct {
	mu    sync.Mutex
	id    uuid.UUID // of the row that was looked at last
	name  string    // the other part of its key
	began time.Time // at the first id
}

// sweepSQL is how a table is swept.
type sweepSQL struct {
	slice     string // the next rows of the key: $1 and $2 are the last key, $3 how many, and the ages
	sliceAges []any
	rest      string // those of the index by time: $1 is how many, and $2 the age
	restAge   time.Duration
}

// run is one round. It returns how many rows were deleted.
func (s *sweep) run(ctx context.Context, pool *pgxpool.Pool, sql sweepSQL) (gone int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.began) >= sweepAllEvery {
		s.id, s.name, s.began = uuid.Nil, "", time.Now()
	}
	for range sweepSteps {
		var looked, n int64
		err := pool.QueryRow(ctx, sql.slice, append([]any{perValue(pool), s.id, s.name, sweepRowsMax}, sql.sliceAges...)...).
			Scan(&looked, &n, &s.id, &s.name)
		if err != nil {
			return gone, err
		}
		if gone += n; looked < sweepRowsMax {
			break
		}
	}
	for range sweepSteps {
		tag, err := pool.Exec(ctx, sql.rest, perValue(pool), sweepRowsMax, sql.restAge)
		if err != nil {
			return gone, err
		}
		if gone += tag.RowsAffected(); tag.RowsAffected() < sweepRowsMax {
			break
		}
	}
	return gone, nil
}

// sliceSQL looks at the next rows of a table with the key (event_id, name), whose events were made longer ago than the interval
// $4, and deletes those that may go. It answers how many it has looked at and deleted, and the last key.
func sliceSQL(table, name, mayGo string) string {
	return `WITH slice AS MATERIALIZED (
			SELECT *, ctid AS address FROM ` + table + ` WHERE (event_id, ` + name + `) > ($1::uuid, $2::text)
			AND event_id < (lpad(to_hex((extract(epoch FROM now() - $4::interval) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
			ORDER BY event_id, ` + name + ` LIMIT $3),
		gone AS (DELETE FROM ` + table + ` WHERE ctid = ANY (ARRAY(SELECT address FROM slice AS i ` + mayGo + `)) RETURNING 1)
		SELECT (SELECT count(*) FROM slice), (SELECT count(*) FROM gone), coalesce(event_id, $1), coalesce(` + name + `, $2)
		FROM (VALUES (1)) AS one LEFT JOIN (
			SELECT * FROM slice ORDER BY event_id DESC, ` + name + ` DESC LIMIT 1) AS last ON true`
}

// restSQL deletes rows by the index on their time. The conditions are the index's, and what else has to hold.
func restSQL(table, at, conditions string) string {
	return `DELETE FROM ` + table + ` WHERE ctid = ANY (ARRAY(SELECT i.ctid FROM ` + table + ` AS i
		WHERE ` + conditions + ` ORDER BY ` + at + ` LIMIT $1))`
}
