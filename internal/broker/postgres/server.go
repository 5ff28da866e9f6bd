package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What a process knows of the log, places above all, it has seen on a certain server. A standby that is promoted without the
// last commits, or a backup that is put in the server's place, gives out the same transaction ids and positions again, for
// other events: there a place that was reached before says that they were handled. Whoever looks for that only when it
// connects looks too early, since an address may lead elsewhere between any two statements.
//
// So every statement that rests on what was seen names the server's life, and whichever transaction id is the latest of
// what was seen, and fails where they cannot be true (same_server). Then the work begins anew from what is stored there.
// A life ends when the server does, and when it recovers from the crash of one of its processes: with synchronous_commit off that
// loses the last commits, and what lost nothing has the same effect: what was acknowledged and not stored comes again.
//
// Whoever begins work names the life (beginLife): by a row in a table that recovery empties, with the server's start.

// codeOtherServer is raised by same_server.
const codeOtherServer = "PB002"

// holder is who holds shares of a consumer, as it is known to the server of that start.
type holder struct {
	log             *Log
	consumer, owner string
	broker          string    // that it publishes to, if it is a relay
	server          time.Time // its life
}

// lifeSQL is when the life of the server began, null before anybody has named it.
func (l *Log) lifeSQL() string {
	return `(SELECT began FROM ` + l.table("lives") + ` WHERE started = pg_postmaster_start_time())`
}

// beginLife names the life of the server, if nobody has. Otherwise it writes nothing.
func (l *Log) beginLife(ctx context.Context) error {
	_, err := l.pool.Exec(ctx, `INSERT INTO `+l.table("lives")+` AS known (started, began)
		SELECT pg_postmaster_start_time(), clock_timestamp() WHERE `+l.lifeSQL()+` IS NULL
		ON CONFLICT (one) DO UPDATE SET started = excluded.started, began = excluded.began WHERE known.started <> excluded.started`)
	if err != nil {
		return fmt.Errorf("name the server's life: %w", err)
	}
	return nil
}

// hold begins a holder's work on whatever server is there now. Shares that the owner has left over from work before, by these
// epochs, or by lower ones on an older server, are given free, where they stand: nothing of them may be with a handler any more.
func (l *Log) hold(ctx context.Context, consumer, owner string, left map[int16]int64) (holder, error) {
	h := holder{log: l, consumer: consumer, owner: owner}
	if err := l.beginLife(ctx); err != nil {
		return holder{}, err
	}
	shares := slices.Sorted(maps.Keys(left))
	epochs := make([]int64, len(shares))
	for i, share := range shares {
		epochs[i] = left[share]
	}
	err := l.pool.QueryRow(ctx, `WITH freed AS (
			UPDATE `+l.table("consumer_shares")+` AS s SET owner = NULL, lease_until = NULL, epoch = s.epoch + 1
			FROM unnest($3::smallint[], $4::bigint[]) AS free (share, epoch)
			WHERE s.consumer = $1 AND s.owner = $2 AND s.share = free.share AND s.epoch <= free.epoch)
		SELECT `+l.lifeSQL(), consumer, owner, shares, epochs).Scan(&h.server)
	if err != nil {
		return holder{}, fmt.Errorf("begin work for %s: %w", consumer, err)
	}
	return h, nil
}

// sameServer is a condition that fails the statement on another server. Both parameters are SQL; the id may be NULL.
func (l *Log) sameServer(seen, latest string) string {
	return l.table("same_server") + `(` + seen + `, ` + l.lifeSQL() + `, ` + latest + `)`
}

// latest is the first transaction id that the place knows nothing of, nil without one.
func (p place) latest() *string {
	var latest *string
	for _, snapshot := range []string{p.snapshot, p.windowEnd} {
		if _, rest, ok := strings.Cut(snapshot, ":"); ok {
			xmax, _, _ := strings.Cut(rest, ":")
			latest = later(latest, &xmax)
		}
	}
	return latest
}

// later is the higher one of two transaction ids.
func later(a, b *string) *string {
	switch {
	case a == nil:
		return b
	case b == nil || number(*a) >= number(*b):
		return a
	default:
		return b
	}
}

// number reads a transaction id that came from Postgres.
func number(id string) uint64 {
	n, _ := strconv.ParseUint(id, 10, 64) // Postgres wrote it
	return n
}
