package pgtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/migrate"
)

const (
	// poolConnectionsMax leaves room for many packages in one server.
	poolConnectionsMax = 8
	// setUpTimeout covers making a template on a slow machine while others make theirs.
	setUpTimeout = 2 * time.Minute
	// cleanUpTimeout is generous for dropping a database, and soon enough for a test that forgot a connection.
	cleanUpTimeout = 15 * time.Second
)

// New returns a pool on a private database that has the migrations of sets. The database is dropped and the pool closed
// when the test ends. A connection that the test has not given back by then fails it.
func New(t testing.TB, sets ...migrate.Set) *pgxpool.Pool {
	t.Helper()
	return Open(t, URL(t, sets...))
}

// Open returns a small pool on that URL, which is closed when the test ends.
func Open(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatalf("read the test database's URL: %v", err)
	}
	config.MaxConns = poolConnectionsMax
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatalf("open the test database: %v", err)
	}
	t.Cleanup(func() { closePool(t, pool) })
	return pool
}

// TakeAll takes all of the pool's connections, as an application does that is busy, until release is called.
func TakeAll(t testing.TB, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	var taken []*pgxpool.Conn
	for range pool.Config().MaxConns {
		conn, err := pool.Acquire(context.Background())
		if err != nil {
			t.Fatalf("take all connections: %v", err)
		}
		taken = append(taken, conn)
	}
	return func() {
		for _, conn := range taken {
			conn.Release()
		}
	}
}

// URL returns the address of a private database that has the migrations of sets, for programs that connect by
// themselves. The database is dropped when the test ends; connections that are still open then are ended.
func URL(t testing.TB, sets ...migrate.Set) string {
	t.Helper()
	h, err := server()
	if err != nil {
		t.Fatalf("start PostgreSQL for tests: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), setUpTimeout)
	defer cancel()
	name, err := h.create(ctx, sets)
	if err != nil {
		t.Fatalf("make a test database: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanUpTimeout)
		defer cancel()
		if err := h.drop(ctx, name); err != nil {
			t.Errorf("drop test database %s: %v", name, err)
		}
	})
	return h.address(name)
}

// closePool closes the pool; a pool waits for all its connections, and would wait for ever for one that was forgotten.
func closePool(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(cleanUpTimeout):
		t.Errorf("close the test's pool: %d connections were not given back", pool.Stat().AcquiredConns())
	}
}
