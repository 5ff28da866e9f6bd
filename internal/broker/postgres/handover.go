package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/broker"
)

// A consumer has shares in one of two logs of a database: the one that the application appends to, or that of what arrives from a
// broker. One transaction moves all consumers of the relays' topics from one to the other, with what is left to them: takealong.go
// has how. So there is no state in between, whoever is killed.
//
//	consumers row       the application's log         the log of arrivals
//	a consumer, before  shares                        none, or handed_over
//	a consumer, after   handed_over, with the broker  shares
//	a relay, before     none
//	a relay, after      shares, with the broker
//
// Before, the consumers are paused: who has shares gives them up in good order and claims none (keeper.go), so that nothing is
// delivered twice. It is not what keeps effects apart; that is the inbox, which the two logs share.

const (
	// pauseFor is how long consumers are paused by one word. It is said again while a change is under way.
	pauseFor = 10 * time.Second
	// pauseLook is how often a change looks whether they have come to rest. It waits for handlers for as long as one who stops does
	// (Config.Drain).
	pauseLook = 100 * time.Millisecond
)

// UnfinishedError is returned when a consumer cannot change the log that it reads.
type UnfinishedError struct {
	Consumer string
	Owner    string // a process that is still handling something for it
	Left     int    // more than so many events are left to it, if no process is
	Bytes    int    // or more than so many bytes of them
}

// Error says what stands in the way.
func (e *UnfinishedError) Error() string {
	if e.Owner != "" {
		return fmt.Sprintf("consumer %s is still handling events in %s", e.Consumer, e.Owner)
	}
	if e.Bytes > 0 {
		return fmt.Sprintf("consumer %s has events of more than %d bytes left, parked or on their way", e.Consumer, e.Bytes)
	}
	return fmt.Sprintf("consumer %s has more than %d events left, parked or on their way", e.Consumer, e.Left)
}

// OtherBrokerError is returned when consumers read from another broker than the one that is named.
type OtherBrokerError struct{ Broker string }

// Error says which one.
func (e *OtherBrokerError) Error() string { return "the consumers read over " + e.Broker }

// Change tells what a change from one log to the other has done.
type Change struct {
	// Taken has the consumers that were moved, and how many events each took along.
	Taken []Taken
	// Of the events that were committed since the consumers were handed over, this many had arrived, had not and were taken
	// along, and were yet to be sent. They are all. It is told by TakeBack.
	Arrived, Missing, Unsent int
}

// Taken is how many events a consumer took along.
type Taken struct {
	Consumer string
	Events   int
}

// ReadsOver tells which broker the consumers of this log were handed over to, if they were; "" for one that was not noted.
func (l *Log) ReadsOver(ctx context.Context) (identity string, over bool, err error) {
	return l.readsOver(ctx, l.pool)
}

func (l *Log) readsOver(ctx context.Context, db rowQuerier) (identity string, over bool, err error) {
	err = db.QueryRow(ctx, `SELECT coalesce(max(broker), ''), count(*) > 0 FROM `+l.table("consumers")+`
		WHERE handed_over IS NOT NULL OR broker IS NOT NULL`).Scan(&identity, &over)
	if err != nil {
		return "", false, fmt.Errorf("read which broker consumers read over: %w", err)
	}
	return identity, over, nil
}

// HandOver makes relays of topics read this log in the place of the topics' consumers, which read what the relays carry in
// another. Per topic it happens at one moment: what has committed before is the consumers', and they take along what they have
// yet to handle; what commits later is the relays'. Applications may commit and consumers run meanwhile; these stand still for a
// moment. The other log has the topics; its Config.Inbox is this log's schema, or effects may come twice.
//
// The identity, that of a broker.Kind, says which broker the relays publish to. Where consumers read from another one already
// nothing is changed, and an *OtherBrokerError returned; with topics that are handed over to this one already, nothing is to do. It
// returns an *UnfinishedError, having changed nothing, when a handler does not end or more is left than is taken along.
func (l *Log) HandOver(ctx context.Context, to *Log, relays []Subscription, identity string) (c Change, err error) {
	if relays, err = l.unseated(ctx, l.pool, relays, identity); err != nil || len(relays) == 0 {
		return Change{}, err
	}
	err = l.quietly(ctx, to, relays, func(tx pgx.Tx) error {
		c = Change{}
		relays, err := l.unseated(ctx, tx, relays, identity)
		if err != nil {
			return err
		}
		for _, r := range relays {
			p, err := l.place(ctx, tx, r.Topic, Spot{})
			if err != nil {
				return err
			}
			if err := l.seatRelay(ctx, tx, to, r, p, identity); err != nil {
				return err
			}
			consumers, err := l.consumersOf(ctx, tx, r)
			if err != nil {
				return err
			}
			for _, s := range consumers {
				begin, err := to.place(ctx, tx, s.Topic, Spot{})
				if err != nil {
					return err
				}
				n, err := l.handOver(ctx, tx, to, s, p.snapshot, begin, identity)
				if err != nil {
					return err
				}
				c.Taken = append(c.Taken, Taken{Consumer: s.Consumer, Events: n})
			}
		}
		return to.dropHandedOver(ctx, tx, topicsOf(relays))
	})
	if err != nil {
		return Change{}, fmt.Errorf("hand consumers over: %w", err)
	}
	return c, nil
}

// unseated returns the relays that are yet to be made, unless the consumers read over another broker (*OtherBrokerError).
func (l *Log) unseated(ctx context.Context, db querier, relays []Subscription, identity string) ([]Subscription, error) {
	reads, over, err := l.readsOver(ctx, db)
	switch {
	case err != nil:
		return nil, err
	case over && reads != identity:
		return nil, &OtherBrokerError{Broker: reads}
	}
	seated, err := l.subscriptionsWhere(ctx, db, `since IS NOT NULL`)
	if err != nil {
		return nil, fmt.Errorf("look which topics are handed over: %w", err)
	}
	return slices.DeleteFunc(slices.Clone(relays), func(r Subscription) bool { return slices.Contains(seated, r) }), nil
}

// handOver moves one consumer, with what it has not handled of what the snapshot sees.
func (l *Log) handOver(ctx context.Context, tx pgx.Tx, to *Log, s Subscription, upTo string, begin place, identity string) (int, error) {
	if err := to.admit(ctx, tx, s); err != nil {
		return 0, err
	}
	if err := to.makeShares(ctx, tx, s.Consumer, begin); err != nil {
		return 0, err
	}
	n, err := l.takeAlong(ctx, tx, to, s, upTo, onTheWay{})
	if err != nil {
		return 0, err
	}
	return n, l.dismiss(ctx, tx, s.Consumer, upTo, &identity)
}

// TakeBack undoes HandOver, for all topics that were handed over: from one moment on the consumers read this log again, and the
// relays are gone. It takes along what had arrived and was not handled, and what was sent and had not arrived: it is looked for,
// event by event. What the relays had yet to send is read here. The broker is not needed. Applications may commit, and consumers
// and relays run meanwhile; these stand still for a moment. It returns an *UnfinishedError as HandOver does. Where nothing was
// handed over nothing is to do.
func (l *Log) TakeBack(ctx context.Context, from *Log) (c Change, err error) {
	relays, err := l.subscriptionsWhere(ctx, l.pool, `since IS NOT NULL`)
	if err != nil {
		return Change{}, fmt.Errorf("take consumers back: look which topics were handed over: %w", err)
	}
	if len(relays) == 0 {
		return Change{}, nil
	}
	err = l.quietly(ctx, from, relays, func(tx pgx.Tx) error {
		c = Change{}
		now, err := l.subscriptionsWhere(ctx, tx, `since IS NOT NULL`)
		switch {
		case err != nil || len(now) == 0: // somebody else was faster
			return err
		case !slices.Equal(now, relays):
			return errors.New("a topic was added at this moment; say it again")
		}
		for _, r := range relays {
			if err := from.closeIntake(ctx, tx, r.Topic); err != nil {
				return err
			}
			w, err := l.onTheWay(ctx, tx, from, r)
			if err != nil {
				return err
			}
			c.Arrived, c.Missing, c.Unsent = c.Arrived+w.arrived, c.Missing+len(w.missing)+len(w.refused), c.Unsent+w.unsent
			consumers, err := from.consumersOf(ctx, tx, r)
			if err != nil {
				return err
			}
			for _, s := range consumers {
				n, err := l.takeBack(ctx, tx, from, s, r, w)
				if err != nil {
					return err
				}
				c.Taken = append(c.Taken, Taken{Consumer: s.Consumer, Events: n})
			}
		}
		for _, table := range []string{"parked", "consumers"} {
			if _, err := tx.Exec(ctx, `DELETE FROM `+l.table(table)+` WHERE consumer = ANY ($1)`, names(relays)); err != nil {
				return err
			}
		}
		return l.dropHandedOver(ctx, tx, topicsOf(relays))
	})
	if err != nil {
		return Change{}, fmt.Errorf("take consumers back: %w", err)
	}
	return c, nil
}

// takeBack moves one consumer to where the relay stands.
func (l *Log) takeBack(ctx context.Context, tx pgx.Tx, from *Log, s, relay Subscription, w onTheWay) (int, error) {
	if err := l.admit(ctx, tx, s); err != nil {
		return 0, err
	}
	tag, err := tx.Exec(ctx, `INSERT INTO `+l.table("consumer_shares")+`
			(consumer, share, snapshot, floor, fence, window_end, position, epoch, ahead)
		SELECT $1, share, snapshot, floor, fence, window_end, position, `+firstEpoch+`, ahead || ARRAY(
			SELECT position FROM `+l.topicTable(relay.Topic)+` AS t WHERE position = ANY ($3::bigint[]) AND slot % $4::smallint = s.share)
		FROM `+l.table("consumer_shares")+` AS s WHERE consumer = $2`, s.Consumer, relay.Consumer, w.early, shareCount)
	if err != nil {
		return 0, err
	}
	if tag.RowsAffected() != shareCount {
		return 0, fmt.Errorf("topic %s has no relay", relay.Topic)
	}
	n, err := from.takeAlong(ctx, tx, l, s, w.upTo, w)
	if err != nil {
		return 0, err
	}
	return n, from.dismiss(ctx, tx, s.Consumer, w.upTo, nil)
}

// ProvisionOver is Provision for consumers that were handed over to the broker of that identity: what is new begins in the other
// log. It also makes relays of topics that are new; one whose consumers read this log, since whoever handed the others over did not
// know it, is left as it is until HandOver is called. It reports false, having done nothing, when the consumers read this log, and
// returns an *OtherBrokerError.
func (l *Log) ProvisionOver(ctx context.Context, to *Log, consumers, relays []Subscription, identity string) (over bool, err error) {
	err = l.change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(provisionLock)); err != nil {
			return err
		}
		var err error
		if over, err = l.readOver(ctx, tx, relays, identity); err != nil || !over {
			return err
		}
		stay := make(map[string]bool) // topics
		for _, r := range relays {
			here, err := l.consumersOf(ctx, tx, r)
			if err == nil && len(here) == 0 {
				err = l.addRelay(ctx, tx, to, r, identity)
			}
			if err != nil {
				return err
			}
			stay[r.Topic] = len(here) > 0
		}
		for _, s := range consumers {
			at := to
			if stay[s.Topic] {
				at = l
			}
			if _, err := at.provisionConsumer(ctx, tx, s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return over, fmt.Errorf("provision consumers behind a broker: %w", err)
	}
	return over, nil
}

// readOver tells whether consumers were handed over, to the broker of that identity: which one it was is noted now where it was
// not noted then.
func (l *Log) readOver(ctx context.Context, tx pgx.Tx, relays []Subscription, identity string) (over bool, err error) {
	reads, over, err := l.readsOver(ctx, tx)
	switch {
	case err != nil || !over || reads == identity:
		return over, err
	case reads != "":
		return over, &OtherBrokerError{Broker: reads}
	}
	_, err = tx.Exec(ctx, `UPDATE `+l.table("consumers")+` SET broker = $1
		WHERE handed_over IS NOT NULL OR consumer = ANY ($2)`, identity, names(relays))
	return over, err
}

// addRelay makes the relay of a topic that came later.
func (l *Log) addRelay(ctx context.Context, tx pgx.Tx, to *Log, relay Subscription, identity string) error {
	var known bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+l.table("consumer_shares")+` WHERE consumer = $1)`, relay.Consumer).Scan(&known)
	if err != nil {
		return err
	}
	if known {
		return to.openIntake(ctx, tx, relay.Topic, identity)
	}
	p, err := l.place(ctx, tx, relay.Topic, Spot{})
	if err != nil {
		return err
	}
	return l.seatRelay(ctx, tx, to, relay, p, identity)
}

// seatRelay makes a relay, and notes where it begins: what was before is nothing that it may ever be moved back to, since it is
// the consumers'.
func (l *Log) seatRelay(ctx context.Context, tx pgx.Tx, to *Log, relay Subscription, p place, identity string) error {
	if err := l.admit(ctx, tx, relay); err != nil {
		return err
	}
	if err := l.makeShares(ctx, tx, relay.Consumer, p); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE `+l.table("consumers")+` SET since = $2::text::pg_snapshot, since_floor = $3, broker = $4
		WHERE consumer = $1`, relay.Consumer, p.snapshot, p.floor, identity); err != nil {
		return err
	}
	return to.openIntake(ctx, tx, relay.Topic, identity)
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

// consumersOf are the consumers of a relay's topic that have shares here, but for the relay.
func (l *Log) consumersOf(ctx context.Context, tx pgx.Tx, relay Subscription) ([]Subscription, error) {
	return l.subscriptionsWhere(ctx, tx, `topic = $1 AND consumer <> $2
		AND EXISTS (SELECT FROM `+l.table("consumer_shares")+` AS s WHERE s.consumer = c.consumer)`, relay.Topic, relay.Consumer)
}

type querier interface {
	rowQuerier
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// subscriptionsWhere are the consumers c that the condition is true of, by name.
func (l *Log) subscriptionsWhere(ctx context.Context, db querier, condition string, args ...any) ([]Subscription, error) {
	rows, err := db.Query(ctx, `SELECT consumer, topic FROM `+l.table("consumers")+` AS c WHERE `+condition+` ORDER BY 1`, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Subscription, err error) {
		err = row.Scan(&s.Consumer, &s.Topic)
		return s, err
	})
}

// admit makes a consumer's row in this log, without shares.
func (l *Log) admit(ctx context.Context, tx pgx.Tx, s Subscription) error {
	if _, err := tx.Exec(ctx, `INSERT INTO `+l.table("consumers")+` (consumer, topic) VALUES ($1, $2)
		ON CONFLICT (consumer) DO UPDATE SET topic = excluded.topic, handed_over = NULL, broker = NULL, paused_until = NULL`,
		s.Consumer, s.Topic); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `DELETE FROM `+l.table("consumer_shares")+` WHERE consumer = $1`, s.Consumer)
	return err
}

// dismiss takes a consumer's shares in this log away. Without them there is nothing to claim, for a process that has yet to hear
// of it either.
func (l *Log) dismiss(ctx context.Context, tx pgx.Tx, consumer, upTo string, identity *string) error {
	if _, err := tx.Exec(ctx, `UPDATE `+l.table("consumers")+` SET handed_over = $2::text::pg_snapshot, broker = $3, paused_until = NULL
		WHERE consumer = $1`, consumer, upTo, identity); err != nil {
		return err
	}
	for _, table := range []string{"consumer_shares", "consumer_members"} {
		if _, err := tx.Exec(ctx, `DELETE FROM `+l.table(table)+` WHERE consumer = $1`, consumer); err != nil {
			return err
		}
	}
	return nil
}

// dropHandedOver forgets consumers of the topics that were handed over and are in the other log no more: they were forgotten there,
// or renamed.
func (l *Log) dropHandedOver(ctx context.Context, tx pgx.Tx, topics []string) error {
	_, err := tx.Exec(ctx, `DELETE FROM `+l.table("consumers")+` WHERE handed_over IS NOT NULL AND topic = ANY ($1)`, topics)
	return err
}

func names(subscriptions []Subscription) []string {
	all := make([]string, len(subscriptions))
	for i, s := range subscriptions {
		all[i] = s.Consumer
	}
	return all
}

func topicsOf(subscriptions []Subscription) []string {
	all := make([]string, len(subscriptions))
	for i, s := range subscriptions {
		all[i] = s.Topic
	}
	return all
}

// quietly carries a change out at a moment when no process has shares of the topics' consumers, in either log. The change may be
// tried several times.
//
// A relay whose broker is away cannot finish what it is publishing. It is not waited for any longer than it takes each process to
// hear of the pause, or to lose its leases: what it has under way then was committed before the change.
func (l *Log) quietly(ctx context.Context, other *Log, relays []Subscription, change func(pgx.Tx) error) (err error) {
	logs, topics := []*Log{l, other}, topicsOf(relays)
	defer func() {
		for _, each := range logs {
			err = errors.Join(err, each.pause(context.WithoutCancel(ctx), topics, 0))
			each.Wake(topics...)
		}
	}()
	began := time.Now()
	for {
		for _, each := range logs {
			if err := each.pause(ctx, topics, pauseFor); err != nil {
				return err
			}
		}
		var unawaited []string
		if time.Since(began) > l.config.Lease+locateEvery {
			unawaited = names(relays)
		}
		err := atRest(ctx, l.pool, logs, topics, unawaited)
		if err == nil {
			err = l.change(ctx, func(tx pgx.Tx) error {
				if err := lockForChange(ctx, tx, logs, topics); err != nil {
					return err
				}
				if err := atRest(ctx, tx, logs, topics, unawaited); err != nil {
					return err
				}
				return change(tx)
			})
		}
		var unfinished *UnfinishedError
		if !errors.As(err, &unfinished) || unfinished.Owner == "" || time.Since(began) > l.config.Drain {
			return err
		}
		if err := pause(ctx, pauseLook); err != nil {
			return err
		}
	}
}

// lockForChange keeps everything else from the topics' consumers, and waits for what is under way. A consumer's checkpoints come
// before its lock, or reach nothing.
func lockForChange(ctx context.Context, tx pgx.Tx, logs []*Log, topics []string) error {
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(provisionLock)); err != nil {
		return err
	}
	for _, l := range logs {
		if _, err := tx.Exec(ctx, `SELECT FROM `+l.table("intakes")+` WHERE topic = ANY ($1) ORDER BY topic FOR UPDATE`,
			topics); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT FROM `+l.table("consumer_shares")+` WHERE consumer IN (
			SELECT consumer FROM `+l.table("consumers")+` WHERE topic = ANY ($1)) ORDER BY share, consumer FOR UPDATE`,
			topics); err != nil {
			return err
		}
	}
	return nil
}

// pause has the processes give the shares of the topics' consumers up and claim none, for as long. Consumers that somebody changes at
// this moment are left out: two changes would wait for each other's.
func (l *Log) pause(ctx context.Context, topics []string, d time.Duration) error {
	_, err := l.pool.Exec(ctx, `UPDATE `+l.table("consumers")+`
		SET paused_until = CASE WHEN $2 > interval '0' THEN clock_timestamp() + $2 END
		WHERE consumer IN (SELECT consumer FROM `+l.table("consumers")+` WHERE topic = ANY ($1) AND handed_over IS NULL
			FOR NO KEY UPDATE SKIP LOCKED)`, topics, d)
	if err != nil {
		return fmt.Errorf("pause consumers: %w", err)
	}
	return nil
}

// atRest returns an *UnfinishedError if some process has shares of the topics' consumers, but for those that are excepted.
func atRest(ctx context.Context, db rowQuerier, logs []*Log, topics, except []string) error {
	for _, l := range logs {
		busy := new(UnfinishedError)
		err := db.QueryRow(ctx, `SELECT consumer, owner FROM `+l.table("consumer_shares")+` JOIN `+l.table("consumers")+` USING (consumer)
			WHERE topic = ANY ($1) AND consumer <> ALL (coalesce($2::text[], '{}')) AND owner IS NOT NULL
			AND lease_until > clock_timestamp() ORDER BY 1, 2 LIMIT 1`, topics, except).Scan(&busy.Consumer, &busy.Owner)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
		case err != nil:
			return fmt.Errorf("look who runs consumers: %w", err)
		default:
			return busy
		}
	}
	return nil
}

// openIntake has arrivals of a topic stored that come from the broker, and no others.
func (l *Log) openIntake(ctx context.Context, tx pgx.Tx, topic, identity string) error {
	_, err := tx.Exec(ctx, `INSERT INTO `+l.table("intakes")+` AS i (topic, broker) VALUES ($1, $2)
		ON CONFLICT (topic) DO UPDATE SET broker = excluded.broker, version = i.version + 1, owner = NULL, lease_until = NULL
		WHERE i.broker <> excluded.broker`, topic, identity)
	return err
}

// closeIntake has no arrivals of a topic stored any more, whoever has read some.
func (l *Log) closeIntake(ctx context.Context, tx pgx.Tx, topic string) error {
	_, err := tx.Exec(ctx, `UPDATE `+l.table("intakes")+` SET broker = '', version = version + 1, owner = NULL, lease_until = NULL
		WHERE topic = $1`, topic)
	return err
}

// arrivalsKnown is for how long the ids of arrivals can be relied upon.
const arrivalsKnown = broker.Remembered - 24*time.Hour
