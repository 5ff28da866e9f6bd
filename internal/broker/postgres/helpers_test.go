package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/migrate"
	"postbus/internal/pgtest"
)

// patience is how long a test waits for what must come; only a broken build uses it up.
const patience = time.Minute

// testLanes is how many keys a subscriber handles at the same time.
const testLanes = 16

var quiet = slog.New(slog.DiscardHandler)

// newLog returns a log with the topic "user" in a database of the test's own.
func newLog(t *testing.T, config Config, consumers ...string) *Log {
	t.Helper()
	return openLog(t, pgtest.New(t, Migrations(DefaultSchema)), config, consumers...)
}

// ownLog returns a log on a server of the test's own: one that nobody else's transactions disturb, and that may be killed.
func ownLog(t *testing.T, config Config, consumers ...string) (*Log, *pgtest.OwnServer) {
	t.Helper()
	server := pgtest.Own(t)
	pool := pgtest.Open(t, server.URL())
	if err := migrate.Up(t.Context(), pool, Migrations(DefaultSchema)); err != nil {
		t.Fatal(err)
	}
	return openLog(t, pool, config, consumers...), server
}

// withoutAutovacuum keeps the server from taking transaction ids by itself.
func withoutAutovacuum(t *testing.T, l *Log) {
	t.Helper()
	execute(t, l, `alter system set autovacuum = off`)
	execute(t, l, `select pg_reload_conf()`)
	eventually(t, "the end of autovacuum", func() bool {
		var off bool
		err := l.pool.QueryRow(t.Context(), `select not exists (select from pg_stat_activity
			where backend_type in ('autovacuum launcher', 'autovacuum worker'))`).Scan(&off)
		return err == nil && off
	})
}

func openLog(t *testing.T, pool *pgxpool.Pool, config Config, consumers ...string) *Log {
	t.Helper()
	l, err := Open(pool, config, quiet)
	if err != nil {
		t.Fatal(err)
	}
	var subscriptions []Subscription
	for _, c := range consumers {
		subscriptions = append(subscriptions, Subscription{Consumer: c, Topic: "user"})
	}
	if err := l.Provision(t.Context(), []string{"user"}, subscriptions); err != nil {
		t.Fatal(err)
	}
	return l
}

// event makes a message whose payload tells it apart.
func event(key string, n int) *message.Message {
	m := message.NewMessage(uuid.NewString(), fmt.Appendf(nil, `{"key":%q,"n":%d}`, key, n))
	if key != "" {
		m.Metadata.Set(keyAttribute, key)
	}
	return m
}

// publish commits messages to the topic "user" and wakes its readers.
func publish(t *testing.T, l *Log, messages ...*message.Message) {
	t.Helper()
	batch := &pgx.Batch{}
	if err := l.Append(batch, "user", messages...); err != nil {
		t.Fatal(err)
	}
	if err := l.pool.SendBatch(t.Context(), batch).Close(); err != nil {
		t.Fatal(err)
	}
	l.Wake("user")
}

// inbox collects the payloads that a subscriber delivers and acknowledges them.
type inbox struct {
	mu       sync.Mutex
	payloads []string
	handle   func(*message.Message) bool // false refuses; nil acknowledges all
	ended    chan struct{}
}

func listen(ctx context.Context, t *testing.T, s message.Subscriber, handle func(*message.Message) bool) *inbox {
	t.Helper()
	messages, err := s.Subscribe(ctx, "user")
	if err != nil {
		t.Fatal(err)
	}
	in := &inbox{handle: handle, ended: make(chan struct{})}
	go func() {
		defer close(in.ended)
		var handlers sync.WaitGroup
		defer handlers.Wait()
		for m := range messages {
			handlers.Go(func() { in.take(m) })
		}
	}()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		<-in.ended
	})
	return in
}

func (in *inbox) take(m *message.Message) {
	if in.handle != nil && !in.handle(m) {
		m.Nack()
		return
	}
	in.mu.Lock()
	in.payloads = append(in.payloads, string(m.Payload))
	in.mu.Unlock()
	m.Ack()
}

func (in *inbox) all() []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return append([]string(nil), in.payloads...)
}

// await returns the payloads once there are at least n.
func (in *inbox) await(t *testing.T, n int) []string {
	t.Helper()
	eventually(t, fmt.Sprintf("%d messages", n), func() bool { return len(in.all()) >= n })
	return in.all()
}

// eventually waits for a condition that only others can bring about.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for ; !condition(); <-time.After(5 * time.Millisecond) { // polls what has no signal
		if time.Now().After(deadline) {
			t.Fatalf("%s: did not come about within %s", what, patience)
		}
	}
}

func subscriber(t *testing.T, l *Log, consumer string) message.Subscriber {
	t.Helper()
	s, err := l.Subscriber(consumer, testLanes)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// holds begins a holder's work.
func holds(t *testing.T, l *Log, consumer, owner string) holder {
	t.Helper()
	h, err := l.hold(t.Context(), consumer, owner, nil)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// blocksOf carries a statement out, and tells how many of the database's blocks it looked at.
func blocksOf(t *testing.T, l *Log, sql string, args ...any) (n int) {
	t.Helper()
	var plan []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		} `json:"Plan"`
	}
	if err := l.pool.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF, FORMAT JSON) `+sql, args...).
		Scan(&plan); err != nil {
		t.Fatal(err)
	}
	return plan[0].Plan.Hit + plan[0].Plan.Read
}
