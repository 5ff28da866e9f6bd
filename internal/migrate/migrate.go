// Package migrate brings a schema up to date.
//
// Each Set has its files applied in order, all of them in one transaction, under one advisory lock that ends with the
// transaction. That holds for any number of processes that start at once, and behind a pooler in transaction mode,
// where a session's lock or search_path would end up on another connection. A database that is ahead of the program is
// left alone: an old binary goes on working beside a newer schema.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// lockKey is the advisory lock that all migrations of a database share.
const lockKey = 0x706f737462757301 // "postbus", 1

// lockTimeout bounds how long a statement may queue for a table's lock, and with it how long it may hold up others that
// queue behind it. A migration that runs into it is tried again, lockTries times in all.
const (
	lockTimeout = 3 * time.Second
	lockTries   = 10
)

// Set is the schema of one part of the program: numbered files, "0001_name.sql" and on, that are never changed once
// released. They run with Schema as the search_path; Schema is created where missing.
type Set struct {
	Name   string
	Schema string
	FS     fs.FS
}

type file struct {
	version int
	name    string
	sql     string
}

// Up applies what is missing of each set, in the order given. It may be called at every start and by many processes at
// once. It returns the first error; sets before it stay applied, the one it met is as it was before.
func Up(ctx context.Context, pool *pgxpool.Pool, sets ...Set) error {
	for _, s := range sets {
		files, err := s.files()
		if err != nil {
			return fmt.Errorf("read migrations of %s: %w", s.Name, err)
		}
		if err := s.up(ctx, pool, files); err != nil {
			return fmt.Errorf("migrate %s: %w", s.Name, err)
		}
	}
	return nil
}

func (s Set) up(ctx context.Context, pool *pgxpool.Pool, files []file) error {
	for try := 1; ; try++ {
		current, err := s.current(ctx, pool)
		if err != nil {
			return err
		}
		if current >= len(files) {
			return nil
		}
		err = s.apply(ctx, pool, files)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "55P03" && try < lockTries { // lock_not_available
			continue
		}
		return err
	}
}

// current is the highest version applied, read without the lock: the usual start finds nothing to do and waits for nobody.
func (s Set) current(ctx context.Context, pool *pgxpool.Pool) (int, error) {
	var exists bool
	err := pool.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, s.table()).Scan(&exists)
	if err != nil || !exists {
		return 0, err
	}
	return s.version(ctx, pool)
}

type rowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func (s Set) version(ctx context.Context, q rowQuerier) (version int, err error) {
	err = q.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM `+s.table()+` WHERE name = $1`, s.Name).Scan(&version)
	return version, err
}

func (s Set) apply(ctx context.Context, pool *pgxpool.Pool, files []file) error {
	// Each statement has to see what others committed while it waited for the lock, whatever the database's default is.
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}
	return pgx.BeginTxFunc(ctx, pool, options, func(tx pgx.Tx) error {
		if err := s.prepare(ctx, tx); err != nil {
			return err
		}
		done, err := s.version(ctx, tx) // again, now that nobody else can be at it
		if err != nil {
			return err
		}
		for _, f := range files[min(done, len(files)):] {
			// The simple protocol takes a file of several statements.
			if _, err := tx.Conn().PgConn().Exec(ctx, f.sql).ReadAll(); err != nil {
				return fmt.Errorf("apply %s: %w", f.name, err)
			}
			insert := `INSERT INTO ` + s.table() + ` (name, version, file) VALUES ($1, $2, $3)`
			if _, err := tx.Exec(ctx, insert, s.Name, f.version, f.name); err != nil {
				return err
			}
		}
		return nil
	})
}

// prepare takes the lock and makes the schema and the table of what was applied.
func (s Set) prepare(ctx context.Context, tx pgx.Tx) error {
	schema := pgx.Identifier{s.Schema}.Sanitize()
	run := func(statements ...string) error {
		for _, statement := range statements {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	}
	err := run(
		fmt.Sprintf(`SELECT pg_advisory_xact_lock(%d)`, lockKey),
		fmt.Sprintf(`SET LOCAL lock_timeout = %d`, lockTimeout.Milliseconds()),
		// A session remembers which schemas there are not, and waiting for an advisory lock does not make it look again,
		// as reading a table does. TestStarterThatWaited fails without this.
		`SELECT FROM pg_namespace LIMIT 0`,
	)
	if err != nil {
		return err
	}
	// CREATE SCHEMA IF NOT EXISTS would ask for a right on the database also where the schema exists.
	var missing bool
	if err := tx.QueryRow(ctx, `SELECT to_regnamespace($1) IS NULL`, schema).Scan(&missing); err != nil {
		return err
	}
	if missing {
		if err := run(`CREATE SCHEMA ` + schema); err != nil {
			return err
		}
	}
	return run(`SET LOCAL search_path = `+schema,
		`CREATE TABLE IF NOT EXISTS `+s.table()+` (
			name text NOT NULL, version int NOT NULL, file text NOT NULL,
			applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (name, version))`)
}

func (s Set) table() string { return pgx.Identifier{s.Schema, "postbus_migrations"}.Sanitize() }

var fileName = regexp.MustCompile(`^(\d{4})_[a-z0-9_]+\.sql$`)

// files reads the set's files in order and refuses a numbering with gaps or doubles.
func (s Set) files() ([]file, error) {
	entries, err := fs.ReadDir(s.FS, ".")
	if err != nil {
		return nil, err
	}
	var files []file
	for _, e := range entries {
		match := fileName.FindStringSubmatch(e.Name())
		if match == nil {
			return nil, fmt.Errorf("%s: a migration is named like 0001_users.sql", e.Name())
		}
		version, err := strconv.Atoi(match[1])
		if err != nil {
			return nil, err
		}
		sql, err := fs.ReadFile(s.FS, e.Name())
		if err != nil {
			return nil, err
		}
		files = append(files, file{version: version, name: e.Name(), sql: string(sql)})
	}
	slices.SortFunc(files, func(a, b file) int { return a.version - b.version })
	for i, f := range files {
		if f.version != i+1 {
			return nil, fmt.Errorf("%s: expected version %d", f.name, i+1)
		}
	}
	return files, nil
}
