package dedicated_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"postbus/internal/dedicated"
	"postbus/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hooked is a pool whose connections know their kind, and to which no more are given once it is full.
func hooked(t *testing.T) (pool *pgxpool.Pool, full *atomic.Bool) {
	t.Helper()
	full = new(atomic.Bool)
	return hookedBy(t, 0, func(context.Context) error {
		if full.Load() {
			return errors.New("too many connections")
		}
		return nil
	}), full
}

// hookedBy is such a pool, of so many connections unless that is 0, each of which before may wait for or refuse.
func hookedBy(t *testing.T, most int32, before func(context.Context) error) *pgxpool.Pool {
	t.Helper()
	config := pgtest.New(t).Config()
	if most > 0 {
		config.MaxConns = most
	}
	config.BeforeConnect = func(ctx context.Context, _ *pgx.ConnConfig) error { return before(ctx) }
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `set application_name = 'hooked'`)
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// session is which one the statement runs in.
func session(t *testing.T, c *dedicated.Conn) (pid int) {
	t.Helper()
	return sessionWithin(t.Context(), t, c)
}

func sessionWithin(ctx context.Context, t *testing.T, c *dedicated.Conn) (pid int) {
	t.Helper()
	err := c.Do(ctx, func(db dedicated.DB) error {
		var name string
		err := db.QueryRow(ctx, `select pg_backend_pid(), current_setting('application_name')`).Scan(&pid, &name)
		if err == nil && name != "hooked" {
			t.Errorf("the connection is %q", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestConnectionStays over the pool's use, is made anew when it was cut, and ends when it is given up.
func TestConnectionStays(t *testing.T) {
	t.Parallel()
	pool, _ := hooked(t)
	c := dedicated.New(pool)
	first := session(t, c)
	if again := session(t, c); again != first {
		t.Errorf("first %d, then %d", first, again)
	}
	if err := c.Do(t.Context(), func(db dedicated.DB) error {
		return db.QueryRow(t.Context(), `select 1 / 0`).Scan(new(int))
	}); err == nil || session(t, c) != first {
		t.Errorf("a statement that failed: %v, and the connection is another one", err)
	}
	terminate := func(pid int) (ended bool) {
		if err := pool.QueryRow(t.Context(), `select pg_terminate_backend($1, 10000)`, pid).Scan(&ended); err != nil {
			t.Fatal(err)
		}
		return ended
	}
	if !terminate(first) {
		t.Fatal("the session was not ended")
	}
	second := session(t, c)
	if second == first {
		t.Error("a session that was ended goes on")
	}
	c.Close()
	c.Close()
	if third := session(t, c); third == second {
		t.Error("what was closed goes on")
	}
	c.Close()
}

// TestPoolWillDo while the server has no connection to give.
func TestPoolWillDo(t *testing.T) {
	t.Parallel()
	pool, full := hooked(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pooled := int(conn.Conn().PgConn().PID())
	conn.Release()
	full.Store(true)
	c := dedicated.New(pool)
	defer c.Close()
	if pid := session(t, c); pid != pooled {
		t.Errorf("session %d, not the pool's %d", pid, pooled)
	}
	full.Store(false)
	if pid := session(t, c); pid == pooled {
		t.Error("there are connections again, and none was made")
	}
}

// TestSlowToConnect: whoever asks meanwhile has the pool, and the connection is there for who asks when it has come. No other one is
// asked for, however often it was not there in time.
func TestSlowToConnect(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	ready := make(chan struct{})
	pool := hookedBy(t, 1, func(ctx context.Context) error {
		if asked.Add(1) == 1 {
			return nil // for the pool itself
		}
		select {
		case <-ready:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	var pooled int
	if err := pool.QueryRow(t.Context(), `select pg_backend_pid()`).Scan(&pooled); err != nil {
		t.Fatal(err)
	}
	c, gone := dedicated.New(pool), dedicated.New(pool)
	for range 2 {
		for _, c := range []*dedicated.Conn{c, gone} {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			if pid := sessionWithin(ctx, t, c); pid != pooled {
				t.Errorf("session %d, not the pool's %d", pid, pooled)
			}
			cancel()
		}
	}
	gone.Close() // does not wait for what does not come
	close(ready)
	if pid := session(t, c); pid == pooled {
		t.Error("the connection that has come is not used")
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("%d connections were asked for, not the pool's and one for each", n)
	}
	c.Close()
}
