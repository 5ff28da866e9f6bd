// Package dedicated makes connections to Postgres beside a pool, for what must not wait until the application gives one of the
// pool's back: listening, and the renewal of leases.
package dedicated

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Connect makes a connection as the pool makes them. It is the caller's to close.
func Connect(ctx context.Context, pool *pgxpool.Pool) (*pgx.Conn, error) {
	config := pool.Config()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return nil, fmt.Errorf("prepare to connect: %w", err)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if config.AfterConnect != nil {
		if err := config.AfterConnect(ctx, conn); err != nil {
			_ = conn.Close(ctx) // given up either way
			return nil, fmt.Errorf("prepare a connection: %w", err)
		}
	}
	return conn, nil
}

// DB is what a connection and a pool have in common.
type DB interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Conn is a connection beside a pool that is made when it is needed. One goroutine at a time may use it.
type Conn struct {
	pool   *pgxpool.Pool
	conn   *pgx.Conn
	coming *attempt // at a connection, that has not been seen to end
}

// attempt makes a connection. What it has made is there when done is closed.
type attempt struct {
	done   chan struct{}
	cancel context.CancelFunc
	conn   *pgx.Conn
	err    error
}

// New returns a Conn that has not connected yet. The pool stays the caller's.
func New(pool *pgxpool.Pool) *Conn { return &Conn{pool: pool} }

// Do has fn work over the connection. One that is found to be cut is made anew, and fn is called once more, so what it does may be
// done twice. Where the server has no connection to give, or not in half of the time that ctx leaves, fn works over the pool; a
// connection that is on its way then is there for a later call.
func (c *Conn) Do(ctx context.Context, fn func(DB) error) error {
	if c.conn != nil {
		if err := fn(c.conn); !c.conn.IsClosed() || ctx.Err() != nil {
			return err
		}
		c.conn = nil
	}
	if !c.connect(ctx) {
		return fn(c.pool)
	}
	return fn(c.conn)
}

// connectTimeout bounds an attempt. It is longer than those who ask for the connection wait: an attempt that ended with them would
// never succeed on a server that is slow to give one.
const connectTimeout = 30 * time.Second

// connect reports whether there is a connection now.
func (c *Conn) connect(ctx context.Context) bool {
	if c.coming == nil {
		connecting, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		a := &attempt{done: make(chan struct{}), cancel: cancel}
		go func() {
			defer close(a.done)
			a.conn, a.err = Connect(connecting, c.pool)
		}()
		c.coming = a
	}
	waiting := ctx
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
		defer cancel()
	}
	select {
	case <-c.coming.done:
		c.arrive()
		return c.conn != nil
	case <-waiting.Done():
		return false
	}
}

// arrive takes what the attempt has made, when it is done.
func (c *Conn) arrive() {
	<-c.coming.done
	c.coming.cancel()
	if c.coming.err == nil {
		c.conn = c.coming.conn
	}
	c.coming = nil
}

// closeTimeout bounds the farewell.
const closeTimeout = time.Second

// Close gives the connection up until the next use.
func (c *Conn) Close() {
	if c.coming != nil {
		c.coming.cancel()
		c.arrive()
	}
	if c.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = c.conn.Close(ctx) // given up either way
	c.conn = nil
}
