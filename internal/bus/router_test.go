package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a router on a real log.
type running struct {
	pool  *pgxpool.Pool
	log   *postgres.Log
	codec *bus.Codec
	send  func(*testing.T, context.Context, ...domain.Event)
	logs  *lockedBuffer
}

func start(t *testing.T, consumers ...*bus.Consumer) running {
	t.Helper()
	pool := pgtest.New(t, postgres.Migrations(postgres.DefaultSchema))
	catalogue, err := bus.NewCatalogue(bus.Define[planted](1), bus.Define[felled](1))
	must(t, err)
	logs := &lockedBuffer{}
	logger := slog.New(slog.NewTextHandler(logs, nil))
	log, err := postgres.Open(pool, postgres.Config{RetryMin: 5 * time.Millisecond}, logger)
	must(t, err)
	var subscriptions []postgres.Subscription
	for _, c := range consumers {
		subscriptions = append(subscriptions, postgres.Subscription{Consumer: c.Name(), Topic: c.Topic()})
	}
	must(t, log.Provision(t.Context(), catalogue.Topics(), subscriptions))
	codec := bus.NewCodec(catalogue, "/test")
	router, err := bus.NewRouter(codec, log, logger, watermill.NopLogger{})
	must(t, err)
	must(t, router.Add(consumers...))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		must(t, <-ended)
	})
	send := func(t *testing.T, ctx context.Context, events ...domain.Event) {
		t.Helper()
		encoded, err := codec.EncodeAll(ctx, events)
		must(t, err)
		batch := &pgx.Batch{}
		for _, e := range encoded {
			must(t, log.Append(batch, e.Topic, e.Messages...))
		}
		must(t, pool.SendBatch(ctx, batch).Close())
		log.Wake(catalogue.Topics()...)
	}
	return running{pool: pool, log: log, codec: codec, send: send, logs: logs}
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

func consumer(t *testing.T, name string) *bus.Consumer {
	t.Helper()
	c, err := bus.NewConsumer(name)
	must(t, err)
	return c
}

// TestConsumersGetTheirTypes: typed handlers, by value, each consumer on its own; other types of the topic are passed over.
func TestConsumersGetTheirTypes(t *testing.T) {
	t.Parallel()
	got := make(chan string, 10)
	both, one := consumer(t, "forester"), consumer(t, "sawmill")
	must(t, bus.Handle(both, func(_ context.Context, e planted) error { got <- "forester " + e.ID; return nil }))
	must(t, bus.Handle(both, func(_ context.Context, e felled) error { got <- "forester felled " + e.ID; return nil }))
	must(t, bus.Handle(one, func(_ context.Context, e felled) error { got <- "sawmill " + e.ID; return nil }))
	start(t, both, one).send(t, t.Context(), planted{"oak"}, felled{ID: "oak"})
	if all := collect(t, got, 3); !slices.Equal(all, []string{"forester felled oak", "forester oak", "sawmill oak"}) {
		t.Errorf("got %q", all)
	}
}

// TestHandlerSeesItsCause: the event's id, and the correlation that began with the first event.
func TestHandlerSeesItsCause(t *testing.T) {
	t.Parallel()
	causes := make(chan domain.Cause, 1)
	c := consumer(t, "forester")
	must(t, bus.Handle(c, func(ctx context.Context, _ planted) error { causes <- domain.CauseOf(ctx); return nil }))
	r := start(t, c)
	r.send(t, domain.WithCause(t.Context(), domain.Cause{Correlation: "request-1"}), planted{"oak"})
	select {
	case cause := <-causes:
		if cause.EventID == uuid.Nil || cause.Correlation != "request-1" {
			t.Errorf("the cause is %+v", cause)
		}
	case <-time.After(time.Minute):
		t.Fatal("no delivery")
	}
}

// TestIdempotencyKeyIsTheEventsID at each attempt.
func TestIdempotencyKeyIsTheEventsID(t *testing.T) {
	t.Parallel()
	keys, failed := make(chan uuid.UUID, 2), false
	c := consumer(t, "forester")
	must(t, bus.Handle(c, func(ctx context.Context, _ planted) error {
		key, _ := domain.IdempotencyKey(ctx)
		keys <- key
		if !failed {
			failed = true
			return errors.New("the ground is frozen")
		}
		return nil
	}))
	r := start(t, c)
	r.send(t, t.Context(), planted{"oak"})
	var id uuid.UUID
	must(t, r.pool.QueryRow(t.Context(), `select id from postbus.topic_`+c.Topic()).Scan(&id))
	for attempt := range 2 {
		select {
		case key := <-keys:
			if key != id {
				t.Errorf("attempt %d: the key is %s, the event %s", attempt+1, key, id)
			}
		case <-time.After(time.Minute):
			t.Fatal("no delivery")
		}
	}
}

// TestHandlerThatIgnoresItsDeadlineIsNamed, with what it is at.
func TestHandlerThatIgnoresItsDeadlineIsNamed(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t) // it goes on for more than five seconds
	c, err := bus.NewConsumer("forester", bus.WithPolicy(bus.Policy{Deadline: 10 * time.Millisecond}))
	must(t, err)
	told, named := make(chan struct{}), make(chan uuid.UUID, 1)
	must(t, bus.Handle(c, func(ctx context.Context, _ planted) error {
		select {
		case named <- domain.CauseOf(ctx).EventID:
		default:
		}
		<-told
		return nil
	}))
	r := start(t, c)
	r.send(t, t.Context(), planted{"oak"})
	id := <-named
	await(t, "it to be named", func() bool { return strings.Contains(r.logs.String(), "handler ignores the end of its context") })
	close(told)
	for _, word := range []string{"handler ignores the end of its context", "consumer=forester", "event_type=tree.planted", "message_uuid=" + id.String()} {
		if !strings.Contains(r.logs.String(), word) {
			t.Errorf("the log has no %q: %s", word, r.logs)
		}
	}
}

// TestDatabaseBehindAHandlerIsDown: the consumer slows down, says so, parks few of many keys, and goes on by itself when it is there
// again.
func TestDatabaseBehindAHandlerIsDown(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const many = 300
	behind := pgtest.Own(t)
	store := pgtest.Open(t, behind.URL())
	_, err := store.Exec(t.Context(), `create table trees (id text primary key)`)
	must(t, err)
	c := consumer(t, "forester")
	must(t, bus.Handle(c, func(ctx context.Context, e planted) error {
		_, err := store.Exec(ctx, `insert into trees values ($1) on conflict do nothing`, e.ID)
		return err
	}))
	r := start(t, c)
	behind.Stop()
	var trees []domain.Event
	for n := range many {
		trees = append(trees, planted{fmt.Sprint("oak ", n)})
	}
	r.send(t, t.Context(), trees...)
	await(t, "the consumer to slow down", func() bool { return strings.Contains(r.logs.String(), "consumer slows down") })
	var parked int
	must(t, r.pool.QueryRow(t.Context(), `select count(*) from postbus.parked`).Scan(&parked))
	if parked > many/4 {
		t.Errorf("%d of %d events are parked", parked, many)
	}
	behind.Start()
	await(t, "all trees to be stored", func() bool {
		var stored int
		return store.QueryRow(t.Context(), `select count(*) from trees`).Scan(&stored) == nil && stored == many
	})
	await(t, "its full pace", func() bool { return strings.Contains(r.logs.String(), "consumer goes on at its full pace") })
}

// TestErrorAndPanicBringTheEventAgain: until the handler succeeds; a panic is logged with its stack.
func TestErrorAndPanicBringTheEventAgain(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	attempts := 0
	c := consumer(t, "forester")
	must(t, bus.Handle(c, func(_ context.Context, e planted) error {
		switch attempts++; attempts {
		case 1:
			return errors.New("the ground is frozen")
		case 2:
			panic("and hard")
		default:
			got <- e.ID
			return nil
		}
	}))
	r := start(t, c)
	r.send(t, t.Context(), planted{"oak"})
	collect(t, got, 1)
	if logs := r.logs.String(); !strings.Contains(logs, "handler panicked") || !strings.Contains(logs, "router_test.go") {
		t.Errorf("the panic was not logged with its stack: %s", logs)
	}
}

func TestRouterRefuses(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "Forester", "forester_1", "-a", "a-", "a--b", strings.Repeat("a", 61)} {
		if _, err := bus.NewConsumer(name); !errors.Is(err, bus.ErrEventShape) {
			t.Errorf("consumer %q: %v", name, err)
		}
	}
	c := consumer(t, "forester")
	must(t, bus.Handle(c, func(context.Context, planted) error { return nil }))
	if err := bus.Handle(c, func(context.Context, planted) error { return nil }); !errors.Is(err, bus.ErrDuplicate) {
		t.Errorf("a second handler of a type: %v", err)
	}
	if err := bus.Handle(c, func(context.Context, rustled) error { return nil }); !errors.Is(err, bus.ErrEventShape) {
		t.Errorf("a type of another topic: %v", err)
	}
	empty, err := bus.NewCatalogue()
	must(t, err)
	router, err := bus.NewRouter(bus.NewCodec(empty, "/test"), nil, slog.New(slog.DiscardHandler), watermill.NopLogger{})
	must(t, err)
	if err := router.Add(c); !errors.Is(err, bus.ErrUnknownType) {
		t.Errorf("a type that is not in the catalogue: %v", err)
	}
	if err := router.Add(consumer(t, "idler")); err == nil {
		t.Error("a consumer without handlers was added")
	}
}

type rustled struct{}

func (rustled) EventType() string { return "leaf.rustled" }

func collect(t *testing.T, got <-chan string, n int) []string {
	t.Helper()
	var all []string
	for range n {
		select {
		case s := <-got:
			all = append(all, s)
		case <-time.After(time.Minute):
			t.Fatalf("only %q arrived", all)
		}
	}
	slices.Sort(all)
	return all
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestConcurrencyIsTheConsumersOwn: a consumer handles as many keys at the same time as its policy says, no more and no fewer.
func TestConcurrencyIsTheConsumersOwn(t *testing.T) {
	t.Parallel()
	const keys = 30
	begun := make(chan string, keys)
	release := make(chan struct{})
	few, err := bus.NewConsumer("narrow", bus.WithPolicy(bus.Policy{Concurrency: 2}))
	must(t, err)
	must(t, bus.Handle(few, func(_ context.Context, e planted) error {
		begun <- e.ID
		<-release
		return nil
	}))
	many, err := bus.NewConsumer("wide", bus.WithPolicy(bus.Policy{Concurrency: keys}))
	must(t, err)
	var together sync.WaitGroup
	together.Add(keys)
	all := make(chan string, keys)
	must(t, bus.Handle(many, func(_ context.Context, e planted) error {
		together.Done()
		together.Wait() // for all of the others
		all <- e.ID
		return nil
	}))
	r := start(t, few, many)
	for i := range keys {
		r.send(t, t.Context(), planted{fmt.Sprintf("tree-%d", i)})
	}
	collect(t, all, keys)
	collect(t, begun, 2)
	if n := len(begun); n > 0 {
		t.Errorf("%d were handled at the same time, want 2", 2+n)
	}
	close(release)
}

// TestOverrunIsRetriedAndNeverBesideItself: the context ends, and the event comes again only when the handler has returned.
func TestOverrunIsRetriedAndNeverBesideItself(t *testing.T) {
	t.Parallel()
	c, err := bus.NewConsumer("forester", bus.WithPolicy(bus.Policy{Deadline: 20 * time.Millisecond, BackoffMin: time.Millisecond}))
	must(t, err)
	var running, tries atomic.Int32
	got := make(chan string, 1)
	must(t, bus.Handle(c, func(ctx context.Context, e planted) error {
		if running.Add(1) > 1 {
			t.Error("two at once")
		}
		defer running.Add(-1)
		if tries.Add(1) == 1 {
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), bus.ErrDeadline) {
				t.Errorf("the context ended by %v", context.Cause(ctx))
			}
			<-time.After(100 * time.Millisecond) // it takes its time to heed that
			return ctx.Err()
		}
		got <- e.ID
		return nil
	}))
	start(t, c).send(t, t.Context(), planted{"oak"})
	collect(t, got, 1)
}

// TestUnknownTypeWaitsForAProgramThatKnowsIt instead of being passed over: a newer program shares the work.
func TestUnknownTypeWaitsForAProgramThatKnowsIt(t *testing.T) {
	t.Parallel()
	got := make(chan string, 2)
	c := consumer(t, "forester")
	must(t, bus.Handle(c, func(_ context.Context, e planted) error { got <- e.ID; return nil }))
	r := start(t, c)
	encoded, err := r.codec.EncodeAll(t.Context(), []domain.Event{planted{"oak"}, planted{"elm"}})
	must(t, err)
	newer := encoded[0].Messages[0]
	newer.Metadata["type"] = "tree.pruned"
	batch := &pgx.Batch{}
	must(t, r.log.Append(batch, encoded[0].Topic, encoded[0].Messages...))
	must(t, r.pool.SendBatch(t.Context(), batch).Close())
	r.log.Wake(encoded[0].Topic)
	collect(t, got, 1)
	for deadline := time.Now().Add(time.Minute); ; <-time.After(5 * time.Millisecond) {
		status, _, err := r.log.Status(t.Context(), postgres.Subscription{Consumer: "forester", Topic: encoded[0].Topic})
		must(t, err)
		if status.Parked == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the unknown event is not parked: %+v", status)
		}
	}
}
