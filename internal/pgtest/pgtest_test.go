package pgtest_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/migrate"
	"postbus/internal/pgtest"
)

func set(sql string) migrate.Set {
	return migrate.Set{Name: "test", Schema: "public", FS: fstest.MapFS{"0001_first.sql": {Data: []byte(sql)}}}
}

func count(t *testing.T, pool *pgxpool.Pool, table string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestEveryTestHasItsOwnMigratedDatabase(t *testing.T) {
	t.Parallel()
	fruit := set("CREATE TABLE fruit (name text); INSERT INTO fruit VALUES ('apple')")
	one, two := pgtest.New(t, fruit), pgtest.New(t, fruit)
	if _, err := one.Exec(t.Context(), "INSERT INTO fruit VALUES ('pear')"); err != nil {
		t.Fatal(err)
	}
	if a, b := count(t, one, "fruit"), count(t, two, "fruit"); a != 2 || b != 1 {
		t.Errorf("the tables hold %d and %d rows; want 2 and 1", a, b)
	}
	other := pgtest.New(t, set("CREATE TABLE fruit (name text); INSERT INTO fruit VALUES ('fig'), ('plum'), ('quince')"))
	if n := count(t, other, "fruit"); n != 3 {
		t.Errorf("a database of other migrations holds %d rows; want 3", n)
	}
	if got := other.Config().MaxConns; got > 10 {
		t.Errorf("the pool takes %d connections; the server is shared", got)
	}
}

func TestDatabaseIsDroppedWithTheTest(t *testing.T) {
	t.Parallel()
	var url string
	t.Run("test", func(t *testing.T) {
		url = pgtest.URL(t)
		conn, err := pgx.Connect(t.Context(), url) // left open: a process that was killed
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := conn.Ping(context.Background()); err != nil {
				t.Errorf("the connection ended before the test did: %v", err)
			}
		})
	})
	conn, err := pgx.Connect(t.Context(), url)
	if err == nil {
		_ = conn.Close(context.Background())
	}
	if err == nil || !strings.Contains(err.Error(), "3D000") { // invalid_catalog_name
		t.Errorf("connect to the database of a test that has ended: %v", err)
	}
}

func TestOwnServer(t *testing.T) {
	t.Parallel()
	s := pgtest.Own(t)
	pool := pgtest.Open(t, s.URL())
	write := func(sql string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := pool.Exec(ctx, sql)
		return err
	}
	if err := write("CREATE TABLE kept (n int)"); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(){"Stop": s.Stop, "Kill": s.Kill} {
		if err := write("INSERT INTO kept VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		end()
		if err := write("SELECT 1"); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %s: %v; want a connection that is refused", name, err)
		}
		s.Start()
	}
	if n := count(t, pool, "kept"); n != 2 {
		t.Errorf("after Stop and Kill %d rows are left; want 2", n)
	}
	var fsync string
	if err := pool.QueryRow(t.Context(), "SHOW fsync").Scan(&fsync); err != nil || fsync != "on" {
		t.Errorf("fsync is %q, %v; want it on", fsync, err)
	}
}
