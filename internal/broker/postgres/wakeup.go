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

	"postbus/internal/dedicated"
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
// listens. It works while there is a subscription, and so does the connection of renewals.
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
		l.renewals.rest()
	}
}

// poll looks at all topics with one query, and signals those that may have something new.
func (l *Log) poll(ctx context.Context) {
	var s sights
	for {
		sleep(ctx, l.config.Poll)
		if ctx.Err() != nil {
			return
		}
		l.lookout.mu.Lock()
		topics := slices.Sorted(maps.Keys(l.lookout.topics))
		l.lookout.mu.Unlock()
		if err := l.look(ctx, topics, &s); err != nil && ctx.Err() == nil {
			s = sights{} // the server may have lost what was seen and not yet committed
			l.logger.Debug("poll failed", slog.Any("error", err))
		}
	}
}

// sights are what the looks at topics have shown on a server. The zero value has seen nothing.
type sights struct {
	server time.Time // by its life
	topics map[string]*sight
}

// sight is of one topic. An event has its transaction's id before its position (doc.go), so when a look sees the position drawn,
// the id was given out. The next look tells whether the transaction is still under way; from then on its end is waited
// for. So nothing of the topic itself has to be read, and one at which nothing happens costs next to nothing.
type sight struct {
	drawn int64 // the position drawn last
	moved bool  // drawn has, at the last look
	// The transactions under way that may have drawn positions: these, and those from the next id up to the end that have not
	// ended. Snapshots do not list the newest.
	open      []uint64
	next, end uint64
}

// follow takes in another look at the topic, and reports whether there may be something new: since a position was drawn, since
// that was under way, or since a transaction that may have drawn one has ended.
func (s *sight) follow(drawn int64, now horizon) bool {
	isNew := drawn != s.drawn || s.moved
	if s.moved {
		s.open, s.next, s.end = now.listed, now.xmax, now.end
	} else if s.ended(now) {
		isNew = true
	}
	s.moved, s.drawn = drawn != s.drawn, drawn
	return isNew
}

// ended takes out the transactions that have ended, and reports whether there were any.
func (s *sight) ended(now horizon) bool {
	var still []uint64
	for _, id := range now.listed {
		if slices.Contains(s.open, id) || (s.next <= id && id < s.end) {
			still = append(still, id)
		}
	}
	before := uint64(len(s.open))
	if reached := min(now.xmax, s.end); s.next < reached {
		before += reached - s.next
		s.next = reached
	}
	s.open = still
	return uint64(len(still)) < before
}

// horizon is which transactions are under way.
type horizon struct {
	listed []uint64 // those before xmax
	xmax   uint64
	end    uint64 // the first id that was not given out
}

// newHorizon reads a snapshot. So many ids had been given out from its xmax on.
func newHorizon(snapshot string, given uint64) horizon {
	_, rest, _ := strings.Cut(snapshot, ":")
	xmax, list, _ := strings.Cut(rest, ":")
	h := horizon{xmax: number(xmax)}
	h.end = h.xmax + given
	if list != "" {
		for id := range strings.SplitSeq(list, ",") {
			h.listed = append(h.listed, number(id))
		}
	}
	return h
}

// dueMark stands before a consumer's name where a signal is for what it has parked. No topic begins with it.
const dueMark = "!"

// look looks at topics once more, and signals those that may have something new. What was not seen before on this server is
// signalled to be sure.
func (l *Log) look(ctx context.Context, topics []string, s *sights) error {
	if len(topics) == 0 {
		return nil
	}
	// Whoever may not see the sequences finds something new each time. A consumer that rests is woken for what it has
	// parked, and when it was given to another log.
	rows, err := l.pool.Query(ctx, `SELECT coalesce(`+l.lifeSQL()+`, pg_postmaster_start_time()), pg_current_snapshot()::text,
			age(pg_snapshot_xmax(pg_current_snapshot())::xid), topic,
			CASE WHEN has_sequence_privilege(sequence, 'USAGE, SELECT') THEN coalesce(pg_sequence_last_value(sequence), 0) END
		FROM (SELECT topic, to_regclass(format('%I.%I', $2::text, $3::text || topic || $4::text)) AS sequence
			FROM unnest($1::text[]) AS topic OFFSET 0) AS topics
		UNION ALL SELECT now(), '', 0, '`+dueMark+`' || consumer, NULL FROM `+l.table("consumers")+` AS c
		WHERE handed_over IS NOT NULL OR EXISTS (SELECT FROM `+l.table("parked")+` AS p
			WHERE p.consumer = c.consumer AND p.state = 'retry' AND p.run_at <= clock_timestamp())`,
		topics, l.config.Schema, topicPrefix, positionSuffix)
	if err != nil {
		return fmt.Errorf("look at topics: %w", err)
	}
	var server time.Time
	var snapshot, topic string
	var given int32
	var drawn *int64
	now := sync.OnceValue(func() horizon { return newHorizon(snapshot, uint64(max(given, 0))) }) // one for all rows
	_, err = pgx.ForEachRow(rows, []any{&server, &snapshot, &given, &topic, &drawn}, func() error {
		if strings.HasPrefix(topic, dueMark) || drawn == nil {
			l.wakeup.signal(topic)
			return nil
		}
		if s.topics == nil || !server.Equal(s.server) {
			s.server, s.topics = server, make(map[string]*sight)
		}
		seen := s.topics[topic]
		if seen == nil {
			seen = &sight{drawn: -1}
			s.topics[topic] = seen
		}
		if seen.follow(*drawn, now()) {
			l.wakeup.signal(topic)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at topics: %w", err)
	}
	return nil
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
	conn, err := dedicated.Connect(ctx, l.pool)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
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
