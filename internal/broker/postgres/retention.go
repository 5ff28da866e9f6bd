package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Retention says when events may go. They go by whole partitions, which Maintain closes often enough for that. The zero
// value keeps every event for ever.
type Retention struct {
	// Age is how old an event has to be, by the database's clock, since its transaction began. It goes when its partition's
	// last one is that old, about an eighth of Age later at most. Default: 0, events are kept for ever.
	Age time.Duration
	// DropUnread lets events go that some consumer of the topic has yet to handle. Default: false, they are kept for it,
	// and the log says so.
	DropUnread bool
}

const (
	// detachLockWait is how long publishers may come to queue behind a lock that retention waits for, and detachTimeout how
	// long they may be held up in all. Both are kept by the server.
	detachLockWait = 40 * time.Millisecond
	detachTimeout  = 80 * time.Millisecond
	// detachTries in a round of maintenance are to find a moment in which nobody is at the topic. A publisher whose plan is
	// made anew asks for its lock twice; with detachPause between the tries it does not meet two of them in one commit.
	detachTries = 4
	detachPause = 200 * time.Millisecond
	// codeUnread is raised when a partition turns out to have unread events under the lock.
	codeUnread = "PB001"
)

// lockTimeoutSQL bounds the wait of DDL that holds nobody up.
var lockTimeoutSQL = setLocal("lock_timeout", detachLockWait)

func setLocal(name string, d time.Duration) string {
	return fmt.Sprintf(`SET LOCAL %s = %d`, name, d.Milliseconds())
}

// Maintain keeps the topics' tables in shape until ctx ends: it makes partitions ahead of need, closes those that are
// full or old, and drops what retention lets go. Every process that publishes or reads may run it; they share the work
// without waiting for each other, and an interruption leaves nothing half done that the next round does not finish.
// Publishing goes on without it, and no publisher waits longer than 100 ms for it. Trouble is logged.
func (l *Log) Maintain(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err := l.maintain(ctx); err != nil && ctx.Err() == nil {
			l.logger.Warn("maintenance of the event log interrupted, will be tried again", slog.Any("error", err))
		}
		// Processes that started together need not come together.
		timer.Reset(l.config.MaintainEvery - rand.N(l.config.MaintainEvery/10+1)) //nolint:gosec // jitter needs no secrecy
	}
}

// maintain is one round. Each step rests on a survey of what the one before it left. A topic in trouble does not keep the
// others from their turn.
func (l *Log) maintain(ctx context.Context) error {
	var problems []error
	for _, step := range []func(context.Context, partitions) error{l.closeIfDue, l.recordClosed, l.extend, l.retain} {
		topics, err := l.survey(ctx)
		if err != nil {
			return errors.Join(append(problems, err)...)
		}
		for _, t := range topics {
			if err := step(ctx, t); err != nil {
				problems = append(problems, err)
			}
		}
	}
	if _, err := l.sweepInbox(ctx); err != nil {
		problems = append(problems, err)
	}
	if _, err := l.sweepArrivals(ctx); err != nil {
		problems = append(problems, err)
	}
	if err := l.sweepResolved(ctx); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// retain drops the topic's oldest partitions, as many as may go.
func (l *Log) retain(ctx context.Context, t partitions) error {
	if err := l.dropDetached(ctx, t.topic); err != nil || l.config.Retention.Age == 0 {
		return err
	}
	for _, p := range t.parts {
		if !p.closed || p.age < l.config.Retention.Age {
			return nil // nor are those after it
		}
		detached, err := l.detach(ctx, t.topic, p.number)
		if err != nil {
			return fmt.Errorf("detach partition %d of topic %s: %w", p.number, t.topic, err)
		}
		if !detached {
			return nil
		}
		if err := l.dropDetached(ctx, t.topic); err != nil {
			return err
		}
	}
	return nil
}

// detach takes a partition out of the topic, if there is a moment for it. It reports false when it has to stay for now.
//
// DETACH waits until nobody is at the topic, and whoever comes meanwhile waits behind it. So it is not asked for while
// somebody seems to stay, and not for long. CONCURRENTLY would wait without being in the way; but Postgres 13 does not
// have it, it cannot be undone when a late row turns up, and a process that dies in it leaves the partition in between.
func (l *Log) detach(ctx context.Context, topic string, n int64) (bool, error) {
	for range detachTries {
		unread, err := l.unread(ctx, topic, n)
		if err != nil {
			return false, err
		}
		if len(unread) > 0 && !l.config.Retention.DropUnread {
			l.keeps.tell(l.logger, topic, n, "consumers have not read them: "+strings.Join(unread, ", "))
			return false, nil
		}
		stays, err := l.heldFor(ctx, detachLockWait, topic, n)
		if err != nil {
			return false, err
		}
		if !stays {
			switch err = l.execDetach(ctx, topic, n); {
			case err == nil:
				l.keeps.forget(topic, n)
				l.logDropped(topic, n, unread)
				return true, nil
			case hasCode(err, codeUndefinedTable): // another process was faster
				return true, nil
			case hasCode(err, codeUnread):
				return false, nil // asks again next time
			case !isBusy(err):
				return false, err
			}
		}
		if err := pause(ctx, detachPause); err != nil {
			return false, err
		}
	}
	l.keeps.tell(l.logger, topic, n, "transactions that use the topic's table stay open")
	return false, nil
}

func (l *Log) logDropped(topic string, n int64, unread []string) {
	at := []any{slog.String("topic", topic), slog.Int64("partition", n)}
	if len(unread) == 0 {
		l.logger.Info("events older than the retention age are dropped", at...)
		return
	}
	l.logger.Warn("events older than the retention age are dropped, and some consumers had not read them",
		append(at, slog.Any("consumers", unread))...)
}

// execDetach does it in one statement, whose time the server bounds. Whoever has drawn a position holds a lock on the topic
// until it commits, also while its row is on the way to its partition. So under the lock all rows are there to be seen,
// and whether they were read is settled.
func (l *Log) execDetach(ctx context.Context, topic string, n int64) error {
	table := l.topicTable(topic)
	guard := ""
	if !l.config.Retention.DropUnread {
		guard = `PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
			IF EXISTS (` + l.unreadSQL(topic, n) + `) THEN
				RAISE EXCEPTION 'not read by every consumer' USING ERRCODE = '` + codeUnread + `';
			END IF;`
	}
	// Losing it in a crash is no loss, so nobody has to wait for the disk behind it.
	return l.execAlone(ctx, lockTimeoutSQL, setLocal("statement_timeout", detachTimeout), `SET LOCAL synchronous_commit = off`,
		fmt.Sprintf(`DO $postbus$ BEGIN
			IF NOT pg_try_advisory_xact_lock(%d) THEN
				RAISE EXCEPTION 'another process is at it' USING ERRCODE = '%s';
			END IF;
			LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE;
			%s
			ALTER TABLE %[3]s DETACH PARTITION %[5]s;
			UPDATE %[6]s SET detached = true WHERE topic = %[7]s AND number = %[8]d;
		END $postbus$`, int64(provisionLock), codeLockNotAvailable, table, guard, l.partitionTable(topic, n),
			l.table("partitions"), quoted(topic), n))
}

// dropDetached drops what detach has left. Nobody uses it any more, and if somebody does, there is a next time.
func (l *Log) dropDetached(ctx context.Context, topic string) error {
	rows, err := l.pool.Query(ctx, `SELECT number FROM `+l.table("partitions")+` WHERE topic = $1 AND detached`, topic)
	if err != nil {
		return fmt.Errorf("list detached partitions of topic %s: %w", topic, err)
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("list detached partitions of topic %s: %w", topic, err)
	}
	for _, n := range numbers {
		if err := l.drop(ctx, topic, n); err != nil && !isBusy(err) {
			return fmt.Errorf("drop partition %d of topic %s: %w", n, topic, err)
		}
	}
	return nil
}

// drop drops a partition that is detached. On a server that has lost the detaching (server.go) it is not, whatever was seen.
func (l *Log) drop(ctx context.Context, topic string, n int64) error {
	return l.execAlone(ctx, lockTimeoutSQL, fmt.Sprintf(`DO $postbus$ BEGIN
		DELETE FROM %s WHERE topic = %s AND number = %d AND detached;
		IF FOUND THEN
			DROP TABLE IF EXISTS %s;
		END IF;
	END $postbus$`, l.table("partitions"), quoted(topic), n, l.partitionTable(topic, n)))
}

// placesSQL is a query for where the shares of the topic's consumers stand, mostly at one place: all that retention knows
// about how places are stored. Which rows are of which share it does not look at, so a share that is behind keeps
// those of others too, until it comes after.
func (l *Log) placesSQL(topic string) string {
	return `SELECT DISTINCT ON (consumer, snapshot::text, floor, window_end::text, position)
			consumer, snapshot, floor, coalesce(window_end, snapshot) AS seen, position, window_end IS NOT NULL AS paging
		FROM ` + l.table("consumer_shares") + ` JOIN ` + l.table("consumers") + ` USING (consumer) WHERE topic = ` + quoted(topic)
}

// unreadSQL is a query for the consumers that have yet to handle some row of the partition, in the terms of doc.go: one
// that was not visible at the end of the last window; or, in a window that is under way, one beyond its position, in the
// tail or among the late ones. What is handled ahead of the place counts when the place has got there.
//
// Each branch ends at its first row, and begins where its index says: TestPassedIsCheap. The sum in the late ones keeps
// the planner from the primary key, by which it would go through the whole partition. A snapshot from the future is one
// of another cluster, which tells nothing here.
func (l *Log) unreadSQL(topic string, n int64) string {
	exists := `EXISTS (SELECT FROM ` + l.partitionTable(topic, n) + ` AS r WHERE %s)`
	after := func(snapshot, which string) string { // what is not visible in the snapshot, by either way of not being so
		return `(` + fmt.Sprintf(exists, `r.xid >= pg_snapshot_xmax(`+snapshot+`)`+which) + ` OR ` +
			fmt.Sprintf(exists, `r.xid = ANY (ARRAY(SELECT pg_snapshot_xip(`+snapshot+`)))`+which) + `)`
	}
	return `SELECT p.consumer FROM (` + l.placesSQL(topic) + `) AS p
		WHERE pg_snapshot_xmax(p.seen) > pg_snapshot_xmax(pg_current_snapshot()) OR ` + after("p.seen", "") + `
		OR (p.paging AND ` + fmt.Sprintf(exists, `r.position > greatest(p.position, p.floor)`) + `)
		OR (p.paging AND p.position < p.floor AND ` +
		after("p.snapshot", ` AND r.position + 0 > p.position AND r.position + 0 <= p.floor`) + `)`
}

// unread names the consumers that have yet to handle some event of the partition.
func (l *Log) unread(ctx context.Context, topic string, n int64) (consumers []string, err error) {
	err = pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		// Planned without it a query looks so dear that it would be compiled first.
		if _, err := tx.Exec(ctx, `SELECT set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true)`); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, l.unreadSQL(topic, n)+` ORDER BY 1`)
		if err != nil {
			return err
		}
		consumers, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return slices.Compact(consumers), err
}

// heldFor reports whether some transaction has had the topic or the partition for that long and has it still.
func (l *Log) heldFor(ctx context.Context, d time.Duration, topic string, n int64) (bool, error) {
	var holders []string
	for try := range 2 {
		if try > 0 {
			if err := pause(ctx, d); err != nil {
				return false, err
			}
		}
		err := l.pool.QueryRow(ctx, `SELECT coalesce(array_agg(virtualtransaction), '{}') FROM pg_locks
			WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND relation IN (to_regclass($1), to_regclass($2)) AND granted AND pid IS DISTINCT FROM pg_backend_pid()
			AND (NOT $3 OR virtualtransaction = ANY ($4))`,
			l.topicTable(topic), l.partitionTable(topic, n), try > 0, holders).Scan(&holders)
		if err != nil || len(holders) == 0 {
			return false, err
		}
	}
	return true, nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keeps remembers why partitions that are old enough stay, to say so once. Its zero value is ready.
type keeps struct {
	mu      sync.Mutex
	reasons map[keep]string
}

type keep struct {
	topic     string
	partition int64
}

func (k *keeps) tell(logger *slog.Logger, topic string, n int64, reason string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reasons[keep{topic, n}] == reason {
		return
	}
	if k.reasons == nil {
		k.reasons = make(map[keep]string)
	}
	k.reasons[keep{topic, n}] = reason
	logger.Warn("events older than the retention age are kept", slog.String("topic", topic), slog.Int64("partition", n),
		slog.String("reason", reason))
}

func (k *keeps) forget(topic string, n int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.reasons, keep{topic, n})
}
