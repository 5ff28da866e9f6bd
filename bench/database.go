package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/localpg"
)

// connectionsMax is Postgres's limit: 32 writers and the idle process's 50 stock subscribers fit.
const connectionsMax = 200

// server is the one Postgres that all figures are taken on.
type server struct {
	run   *runDir
	local *localpg.Server
	admin *pgxpool.Pool
}

func startServer(ctx context.Context, base string) (*server, error) {
	run, err := newRunDir(ctx, base)
	if err != nil {
		return nil, err
	}
	local, err := localpg.Start(ctx, localpg.Options{Dir: run.path, MaxConnections: connectionsMax})
	if err != nil {
		return nil, errors.Join(err, run.close())
	}
	s := &server{run: run, local: local}
	if s.admin, err = pgxpool.New(ctx, local.URL()); err != nil {
		return nil, errors.Join(fmt.Errorf("open pool: %w", err), s.close())
	}
	return s, nil
}

func (s *server) dir() string { return s.local.Dir() }

// close stops Postgres and removes its files, which hold nothing but what was measured.
func (s *server) close() error {
	if s.admin != nil {
		s.admin.Close()
	}
	err := errors.Join(s.local.Close(), os.RemoveAll(s.local.Dir())) //nolint:gosec // it made that directory
	return errors.Join(err, s.run.close())
}

// settings are those that the figures depend on. It refuses a server that would not keep what it has acknowledged.
func (s *server) settings(ctx context.Context) (version string, set map[string]string, err error) {
	set = make(map[string]string)
	rows, err := s.admin.Query(ctx, `SELECT name, current_setting(name) FROM pg_settings WHERE name IN ('server_version', 'fsync',
		'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size', 'checkpoint_timeout', 'wal_sync_method')`)
	if err != nil {
		return "", nil, fmt.Errorf("read settings: %w", err)
	}
	var name, value string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { set[name] = value; return nil }); err != nil {
		return "", nil, fmt.Errorf("read settings: %w", err)
	}
	if set["fsync"] != "on" || set["synchronous_commit"] != "on" {
		return "", nil, errors.New("this Postgres is not durable, so the figures would mean nothing")
	}
	version = set["server_version"]
	delete(set, "server_version")
	return version, set, nil
}

// database is made for one measurement.
type database struct {
	server *server
	name   string
	url    string
	pool   *pgxpool.Pool
}

// database makes an empty database.
func (b *bench) database(ctx context.Context) (*database, error) {
	b.number++
	d := &database{server: b.server, name: fmt.Sprintf("bench_%d", b.number)}
	if _, err := b.server.admin.Exec(ctx, `CREATE DATABASE `+d.name); err != nil {
		return nil, fmt.Errorf("make database: %w", err)
	}
	u, err := url.Parse(b.server.local.URL())
	if err != nil {
		return nil, errors.New("the server's URL is no URL") // the error may quote its password
	}
	u.Path = d.name
	d.url = u.String()
	if d.pool, err = openPool(ctx, d.url, nil); err != nil {
		return nil, err
	}
	return d, nil
}

// settle ends what loading has begun, so that it is not part of what is measured: hint bits and statistics are written,
// dirty pages are on the disk.
func (d *database) settle(ctx context.Context) error {
	for _, statement := range []string{`VACUUM ANALYZE`, `CHECKPOINT`} {
		if _, err := d.pool.Exec(ctx, statement); err != nil {
			return fmt.Errorf("settle database: %w", err)
		}
	}
	return nil
}

// spent is the next transaction id of the cluster, and how many blocks this database has looked at, as far as that is known
// yet. Asking takes no transaction id.
func (d *database) spent(ctx context.Context) (xid, blocks int64, err error) {
	err = d.pool.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
		(SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = current_database())`).Scan(&xid, &blocks)
	if err != nil {
		return 0, 0, fmt.Errorf("read transaction id and blocks: %w", err)
	}
	return xid, blocks, nil
}

// close drops the database with whoever is still connected to it. It works also when the measurement was cancelled.
func (d *database) close(ctx context.Context) error {
	d.pool.Close()
	_, err := d.server.admin.Exec(context.WithoutCancel(ctx), `DROP DATABASE `+d.name+` WITH (FORCE)`)
	if err != nil {
		return fmt.Errorf("drop database: %w", err)
	}
	return nil
}

// poolSize fits 32 writers.
const poolSize = 40

// openPool opens a pool whose statements are counted, where count is given.
func openPool(ctx context.Context, address string, count *atomic.Int64) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		return nil, errors.New("the database's URL is no URL") // the error may quote its password
	}
	config.MaxConns = poolSize
	if count != nil {
		config.ConnConfig.Tracer = counter{count}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	return pool, nil
}

// counter counts statements, as a tracer of pgx. A batch counts its statements one by one.
type counter struct{ count *atomic.Int64 }

// TraceQueryStart implements pgx.QueryTracer.
func (c counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.count.Add(1)
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart implements pgx.BatchTracer.
func (counter) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

// TraceBatchQuery implements pgx.BatchTracer.
func (c counter) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) { c.count.Add(1) }

// TraceBatchEnd implements pgx.BatchTracer.
func (counter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}
