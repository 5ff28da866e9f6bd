package postgres

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// reading is a reader without a subscriber: it takes pages and notes what they held.
type reading struct {
	log  *Log
	at   place
	seen []string
}

func newReading(t *testing.T, l *Log, consumer string) *reading {
	t.Helper()
	return &reading{log: l, at: placeOf(t, l, consumer)}
}

// drain reads until a window turns out empty, as a subscriber does before it waits. Like one, it goes through storing
// and loading its place when asked to.
func (r *reading) drain(t *testing.T, store bool) {
	t.Helper()
	h := holds(t, r.log, "reader", "test")
	for {
		p, err := h.read(t.Context(), "user", r.at, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range p.rows {
			r.seen = append(r.seen, string(row.payload))
		}
		r.at = p.next
		if !p.more && len(p.rows) == 0 {
			break
		}
	}
	if store {
		storePlace(t, r.log, "reader", r.at)
		r.at = placeOf(t, r.log, "reader")
	}
}

// placeOf takes all shares of a consumer, which stand at one place.
func placeOf(t *testing.T, l *Log, consumer string) place {
	t.Helper()
	shares, err := holds(t, l, consumer, "test").claim(t.Context(), shareCount)
	if err != nil || len(shares) != shareCount {
		t.Fatalf("claimed %d shares: %v", len(shares), err)
	}
	release(t, l, consumer, shares[0].place, shares)
	return shares[0].place
}

func storePlace(t *testing.T, l *Log, consumer string, p place) {
	t.Helper()
	shares, err := holds(t, l, consumer, "test").claim(t.Context(), shareCount)
	if err != nil {
		t.Fatal(err)
	}
	release(t, l, consumer, p, shares)
}

func release(t *testing.T, l *Log, consumer string, p place, shares []claimed) {
	t.Helper()
	var all []checkpoint
	for _, c := range shares {
		all = append(all, checkpoint{number: c.number, epoch: c.epoch, place: p, release: true})
	}
	if stored, err := holds(t, l, consumer, "test").store(t.Context(), all); err != nil || len(stored) != shareCount {
		t.Fatalf("stored %d shares: %v", len(stored), err)
	}
}

// TestLateRowOfATransactionBeyondXmax is the case that reading by xip alone would lose: a transaction that is under way
// in the snapshot, but whose id is not below its xmax, since none after it has ended.
func TestLateRowOfATransactionBeyondXmax(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	for _, stored := range []bool{false, true} {
		t.Run(fmt.Sprintf("stored=%t", stored), func(t *testing.T) {
			t.Parallel()
			l, _ := ownLog(t, Config{}, "reader") // another's commit would raise xmax
			ctx := t.Context()
			r := newReading(t, l, "reader")
			early, err := l.pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			late, err := l.pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			insert := func(tx pgx.Tx, payload string) {
				t.Helper()
				if _, err := tx.Exec(ctx, `insert into postbus.topic_user (slot, id, metadata, payload)
					values (0, gen_random_uuid(), '{}', $1)`, []byte(payload)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := early.Exec(ctx, "select pg_current_xact_id()"); err != nil { // the lower id
				t.Fatal(err)
			}
			insert(late, "low position, higher id") // and the lower position
			insert(early, "high position, lower id")
			if err := early.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			r.drain(t, stored)
			if err := late.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			r.drain(t, stored)
			want := []string{"high position, lower id", "low position, higher id"}
			if !slices.Equal(r.seen, want) {
				t.Errorf("read %q, want %q", r.seen, want)
			}
		})
	}
}

// TestWindowIsReadInPages reads a backlog of several pages and what commits in between, once each and in order.
func TestWindowIsReadInPages(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	r := newReading(t, l, "reader")
	var want []string
	for n := range 2*pageRowsMax + 7 {
		m := event("k", n)
		want = append(want, string(m.Payload))
		publish(t, l, m)
	}
	first, err := holds(t, l, "reader", "test").read(t.Context(), "user", r.at, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(first.rows) != pageRowsMax || !first.more {
		t.Fatalf("the first page has %d rows, more: %t", len(first.rows), first.more)
	}
	for _, row := range first.rows {
		r.seen = append(r.seen, string(row.payload))
	}
	r.at = first.rows[len(first.rows)-1].after
	m := event("k", -1)
	publish(t, l, m)
	r.drain(t, false)
	if want = append(want, string(m.Payload)); !slices.Equal(r.seen, want) {
		t.Errorf("read %d, want %d, or another order", len(r.seen), len(want))
	}
}

// TestLateReadsUseTheIndexes fails when the planner would read the whole topic for the few late rows or for a page.
func TestLateReadsUseTheIndexes(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	ctx := t.Context()
	if _, err := l.pool.Exec(ctx, `insert into postbus.topic_user (slot, id, metadata, payload)
		select n % 4096, gen_random_uuid(), '{}', '{}' from generate_series(1, 30000) as n`); err != nil {
		t.Fatal(err)
	}
	if _, err := l.pool.Exec(ctx, `analyze postbus."topic_user$0"`); err != nil {
		t.Fatal(err)
	}
	var at place
	if err := l.pool.QueryRow(ctx, `select pg_current_snapshot()::text, 30000, pg_current_xact_id()::text`).
		Scan(&at.snapshot, &at.floor, &at.fence); err != nil {
		t.Fatal(err)
	}
	for name, query := range map[string]string{"head": l.headQuery("user"), "tail": l.tailQuery("user")} {
		rows, err := l.pool.Query(ctx, "explain "+query, pgx.NamedArgs{
			"snapshot": at.snapshot, "end": nullable(""), "fence": at.fence, "floor": at.floor, "position": int64(0), "limit": 500,
			"shares": []int16{1, 2}, "count": shareCount, "sealed": int64(0),
		})
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		if plan := strings.Join(lines, "\n"); strings.Contains(plan, `Seq Scan on "topic_user$0"`) {
			t.Errorf("%s reads the whole topic:\n%s", name, plan)
		}
	}
}

// TestModeOfThePoolStays: a mode that the URL names is used for all queries, since a pooler may need it.
func TestModeOfThePoolStays(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]pgx.QueryExecMode{
		"": pgx.QueryExecModeCacheDescribe,
		"?default_query_exec_mode=cache_statement": pgx.QueryExecModeCacheDescribe,
		"?default_query_exec_mode=describe_exec":   pgx.QueryExecModeDescribeExec,
		"?default_query_exec_mode=exec":            pgx.QueryExecModeExec,
		"?default_query_exec_mode=simple_protocol": pgx.QueryExecModeSimpleProtocol,
	} {
		pool, err := pgxpool.New(t.Context(), "postgres://127.0.0.1:1/none"+setting) // it connects when it is used
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		if got := perValue(pool); got != want {
			t.Errorf("%q: %s, want %s", setting, got, want)
		}
	}
}

// TestLargeEventsTravelOnce: a page ends by its bytes long before its rows, and what comes after is not sent with it.
func TestLargeEventsTravelOnce(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	config, err := pgxpool.ParseConfig(pgtest.URL(t, Migrations(DefaultSchema)))
	if err != nil {
		t.Fatal(err)
	}
	var received atomic.Int64
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return countingConn{conn, &received}, err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	l := openLog(t, pool, Config{}, "reader")
	const total, size = 60, 250 << 10
	batch := make([]*message.Message, total)
	for n := range batch {
		batch[n] = event(fmt.Sprint(n), n)
		batch[n].Payload = []byte(strings.Repeat("x", size))
	}
	publish(t, l, batch...)
	r := newReading(t, l, "reader")
	received.Store(0)
	if r.drain(t, false); len(r.seen) != total {
		t.Errorf("%d events were read, want %d", len(r.seen), total)
	}
	if got := received.Load(); got > total*size*3/2 {
		t.Errorf("%d events of %d bytes took %d bytes", total, size, got)
	}
}

type countingConn struct {
	net.Conn
	received *atomic.Int64
}

func (c countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}
