package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Consumers are woken in three ways: by Wake at once, in the process that committed; by a NOTIFY a moment after the commit,
// elsewhere; and by a poll that is enough by itself, when notifications do not come through. A NOTIFY inside of the
// commit would make all commits of the cluster wait for one lock, so it is sent after them, one for many.

const (
	notifyEvery   = 5 * time.Millisecond // at most; the first after a pause goes at once
	notifyTimeout = time.Second
	listenRetry   = 5 * time.Second
)

// wakeup tells the readers of a topic in this process that there is something new. Its zero value is ready.
type wakeup struct {
	mu     sync.Mutex
	topics map[string]chan struct{}
}

// next returns a channel that is closed at the next signal for the topic. Whoever waits takes it before looking.
func (w *wakeup) next(topic string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.topics == nil {
		w.topics = make(map[string]chan struct{})
	}
	if w.topics[topic] == nil {
		w.topics[topic] = make(chan struct{})
	}
	return w.topics[topic]
}

func (w *wakeup) signal(topic string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.topics[topic]; c != nil {
		close(c)
		delete(w.topics, topic)
	}
}

// notifier gathers the topics that other processes are to be told of. Its zero value is ready.
type notifier struct {
	mu     sync.Mutex
	topics map[string]bool // to be told; nil when nothing is under way
	last   time.Time
}

// Wake tells the consumers in this process at once, and those in others within some milliseconds, that the topics have
// new events. It is called after the commit and waits for nothing. If it is not called, or a notification is lost,
// they find out by polling.
func (l *Log) Wake(topics ...string) {
	for _, topic := range topics {
		l.wakeup.signal(topic)
	}
	if l.config.NotifyOff || len(topics) == 0 {
		return
	}
	n := &l.notifier
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.topics == nil {
		n.topics = make(map[string]bool)
		time.AfterFunc(time.Until(n.last.Add(notifyEvery)), l.notify)
	}
	for _, topic := range topics {
		n.topics[topic] = true
	}
}

func (l *Log) notify() {
	n := &l.notifier
	n.mu.Lock()
	topics := slices.Sorted(maps.Keys(n.topics))
	n.topics, n.last = nil, time.Now()
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), notifyTimeout)
	defer cancel()
	// A notification that is lost costs nothing but the wait for the next poll.
	if _, err := l.pool.Exec(ctx, `SELECT pg_notify($1, $2)`, l.channel(), strings.Join(topics, ",")); err != nil {
		l.logger.Debug("notification was not sent", slog.Any("error", err))
	}
}

func (l *Log) channel() string { return l.config.Schema + ".log" }

// lookout watches the topics that consumers of this process read: one poll for all of them, and one connection that
// listens. It works while there is a subscription.
type lookout struct {
	mu     sync.Mutex
	topics map[string]int // subscriptions
	stop   func()
}

// watch keeps the lookout on the topic until the function it returns is called.
func (l *Log) watch(topic string) (unwatch func()) {
	w := &l.lookout
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.topics) == 0 {
		w.topics = make(map[string]int)
		w.stop = l.startLookout()
	}
	w.topics[topic]++
	return func() {
		w.mu.Lock()
		stop := func() {}
		if w.topics[topic]--; w.topics[topic] == 0 {
			delete(w.topics, topic)
		}
		if len(w.topics) == 0 {
			stop = w.stop
		}
		w.mu.Unlock()
		stop()
	}
}

func (l *Log) startLookout() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { l.poll(ctx) })
	if !l.config.NotifyOff {
		running.Go(func() { l.listen(ctx) })
	}
	return func() {
		cancel()
		running.Wait()
	}
}

// poll looks at all topics with one query, and signals those that have something new.
func (l *Log) poll(ctx context.Context) {
	var server time.Time
	seen := make(map[string]place)
	for {
		sleep(ctx, l.config.Poll)
		if ctx.Err() != nil {
			return
		}
		l.lookout.mu.Lock()
		topics := slices.Sorted(maps.Keys(l.lookout.topics))
		l.lookout.mu.Unlock()
		var err error
		if server, err = l.look(ctx, topics, server, seen); err != nil && ctx.Err() == nil {
			l.logger.Debug("poll failed", slog.Any("error", err))
		}
	}
}

// dueMark stands before a consumer's name where a signal is for what it has parked. No topic begins with it.
const dueMark = "!"

// look compares each topic with where it was seen last, from where something new can be. What was not seen before is
// signalled once to be sure. It returns which server was looked at; on another one than was named all topics are signalled.
func (l *Log) look(ctx context.Context, topics []string, server time.Time, seen map[string]place) (now time.Time, err error) {
	if len(topics) == 0 {
		return server, nil
	}
	var query strings.Builder
	var args []any
	query.WriteString(`SELECT pg_postmaster_start_time(), pg_current_snapshot()::text, topic, floor, late FROM (`)
	for i, topic := range topics {
		if i > 0 {
			query.WriteString(` UNION ALL `)
		}
		last, n := seen[topic], len(args)
		args = append(args, topic, nullable(last.snapshot), last.floor, l.seals.before(server, topic, last.snapshot))
		table := l.topicTable(topic)
		fmt.Fprintf(&query, `SELECT $%[2]d::text AS topic, (SELECT coalesce(max(position), 0) FROM %[1]s WHERE position > $%[5]d) AS floor,
			EXISTS (SELECT FROM %[1]s WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip($%[3]d::pg_snapshot)))
				AND position > $%[5]d AND position + 0 <= $%[4]d)
			OR EXISTS (SELECT FROM %[1]s WHERE xid >= pg_snapshot_xmax($%[3]d::pg_snapshot)
				AND position > $%[5]d AND position + 0 <= $%[4]d) AS late`,
			table, n+1, n+2, n+3, n+4)
	}
	// A consumer that rests is woken for what it has parked, and when it was given to another log.
	query.WriteString(`) AS topics
		UNION ALL SELECT pg_postmaster_start_time(), '', '` + dueMark + `' || consumer, 0, true FROM ` + l.table("consumers") + ` AS c
		WHERE handed_over IS NOT NULL OR EXISTS (SELECT FROM ` + l.table("parked") + ` AS p
			WHERE p.consumer = c.consumer AND p.state = 'retry' AND p.run_at <= clock_timestamp())`)
	rows, err := l.pool.Query(ctx, query.String(), append([]any{l.perValue}, args...)...)
	if err != nil {
		return server, fmt.Errorf("look at topics: %w", err)
	}
	var snapshot, topic string
	var floor int64
	var late bool
	anew := sync.OnceFunc(func() { clear(seen) })
	_, err = pgx.ForEachRow(rows, []any{&now, &snapshot, &topic, &floor, &late}, func() error {
		if strings.HasPrefix(topic, dueMark) {
			l.wakeup.signal(topic)
			return nil
		}
		if !now.Equal(server) {
			anew()
		}
		last, known := seen[topic]
		seen[topic] = place{snapshot: snapshot, floor: max(last.floor, floor)}
		if !known || floor > last.floor || late {
			l.wakeup.signal(topic)
		}
		return nil
	})
	if err != nil {
		return server, fmt.Errorf("look at topics: %w", err)
	}
	return now, nil
}

// listen signals the topics that other processes tell of, on a connection of its own. Behind a pooler that hands a
// connection to others between transactions nothing arrives, and polling has to do.
func (l *Log) listen(ctx context.Context) {
	for ctx.Err() == nil {
		if err := l.listenOnce(ctx); err != nil && ctx.Err() == nil {
			l.logger.Debug("listening was interrupted", slog.Any("error", err))
		}
		sleep(ctx, listenRetry)
	}
}

func (l *Log) listenOnce(ctx context.Context) error {
	config := l.pool.Config()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return fmt.Errorf("connect to listen: %w", err)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return fmt.Errorf("connect to listen: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is given up either way
	if _, err := conn.Exec(ctx, `LISTEN `+pgx.Identifier{l.channel()}.Sanitize()); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l.lookout.mu.Lock()
	topics := slices.Collect(maps.Keys(l.lookout.topics))
	l.lookout.mu.Unlock()
	for _, topic := range topics { // what was told before is not told again
		l.wakeup.signal(topic)
	}
	for {
		told, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("wait for notification: %w", err)
		}
		for topic := range strings.SplitSeq(told.Payload, ",") {
			l.wakeup.signal(topic)
		}
	}
}
