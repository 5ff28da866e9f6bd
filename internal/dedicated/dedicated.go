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
	pool *pgxpool.Pool
	conn *pgx.Conn
}

// New returns a Conn that has not connected yet. The pool stays the caller's.
func New(pool *pgxpool.Pool) *Conn { return &Conn{pool: pool} }

// Do has fn work over the connection. One that is found to be cut is made anew, and fn is called once more, so what it does may be
// done twice. Where the server has no connection to give, fn works over the pool.
func (c *Conn) Do(ctx context.Context, fn func(DB) error) error {
	if c.conn != nil {
		if err := fn(c.conn); !c.conn.IsClosed() || ctx.Err() != nil {
			return err
		}
	}
	conn, err := Connect(ctx, c.pool)
	if err != nil {
		return fn(c.pool)
	}
	c.conn = conn
	return fn(conn)
}

// closeTimeout bounds the farewell.
const closeTimeout = time.Second

// Close gives the connection up until the next use.
func (c *Conn) Close() {
	if c.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = c.conn.Close(ctx) // given up either way
	c.conn = nil
}
