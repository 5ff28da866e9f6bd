package migrate_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/migrate"
	"postbus/internal/pgtest"
)

func set(schema string, files ...string) migrate.Set {
	all := fstest.MapFS{}
	for pair := range slices.Chunk(files, 2) {
		all[pair[0]] = &fstest.MapFile{Data: []byte(pair[1])}
	}
	return migrate.Set{Name: "test", Schema: schema, FS: all}
}

// TestManyStartersAtOnce: sixteen processes on an empty database all succeed, and each file runs once.
func TestManyStartersAtOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	s := set("odd \"schema", "0001_a.sql", `create table a (n int); insert into a values (1);`, "0002_b.sql", `insert into a values (2)`)
	var starters sync.WaitGroup
	for range 16 {
		starters.Go(func() {
			if err := migrate.Up(t.Context(), pool, s); err != nil {
				t.Error(err)
			}
		})
	}
	starters.Wait()
	if n := count(t, pool, `select count(*) from "odd ""schema".a`); n != 2 {
		t.Errorf("the files inserted %d rows", n)
	}
}

// TestStarterThatWaited: a process that looked when nothing was there yet, and waited for the lock while another made the
// schema, has to see it. Postgres keeps for a session that a schema does not exist, and waiting for an advisory lock is no
// reason for it to look again.
func TestStarterThatWaited(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	config := pool.Config()
	config.MaxConns = 1 // what looks and what waits is one session
	single, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer single.Close()
	if err := migrate.Up(t.Context(), single, set("earlier", "0001_a.sql", `create table a (n int)`)); err != nil {
		t.Fatal(err)
	}
	other, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, int64(0x706f737462757301)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- migrate.Up(context.WithoutCancel(t.Context()), single, set("test", "0001_a.sql", `create table a (n int)`))
	}()
	for count(t, pool, `select count(*) from pg_locks where locktype = 'advisory' and not granted
		and database = (select oid from pg_database where datname = current_database())`) == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the migration does not wait")
		}
	}
	if _, err := other.Exec(t.Context(), `create schema test`); err != nil {
		t.Fatal(err)
	}
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Up returned %v", err)
	}
}

// TestOnlyWhatIsMissingRuns, also for an old binary that knows fewer files than the database has.
func TestOnlyWhatIsMissingRuns(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	first := []string{"0001_a.sql", `create table a (n int)`}
	both := []string{first[0], first[1], "0002_b.sql", `insert into a values (1)`}
	for _, files := range [][]string{first, both, both, first} {
		if err := migrate.Up(t.Context(), pool, set("test", files...)); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, pool, `select count(*) from test.a`); n != 1 {
		t.Errorf("the second file ran %d times", n)
	}
}

// TestFailureLeavesNothing: neither of the file that failed nor of those before it in the same run.
func TestFailureLeavesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	err := migrate.Up(t.Context(), pool, set("test", "0001_a.sql", `create table a (n int)`, "0002_b.sql", `select 1/0`))
	if err == nil || !strings.Contains(err.Error(), "0002_b.sql") {
		t.Fatalf("Up returned %v", err)
	}
	if n := count(t, pool, `select count(*) from pg_class where relname in ('a', 'postbus_migrations')`); n != 0 {
		t.Errorf("%d tables are left", n)
	}
}

// TestBusyTableIsWaitedFor: a migration gives way to a transaction that holds the table, and gets through after it.
func TestBusyTableIsWaitedFor(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if err := migrate.Up(t.Context(), pool, set("test", "0001_a.sql", `create table a (n int)`)); err != nil {
		t.Fatal(err)
	}
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Exec(t.Context(), `select * from test.a`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- migrate.Up(context.WithoutCancel(t.Context()), pool,
			set("test", "0001_a.sql", "", "0002_b.sql", `alter table a add column m int`))
	}()
	for count(t, pool, `select count(*) from pg_locks where not granted`) == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the migration does not wait")
		}
	}
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Up returned %v", err)
	}
}

func TestNumberingIsChecked(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for name, files := range map[string][]string{
		"a gap":           {"0001_a.sql", "", "0003_c.sql", ""},
		"no beginning":    {"0002_b.sql", ""},
		"two of a number": {"0001_a.sql", "", "0001_b.sql", ""},
		"another name":    {"1_a.sql", ""},
	} {
		if err := migrate.Up(t.Context(), pool, set("test", files...)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func count(t *testing.T, pool *pgxpool.Pool, query string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
