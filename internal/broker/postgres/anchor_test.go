package postgres

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/migrate"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// TestRestoredLogGoesOn dumps a log in the middle of its work and restores it into a new cluster, whose transaction ids
// are lower: what had not been handled is delivered, no more, and so is what is published there. Partitions end in both.
func TestRestoredLogGoesOn(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, old := ownLog(t, Config{RetryMin: time.Hour, RetryMax: time.Hour}, "reader", "idler")
	if _, err := l.pool.Exec(t.Context(), `do $$ begin for i in 1..3000 loop perform pg_current_xact_id(); commit; end loop; end $$`); err != nil {
		t.Fatal(err)
	}
	s := subscriber(t, l, "reader")
	in := listen(t.Context(), t, s, func(m *message.Message) bool { return m.Metadata.Get(keyAttribute) != "stuck" })
	late, err := l.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Exec(t.Context(), `insert into postbus.topic_user (slot, id, metadata, payload)
		values (7, gen_random_uuid(), '{}', 'late')`); err != nil {
		t.Fatal(err)
	}
	publish(t, l, event("stuck", 1))
	closePartition(t, l)
	for n := range 100 {
		publish(t, l, event(fmt.Sprint("k", n), n))
	}
	in.await(t, 100)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	closePartition(t, l)
	moved := restore(t, old.URL())
	got := listen(t.Context(), t, subscriber(t, moved, "reader"), nil)
	publish(t, moved, event("new", 1))
	got.await(t, 3)
	idle := listen(t.Context(), t, subscriber(t, moved, "idler"), nil)
	idle.await(t, 103)
	closePartition(t, moved) // the next one was attached by a transaction of the old cluster
	publish(t, moved, event("new", 2))
	all := got.await(t, 4)
	idle.await(t, 104)
	slices.Sort(all)
	want := []string{"late", `{"key":"new","n":1}`, `{"key":"new","n":2}`, `{"key":"stuck","n":1}`}
	if !slices.Equal(all, want) {
		t.Errorf("got %q, want %q", all, want)
	}
}

// TestRestoredLogKnowsWhereItsRelayBegan: in another cluster, too, what is looked for on the way back is what was committed since the
// consumers were handed over, no more and no less.
func TestRestoredLogKnowsWhereItsRelayBegan(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	app, old := ownLog(t, Config{Lease: time.Second}, "mailer")
	if err := migrate.Up(t.Context(), app.pool, Migrations("inbound")); err != nil {
		t.Fatal(err)
	}
	if _, err := app.pool.Exec(t.Context(), `do $$ begin for i in 1..3000 loop perform pg_current_xact_id(); commit; end loop; end $$`); err != nil {
		t.Fatal(err)
	}
	l := twoLogs{t, app, openLog(t, app.pool, Config{Schema: "inbound", Inbox: DefaultSchema})}
	before := eventsOf("a", 1, 3)
	publish(t, app, before...)
	l.handOver()
	sent := eventsOf("b", 1, 4)
	publish(t, app, sent...)
	relay, s := l.relays("one")
	l.want(relay, sent...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l.arrive(sent[:1]...)
	publish(t, app, event("c", 1))

	pool := restored(t, old.URL())
	l = twoLogs{t, openLog(t, pool, Config{Lease: time.Second}), openLog(t, pool, Config{Schema: "inbound", Inbox: DefaultSchema})}
	publish(t, l.app, event("c", 2))
	if c := l.takeBack(); c.Arrived != 1 || c.Missing != 3 || c.Unsent != 2 {
		t.Errorf("it did %+v", c)
	}
	l.want(l.reads(nil), slices.Concat(before, sent, eventsOf("c", 1, 2))...)
}

// restore restores the database into a server of its own.
func restore(t *testing.T, from string) *Log {
	t.Helper()
	return openLog(t, restored(t, from), Config{}, "reader", "idler")
}

// restored dumps the database and restores it into a server of its own.
func restored(t *testing.T, from string) *pgxpool.Pool {
	t.Helper()
	server := pgtest.Own(t)
	dump := exec.CommandContext(t.Context(), program(t, "pg_dump"), "--dbname", from)
	script, err := dump.Output()
	if err != nil {
		t.Fatalf("pg_dump: %v", err)
	}
	load := exec.CommandContext(t.Context(), program(t, "psql"), "--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", server.URL())
	load.Stdin = bytes.NewReader(script)
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("psql: %v: %s", err, out)
	}
	return pgtest.Open(t, server.URL())
}

// program finds a client program of PostgreSQL.
func program(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil || len(found) == 0 {
		servertest.Missing(t, name)
	}
	return found[len(found)-1]
}
