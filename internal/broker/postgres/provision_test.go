package postgres

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/migrate"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// TestNewConsumersFence: two consumers become known in one transaction, while a writer with a transaction id beyond xmax has
// drawn a position below floor. The second one's place is taken when the transaction has had its id for long.
func TestNewConsumersFence(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, _ := ownLog(t, Config{}) // another's commit would raise xmax
	ctx := t.Context()
	begin := func() pgx.Tx {
		t.Helper()
		tx, err := l.pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	run := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	insert := func(tx pgx.Tx, payload string) {
		t.Helper()
		_, err := tx.Exec(ctx, `insert into postbus.topic_user (slot, id, metadata, payload)
			values (0, gen_random_uuid(), '{}', $1)`, []byte(payload))
		run(err)
	}
	provision := func(tx pgx.Tx, consumer string) {
		t.Helper()
		_, err := l.provisionConsumer(ctx, tx, Subscription{Consumer: consumer, Topic: "user"})
		run(err)
	}
	both := begin()
	provision(both, "first")
	early, late := begin(), begin()
	_, err := early.Exec(ctx, "select pg_current_xact_id()")
	run(err)
	insert(late, "late")
	insert(early, "early")
	run(early.Commit(ctx))
	provision(both, "second")
	run(both.Commit(ctx))
	run(late.Commit(ctx))
	for _, consumer := range []string{"first", "second"} {
		r := newReading(t, l, consumer)
		r.drain(t, false)
		if !slices.Contains(r.seen, "late") {
			t.Errorf("%s saw %q", consumer, r.seen)
		}
	}
}

// TestLateReadsUseTheIndex: without statistics, and with a plan for all values, as a session has it after some readings, the
// late rows are still found by transaction id and not by going through the topic.
func TestLateReadsUseTheIndex(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	ctx := t.Context()
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, statement := range []string{
		`alter table postbus."topic_user$0" set (autovacuum_enabled = off)`,
		`insert into postbus.topic_user (slot, id, metadata, payload)
			select n % 4096, gen_random_uuid(), '{}', '{}' from generate_series(1, 30000) as n`,
		`set plan_cache_mode = force_generic_plan`,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	at := place{snapshot: "400000:400000:", floor: 30000, fence: "400005"}
	rows, err := conn.Query(ctx, "explain "+l.headQuery("user"), pgx.NamedArgs{
		"snapshot": at.snapshot, "end": nullable(""), "fence": at.fence, "floor": at.floor, "position": int64(0), "limit": 500,
		"shares": []int16(nil), "count": shareCount, "sealed": int64(0),
	})
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	plan := strings.Join(lines, "\n")
	if strings.Count(plan, `on "topic_user$0_xid_idx"`) != 2 || strings.Count(plan, `"topic_user$0_pkey"`) != 1 ||
		strings.Contains(plan, `Seq Scan on "topic_user`) {
		t.Errorf("the plan is\n%s", plan)
	}
}

// TestStartUnderOtherIsolation: the database's default isolation level makes no difference to those who start at once.
func TestStartUnderOtherIsolation(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			address := pgtest.URL(t) + "&options=-c%20default_transaction_isolation%3D" + strings.ReplaceAll(level, " ", `%5C%20`)
			ended := make(chan error)
			for range 6 {
				pool := pgtest.Open(t, address)
				go func() { ended <- start(t, pool) }()
			}
			for range 6 {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
			l := openLog(t, pgtest.Open(t, address), Config{}, "reader")
			in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
			publish(t, l, event("k", 1), event("k", 2))
			in.await(t, 2)
		})
	}
}

func start(t *testing.T, pool *pgxpool.Pool) error {
	t.Helper()
	if err := migrate.Up(t.Context(), pool, Migrations(DefaultSchema)); err != nil {
		return err
	}
	l, err := Open(pool, Config{}, quiet)
	if err != nil {
		return err
	}
	return l.Provision(t.Context(), []string{"user"}, []Subscription{{Consumer: "reader", Topic: "user"}})
}

// TestSubscribeToAnotherTopic than the consumer reads is refused, as is one that nobody has provisioned. Neither would ever
// get anything.
func TestSubscribeToAnotherTopic(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	if err := l.Provision(t.Context(), []string{"order"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := subscriber(t, l, "reader").Subscribe(t.Context(), "order"); !errors.Is(err, ErrTopicChanged) {
		t.Errorf("to another topic: %v", err)
	}
	if _, err := subscriber(t, l, "stranger").Subscribe(t.Context(), "user"); !errors.Is(err, ErrUnknownConsumer) {
		t.Errorf("an unknown consumer: %v", err)
	}
}

// TestSubscribeWhileTheDatabaseIsAway: the subscriber is there, and begins when the database is.
func TestSubscribeWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, server := ownLog(t, Config{Lease: time.Second}, "reader")
	server.Kill()
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	server.Start()
	eventually(t, "the database is there", func() bool { return l.pool.Ping(t.Context()) == nil })
	publish(t, l, event("k", 1))
	in.await(t, 1)
}
