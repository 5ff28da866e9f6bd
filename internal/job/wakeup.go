package job

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

// Workers are woken in three ways: by Wake at once, in the process that committed; by a NOTIFY a moment after the commit,
// elsewhere; and by a poll that is enough by itself. A NOTIFY inside of the commit would make all commits of the cluster
// wait for one lock, so it is sent after them, one for many.

const (
	notifyEvery   = 5 * time.Millisecond // at most; the first after a pause goes at once
	notifyTimeout = time.Second
	listenRetry   = 5 * time.Second
	// cancelSignal stands among the queues in a notification when running jobs are to be cancelled; no queue has its name.
	cancelSignal = "!"
)

// wakeup tells those who wait for a queue in this process that there may be something to take. Its zero value is ready.
type wakeup struct {
	mu     sync.Mutex
	queues map[string]chan struct{}
}

// next returns a channel that is closed at the next signal for the queue. Whoever waits takes it before looking.
func (w *wakeup) next(queue string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queues == nil {
		w.queues = make(map[string]chan struct{})
	}
	if w.queues[queue] == nil {
		w.queues[queue] = make(chan struct{})
	}
	return w.queues[queue]
}

func (w *wakeup) signal(queue string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.queues[queue]; c != nil {
		close(c)
		delete(w.queues, queue)
	}
}

// notifier gathers the queues that other processes are to be told of. Its zero value is ready.
type notifier struct {
	mu     sync.Mutex
	queues map[string]bool // to be told; nil when nothing is under way
	last   time.Time
}

// Wake tells the workers in this process at once, and those in others within some milliseconds, that the queues have new
// jobs. It is called after the commit and waits for nothing. If it is not called, or a notification is lost, they find out
// by polling.
func (t *Table) Wake(queues ...string) {
	for _, queue := range queues {
		t.wakeup.signal(queue)
	}
	if t.config.NotifyOff || len(queues) == 0 {
		return
	}
	n := &t.notifier
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.queues == nil {
		n.queues = make(map[string]bool)
		time.AfterFunc(time.Until(n.last.Add(notifyEvery)), t.notify)
	}
	for _, queue := range queues {
		n.queues[queue] = true
	}
}

func (t *Table) notify() {
	n := &t.notifier
	n.mu.Lock()
	queues := slices.Sorted(maps.Keys(n.queues))
	n.queues, n.last = nil, time.Now()
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), notifyTimeout)
	defer cancel()
	// A notification that is lost costs nothing but the wait for the next poll.
	if _, err := t.pool.Exec(ctx, `SELECT pg_notify($1, $2)`, t.channel(), strings.Join(queues, ",")); err != nil {
		t.logger.Debug("notification was not sent", slog.Any("error", err))
	}
}

func (t *Table) channel() string { return t.config.Schema + ".job" }

// watchDue looks for due jobs in all of the worker's queues with one query, and signals those queues. It signals at the very
// time when a job becomes due before the next look.
func (w *worker) watchDue(ctx context.Context) {
	for ctx.Err() == nil {
		sleep(ctx, w.table.config.Poll)
		if ctx.Err() != nil {
			return
		}
		if err := w.lookForDue(ctx); err != nil && ctx.Err() == nil {
			w.table.logger.Debug("poll failed", slog.Any("error", err))
		}
	}
}

func (w *worker) lookForDue(ctx context.Context) error {
	queues, levels, from := w.looks()
	if len(queues) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.table.config.Lease)
	defer cancel()
	rows, err := w.table.pool.Query(ctx, w.table.sql.due, w.table.perValue, queues, levels, from, w.table.config.Poll.Microseconds())
	if err != nil {
		return fmt.Errorf("look for due jobs: %w", err)
	}
	var queue string
	var wait int64
	_, err = pgx.ForEachRow(rows, []any{&queue, &wait}, func() error {
		if wait <= 0 {
			w.table.wakeup.signal(queue)
			return nil
		}
		due := queue
		time.AfterFunc(time.Duration(wait)*time.Microsecond, func() { w.table.wakeup.signal(due) })
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for due jobs: %w", err)
	}
	return nil
}

// looks lists the worker's queues and their priorities, with where a take would begin: what that passes over is of no use here.
func (w *worker) looks() (queues []string, levels []int16, from []time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for queue, f := range w.floors {
		look := f.next(now)
		for i, level := range priorities() {
			queues, levels, from = append(queues, queue), append(levels, level), append(from, look.from[i])
		}
	}
	return queues, levels, from
}

// dueSQL asks, for each queue, how long it is until the next job is due, if that comes before the next look. It reads one
// entry of the index for each queue and priority, however many jobs are scheduled; TestManyScheduledJobsCostNothing has the plan.
func dueSQL(t *Table) string {
	return `SELECT queue, (extract(epoch FROM min(run_at) - clock_timestamp()) * 1000000)::bigint FROM (
			SELECT q.queue, (SELECT run_at FROM ` + t.table("jobs") + `
				WHERE state = 'waiting' AND queue = q.queue AND priority = q.priority
					AND run_at >= q.floor AND run_at <= statement_timestamp() + $4::bigint * interval '1 microsecond'
				ORDER BY run_at, sequence LIMIT 1) AS run_at
			FROM unnest($1::text[], $2::smallint[], $3::timestamptz[]) AS q (queue, priority, floor)) AS next
		WHERE run_at IS NOT NULL GROUP BY queue`
}

// priorities returns all priorities, the highest first.
func priorities() (all []int16) {
	for p := PriorityMax; p >= PriorityMin; p-- {
		all = append(all, int16(p))
	}
	return all
}

// listen signals the queues that other processes tell of, on a connection of its own. Behind a pooler that hands a
// connection to others between transactions nothing arrives, and polling has to do.
func (w *worker) listen(ctx context.Context) {
	for ctx.Err() == nil {
		if err := w.listenOnce(ctx); err != nil && ctx.Err() == nil {
			w.table.logger.Debug("listening was interrupted", slog.Any("error", err))
		}
		sleep(ctx, listenRetry)
	}
}

func (w *worker) listenOnce(ctx context.Context) error {
	conn, err := dedicated.Connect(ctx, w.table.pool)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is given up either way
	if _, err := conn.Exec(ctx, `LISTEN `+pgx.Identifier{w.table.channel()}.Sanitize()); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for _, queue := range w.queueNames() { // what was told before is not told again
		w.table.wakeup.signal(queue)
	}
	for {
		told, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("wait for notification: %w", err)
		}
		for queue := range strings.SplitSeq(told.Payload, ",") {
			if queue == cancelSignal {
				signal(w.beat)
				continue
			}
			w.table.wakeup.signal(queue)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// signal leaves a signal in a channel with room for one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
