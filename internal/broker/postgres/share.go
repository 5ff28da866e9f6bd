package postgres

import (
	"context"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

const (
	// slots is how finely keys are spread: a message's slot is the hash of its key, stored with it.
	slots = 1 << 12
	// shareCount is into how many shares a consumer's work is cut, and so how many processes can take part. It divides
	// slots; a slot's share is its remainder.
	shareCount = 16
)

// slotOf is the slot of a key, or of the id of a message without one.
func slotOf(key string) int16 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // never fails
	return int16(h.Sum32() % slots)
}

// Whoever changes several shares of a consumer locks them in the order of their numbers first; in any other two of them, also
// of one process, could wait for each other.

// claimed is a share that has become this process's own.
type claimed struct {
	number int16
	epoch  int64
	place  place
	ahead  []int64
}

// seat is a query for the consumer's row, when it has shares here; a relay's, when they are for the broker that $%d names. It is
// another log's otherwise, or nobody's.
func (h holder) seat(broker int) string {
	return fmt.Sprintf(`SELECT coalesce(paused_until > clock_timestamp(), false) AS paused FROM %s
		WHERE consumer = $1 AND ($%d::text = '' OR broker = $%[2]d::text)
		AND EXISTS (SELECT FROM %[3]s WHERE consumer = $1)`, h.log.table("consumers"), broker, h.log.table("consumer_shares"))
}

// claim takes up to n shares of the consumer that nobody holds. Each gets a higher epoch than under any owner before.
func (h holder) claim(ctx context.Context, n int) ([]claimed, error) {
	rows, err := h.log.pool.Query(ctx, `UPDATE `+h.log.table("consumer_shares")+`
		SET owner = $2, epoch = epoch + 1, lease_until = clock_timestamp() + $3
		WHERE consumer = $1 AND share IN (
			SELECT share FROM `+h.log.table("consumer_shares")+`
			WHERE consumer = $1 AND (owner IS NULL OR lease_until < clock_timestamp())
			ORDER BY share LIMIT $4 FOR UPDATE SKIP LOCKED)
		AND EXISTS (SELECT FROM (`+h.seat(6)+`) AS seat WHERE NOT paused) AND `+h.log.sameServer("$5", "NULL")+`
		RETURNING share, epoch, snapshot::text, floor, fence::text, coalesce(window_end::text, ''), position, ahead`,
		h.consumer, h.owner, h.log.config.Lease, n, h.server, h.broker)
	if err != nil {
		return nil, fmt.Errorf("claim shares of %s: %w", h.consumer, err)
	}
	shares, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c claimed, err error) {
		err = row.Scan(&c.number, &c.epoch, &c.place.snapshot, &c.place.floor, &c.place.fence, &c.place.windowEnd,
			&c.place.position, &c.ahead)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("claim shares of %s: %w", h.consumer, err)
	}
	return shares, nil
}

// presence is what renewing the leases has shown.
type presence struct {
	held   []int16 // of the shares that were named
	others int     // that share the consumer
	seated bool    // it has shares here
	paused bool    // and all of them are to be given up
}

// renew prolongs the leases of the owner's shares and shows the others that it is there. A share that it does not name, since
// the answer to a claim was lost, runs out.
func (h holder) renew(ctx context.Context, db rowQuerier, shares []int16) (p presence, err error) {
	err = db.QueryRow(ctx, `WITH
		seat AS (`+h.seat(6)+`),
		locked AS (
			SELECT share FROM `+h.log.table("consumer_shares")+`
			WHERE consumer = $1 AND owner = $2 AND share = ANY ($4) ORDER BY share FOR UPDATE),
		renewed AS (
			UPDATE `+h.log.table("consumer_shares")+` AS s SET lease_until = clock_timestamp() + $3 FROM locked
			WHERE consumer = $1 AND owner = $2 AND s.share = locked.share RETURNING s.share),
		seen AS (
			INSERT INTO `+h.log.table("consumer_members")+` SELECT $1, $2, clock_timestamp() + $3 FROM seat
			ON CONFLICT (consumer, owner) DO UPDATE SET seen_until = excluded.seen_until)
		SELECT (SELECT coalesce(array_agg(share), '{}') FROM renewed),
			(SELECT count(*) FROM `+h.log.table("consumer_members")+`
				WHERE consumer = $1 AND owner <> $2 AND seen_until > clock_timestamp()),
			EXISTS (SELECT FROM seat), EXISTS (SELECT FROM seat WHERE paused)
		WHERE `+h.log.sameServer("$5", "NULL"),
		h.consumer, h.owner, h.log.config.Lease, shares, h.server, h.broker).Scan(&p.held, &p.others, &p.seated, &p.paused)
	if err != nil {
		return presence{}, fmt.Errorf("renew shares of %s: %w", h.consumer, err)
	}
	return p, nil
}

// leave takes the owner out of those who share the consumer, and with it others that have not been seen for long.
func (h holder) leave(ctx context.Context) error {
	_, err := h.log.pool.Exec(ctx, `DELETE FROM `+h.log.table("consumer_members")+`
		WHERE consumer = $1 AND (owner = $2 OR seen_until < clock_timestamp() - interval '1 hour')`, h.consumer, h.owner)
	if err != nil {
		return fmt.Errorf("leave consumer %s: %w", h.consumer, err)
	}
	return nil
}

// checkpoint is what is to be stored of a share.
type checkpoint struct {
	number  int16
	epoch   int64
	place   place
	ahead   []int64
	release bool // gives the share to whoever claims it next
}

// store stores checkpoints of its shares in one statement, whose transaction's own id becomes the fence. It returns the
// shares that were stored: one that is missing belongs to another process by now, and nothing of it was changed.
func (h holder) store(ctx context.Context, checkpoints []checkpoint) (stored map[int16]bool, err error) {
	n := len(checkpoints)
	shares, epochs, snapshots := make([]int16, n), make([]int64, n), make([]string, n)
	floors, ends, positions := make([]int64, n), make([]*string, n), make([]int64, n)
	aheads, releases := make([]string, n), make([]bool, n)
	var latest *string
	for i, c := range checkpoints {
		shares[i], epochs[i], snapshots[i], floors[i] = c.number, c.epoch, c.place.snapshot, c.place.floor
		ends[i], positions[i], aheads[i], releases[i] = nullable(c.place.windowEnd), c.place.position, literal(c.ahead), c.release
		latest = later(latest, c.place.latest())
	}
	rows, err := h.log.pool.Query(ctx, `WITH
		locked AS (
			SELECT share FROM `+h.log.table("consumer_shares")+`
			WHERE consumer = $1 AND share = ANY ($2::smallint[]) ORDER BY share FOR UPDATE)
		UPDATE `+h.log.table("consumer_shares")+` AS s
		SET snapshot = c.snapshot::pg_snapshot, floor = c.floor, fence = pg_current_xact_id(),
			window_end = c.window_end::pg_snapshot, position = c.position, ahead = c.ahead::bigint[], moved_at = clock_timestamp(),
			epoch = s.epoch + c.release::int, -- what is under way from before does not reach a share that was handed over
			owner = CASE WHEN c.release THEN NULL ELSE s.owner END,
			lease_until = CASE WHEN c.release THEN NULL ELSE s.lease_until END
		FROM unnest($2::smallint[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::bigint[], $8::text[], $9::bool[])
			AS c (share, epoch, snapshot, floor, window_end, position, ahead, release)
		JOIN locked USING (share)
		WHERE s.consumer = $1 AND s.share = c.share AND s.epoch = c.epoch AND s.owner = $10
		AND `+h.log.sameServer("$11", "$12::text::xid8")+`
		RETURNING s.share`,
		h.consumer, shares, epochs, snapshots, floors, ends, positions, aheads, releases, h.owner, h.server, latest)
	if err != nil {
		return nil, fmt.Errorf("checkpoint of %s: %w", h.consumer, err)
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int16])
	if err != nil {
		return nil, fmt.Errorf("checkpoint of %s: %w", h.consumer, err)
	}
	stored = make(map[int16]bool, n)
	for _, number := range numbers {
		stored[number] = true
	}
	return stored, nil
}

// literal writes positions as a Postgres array: unnest would flatten an array of arrays.
func literal(positions []int64) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, p := range positions {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatInt(p, 10))
	}
	b.WriteByte('}')
	return b.String()
}
