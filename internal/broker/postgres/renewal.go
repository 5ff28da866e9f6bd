package postgres

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/dedicated"
)

// renewals gathers the renewals that consumers of this process ask for at the same time: many idle consumers then cost one
// commit every quarter of a lease, and not one each. They go over a connection of their own: an application that uses all of its
// pool, or consumers that read and store a lot, must not cost anybody a lease.
type renewals struct {
	mu      sync.Mutex
	asked   []*renewal // since the last statement was sent
	sending bool
	conn    *dedicated.Conn // belongs to whoever is sending
	resting bool            // nobody is at work, so it is not to be kept
}

// rest gives the connection up until the next renewal.
func (r *renewals) rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resting = true
	if !r.sending {
		r.conn.Close()
	}
}

// renewal is what one consumer asks for. The answer is there when done is closed, unless there is none.
type renewal struct {
	holder   holder
	shares   []int16
	done     chan struct{}
	answer   presence
	answered bool
	err      error
}

// renewTogether renews like renew, with those of other consumers. Who holds nothing, or is locked for longer than the others wait,
// is renewed by itself: one consumer's lock does not keep the others from their leases. It does not give up on an answer, which
// comes within half a lease: a renewal that is carried out after its consumer has left would seat it again.
func (h holder) renewTogether(ctx context.Context, shares []int16) (presence, error) {
	if len(shares) == 0 {
		return h.renew(ctx, h.log.pool, shares)
	}
	r := &renewal{holder: h, shares: shares, done: make(chan struct{})}
	h.log.renewals.ask(h.log, r)
	<-r.done
	if r.err != nil || r.answered {
		return r.answer, r.err
	}
	return h.renew(ctx, h.log.pool, shares)
}

func (r *renewals) ask(l *Log, asked *renewal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, asked)
	r.resting = false
	if !r.sending {
		r.sending = true
		go r.send(l)
	}
}

// send answers what is asked until nothing is. What is asked while a statement is under way goes into the next.
func (r *renewals) send(l *Log) {
	for {
		r.mu.Lock()
		asked := r.asked
		r.asked = nil
		if r.sending = len(asked) > 0; !r.sending && r.resting {
			r.conn.Close()
		}
		r.mu.Unlock()
		if len(asked) == 0 {
			return
		}
		byServer := make(map[time.Time][]*renewal)
		for _, a := range asked {
			byServer[a.holder.server] = append(byServer[a.holder.server], a)
		}
		for server, all := range byServer {
			l.renewAll(server, all)
			for _, a := range all {
				close(a.done)
			}
		}
	}
}

// lockedWait bounds how long all of a process's consumers wait for the locks of some.
const lockedWait = 500 * time.Millisecond

// renewAll renews what nobody else has locked in one statement, and then, one after another, who was passed over: mostly since it
// is being stored at this moment, which is soon over.
func (l *Log) renewAll(server time.Time, all []*renewal) {
	ctx, cancel := context.WithTimeout(context.Background(), l.config.Lease/4)
	defer cancel()
	if len(all) > 1 {
		if err := l.renewals.conn.Do(ctx, func(db dedicated.DB) error { return l.renewUnlocked(ctx, db, server, all) }); err != nil {
			for _, a := range all {
				a.err = err
			}
			return
		}
	}
	ctx, cancel = context.WithTimeout(ctx, min(l.config.Lease/8, lockedWait))
	defer cancel()
	for _, a := range all {
		if a.answered {
			continue
		}
		err := l.renewals.conn.Do(ctx, func(db dedicated.DB) (err error) {
			a.answer, err = a.holder.renew(ctx, db, a.shares)
			return err
		})
		if ctx.Err() != nil {
			return
		}
		a.answered, a.err = true, err
	}
}

// renewUnlocked answers those of whom nothing is locked, lost or paused. Rows are locked in order; none is waited for.
func (l *Log) renewUnlocked(ctx context.Context, db dedicated.DB, server time.Time, all []*renewal) error {
	byOwner := make(map[string]*renewal, len(all))
	for _, a := range all {
		byOwner[a.holder.owner] = a
	}
	var consumers, owners, shareConsumers, shareOwners []string
	var shares []int16
	for owner, a := range byOwner {
		consumers, owners = append(consumers, a.holder.consumer), append(owners, owner)
		for _, share := range a.shares {
			shareConsumers, shareOwners = append(shareConsumers, a.holder.consumer), append(shareOwners, owner)
			shares = append(shares, share)
		}
	}
	rows, err := db.Query(ctx, `WITH
		here AS (
			SELECT m.consumer, m.owner FROM `+l.table("consumer_members")+` AS m
			JOIN unnest($1::text[], $2::text[]) AS asked (consumer, owner) ON m.consumer = asked.consumer AND m.owner = asked.owner
			WHERE NOT EXISTS (SELECT FROM `+l.table("consumers")+` AS c
				WHERE c.consumer = m.consumer AND c.paused_until > clock_timestamp())
			ORDER BY m.consumer, m.owner FOR UPDATE OF m SKIP LOCKED),
		seen AS (
			UPDATE `+l.table("consumer_members")+` AS m SET seen_until = clock_timestamp() + $6 FROM here
			WHERE m.consumer = here.consumer AND m.owner = here.owner),
		locked AS (
			SELECT s.consumer, s.share, s.owner FROM `+l.table("consumer_shares")+` AS s
			JOIN unnest($3::text[], $4::text[], $5::smallint[]) AS asked (consumer, owner, share)
				ON s.consumer = asked.consumer AND s.share = asked.share AND s.owner = asked.owner
			ORDER BY s.consumer, s.share FOR UPDATE OF s SKIP LOCKED),
		renewed AS (
			UPDATE `+l.table("consumer_shares")+` AS s SET lease_until = clock_timestamp() + $6 FROM locked
			WHERE s.consumer = locked.consumer AND s.share = locked.share RETURNING s.owner)
		SELECT here.owner, coalesce(renewed.n, 0),
			(SELECT count(*) FROM `+l.table("consumer_members")+` AS m
				WHERE m.consumer = here.consumer AND m.owner <> here.owner AND m.seen_until > clock_timestamp())
		FROM here LEFT JOIN (SELECT owner, count(*) AS n FROM renewed GROUP BY owner) AS renewed ON renewed.owner = here.owner
		WHERE `+l.sameServer("$7", "NULL"),
		consumers, owners, shareConsumers, shareOwners, shares, l.config.Lease, server)
	if err != nil {
		return fmt.Errorf("renew shares of %d consumers: %w", len(byOwner), err)
	}
	var owner string
	var n, others int
	_, err = pgx.ForEachRow(rows, []any{&owner, &n, &others}, func() error {
		a := byOwner[owner]
		if n == len(a.shares) {
			a.answered, a.answer = true, presence{held: a.shares, others: others, seated: true}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("renew shares of %d consumers: %w", len(byOwner), err)
	}
	return nil
}
