package job

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"postbus/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come; only a broken build uses it up.
const patience = time.Minute

var quiet = slog.New(slog.DiscardHandler)

// note is a job of these tests.
type note struct {
	Text string `json:"text"`
}

func (note) Kind() string { return "test-note" }

// newTable returns a work table in a database of the test's own.
func newTable(t *testing.T, config Config) *Table {
	t.Helper()
	return openTable(t, pgtest.New(t, Migrations(DefaultSchema)), config)
}

func openTable(t *testing.T, pool *pgxpool.Pool, config Config) *Table {
	t.Helper()
	table, err := Open(pool, config, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// enqueue stores one note.
func enqueue(t *testing.T, table *Table, text string, options ...Option) uuid.UUID {
	t.Helper()
	receipt, err := table.Enqueue(t.Context(), note{text}, options...)
	if err != nil {
		t.Fatal(err)
	}
	return receipt.ID
}

func newJob(t *testing.T, text string, options ...Option) Job {
	t.Helper()
	j, err := New(note{text}, options...)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// office runs the jobs of a queue with a handler, as a router would.
type office struct {
	subscriber message.Subscriber
	ended      chan struct{}

	mu    sync.Mutex
	begun []string // texts, in the order in which the handlers were called
}

// work starts an office for notes in the default queue.
func work(t *testing.T, table *Table, concurrency int, h func(context.Context, note) error, policy ...Policy) *office {
	t.Helper()
	return workOn(t, table, DefaultQueue, concurrency, h, policy...)
}

func workOn(t *testing.T, table *Table, queue string, concurrency int, h func(context.Context, note) error, policy ...Policy) *office {
	t.Helper()
	o := &office{ended: make(chan struct{})}
	workers := NewWorkers()
	err := Handle(workers, func(ctx context.Context, n note) error {
		o.mu.Lock()
		o.begun = append(o.begun, n.Text)
		o.mu.Unlock()
		if h == nil {
			return nil
		}
		return h(ctx, n)
	}, policy...)
	if err != nil {
		t.Fatal(err)
	}
	if o.subscriber, err = table.Subscriber(queue, concurrency); err != nil {
		t.Fatal(err)
	}
	// A test's context has ended when its cleanups run; a worker's ends with Close.
	messages, err := o.subscriber.Subscribe(context.WithoutCancel(t.Context()), queue)
	if err != nil {
		t.Fatal(err)
	}
	go o.run(messages, workers.Handler())
	t.Cleanup(func() { o.close(t) })
	return o
}

func (o *office) run(messages <-chan *message.Message, handle message.NoPublishHandlerFunc) {
	defer close(o.ended)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for m := range messages {
		handlers.Go(func() {
			if err := handle(m); err != nil {
				m.Nack()
				return
			}
			m.Ack()
		})
	}
}

func (o *office) close(t *testing.T) {
	t.Helper()
	if err := o.subscriber.Close(); err != nil {
		t.Error(err)
	}
	<-o.ended
}

func (o *office) texts() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.begun)
}

// await returns the texts once there are at least n.
func (o *office) await(t *testing.T, n int) []string {
	t.Helper()
	eventually(t, fmt.Sprintf("%d jobs", n), func() bool { return len(o.texts()) >= n })
	return o.texts()
}

// eventually waits for a condition that only others can bring about.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for ; !condition(); <-time.After(3 * time.Millisecond) { // polls what has no signal
		if time.Now().After(deadline) {
			t.Fatalf("%s: did not come about within %s", what, patience)
		}
	}
}

// value asks for one value.
func value[V any](t *testing.T, pool *pgxpool.Pool, query string, args ...any) (v V) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

func column[V any](t *testing.T, pool *pgxpool.Pool, query string, args ...any) []V {
	t.Helper()
	rows, err := pool.Query(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[V])
	if err != nil {
		t.Fatal(err)
	}
	return values
}

func execute(t *testing.T, pool *pgxpool.Pool, query string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

func state(t *testing.T, table *Table, id uuid.UUID) string {
	t.Helper()
	return value[string](t, table.pool, `select state from postbus.jobs where id = $1`, id)
}

func awaitState(t *testing.T, table *Table, id uuid.UUID, want string) {
	t.Helper()
	eventually(t, "state "+want, func() bool { return state(t, table, id) == want })
}
