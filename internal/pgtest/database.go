package pgtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/migrate"
)

const (
	// Names of databases begin with one of these, and the time at which they were made; templates that are finished end
	// with the hash of their migrations.
	testPrefix     = "postbus_test_"
	newPrefix      = "postbus_new_"
	templatePrefix = "postbus_template_"
	// leftoverAge is the age from which on a test's database, or an unfinished template, must be that of a killed run.
	leftoverAge = time.Hour
	// templateAge is the age from which on a template is taken to be that of migrations which have changed since.
	templateAge = 7 * 24 * time.Hour
	// templateLock is the advisory lock under which templates are made, one at a time: they come from template1, which
	// only one session may copy at once on older servers.
	templateLock = 0x706f737462757302 // "postbus", 2
)

// create makes a database for a test and returns its name.
func (h host) create(ctx context.Context, sets []migrate.Set) (name string, err error) {
	err = h.administer(ctx, func(conn *pgx.Conn) error {
		for {
			template, err := h.ensureTemplate(ctx, conn, sets)
			if err != nil {
				return err
			}
			name = stamped(testPrefix)
			_, err = conn.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+template)
			switch {
			case err == nil:
				return nil
			case !hasCode(err, "3D000"): // invalid_catalog_name: another process found the template too old just now
				return fmt.Errorf("make database from %s: %w", template, err)
			}
		}
	})
	return name, err
}

// drop drops a test's database and ends the connections to it.
func (h host) drop(ctx context.Context, name string) error {
	return h.administer(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
		return err
	})
}

// administrators are connections that make and drop databases: to connect takes as long as that does. They end with the process.
type administrators struct {
	mu   sync.Mutex
	idle []*pgx.Conn
}

// administratorsMax is how many of them wait for something to do.
const administratorsMax = 2

// administer has fn work over a connection that nobody else uses meanwhile.
func (h host) administer(ctx context.Context, fn func(*pgx.Conn) error) (err error) {
	conn := h.administrators.take()
	if conn == nil || conn.Ping(ctx) != nil {
		if conn, err = pgx.Connect(ctx, h.url.String()); err != nil {
			return err
		}
	}
	err = fn(conn)
	if !h.administrators.give(conn) {
		err = errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	return err
}

// take returns one that has nothing to do, or nil.
func (a *administrators) take() *pgx.Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := len(a.idle)
	if n == 0 {
		return nil
	}
	conn := a.idle[n-1]
	a.idle = a.idle[:n-1]
	return conn
}

// give keeps the connection for later, unless it is of no use or there are enough.
func (a *administrators) give(conn *pgx.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if conn.IsClosed() || len(a.idle) == administratorsMax {
		return false
	}
	a.idle = append(a.idle, conn)
	return true
}

// ensureTemplate returns the name of the database that has these migrations; the first to ask makes it. It gets that name
// when it is finished, and nobody can connect to it from then on: a template with a connection cannot be copied.
func (h host) ensureTemplate(ctx context.Context, conn *pgx.Conn, sets []migrate.Set) (name string, err error) {
	sum, err := hash(sets)
	if err != nil {
		return "", err
	}
	if name, err = findTemplate(ctx, conn, sum); err != nil || name != "" {
		return name, err
	}
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", templateLock); err != nil {
		return "", err
	}
	defer func() {
		_, unlockErr := conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", templateLock)
		err = errors.Join(err, unlockErr)
	}()
	if name, err = findTemplate(ctx, conn, sum); err != nil || name != "" {
		return name, err
	}
	unfinished := stamped(newPrefix)
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+unfinished); err != nil {
		return "", err
	}
	if err := migrateTo(ctx, h.address(unfinished), sets); err != nil {
		_, dropErr := conn.Exec(ctx, "DROP DATABASE "+unfinished+" WITH (FORCE)")
		return "", errors.Join(err, dropErr)
	}
	name = stamped(templatePrefix) + "_" + sum
	for _, statement := range []string{
		"ALTER DATABASE " + unfinished + " ALLOW_CONNECTIONS false",
		"ALTER DATABASE " + unfinished + " RENAME TO " + name,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return "", err
		}
	}
	return name, nil
}

// findTemplate returns the newest template with that hash, or nothing.
func findTemplate(ctx context.Context, conn *pgx.Conn, sum string) (name string, err error) {
	const newest = `SELECT coalesce(max(datname), '') FROM pg_database WHERE starts_with(datname, $1) AND datname LIKE '%\_' || $2`
	err = conn.QueryRow(ctx, newest, templatePrefix, sum).Scan(&name)
	return name, err
}

func migrateTo(ctx context.Context, address string, sets []migrate.Set) error {
	pool, err := pgxpool.New(ctx, address)
	if err != nil {
		return err
	}
	defer pool.Close()
	return migrate.Up(ctx, pool, sets...)
}

// hash names the content of the migrations, so that a changed file makes a new template.
func hash(sets []migrate.Set) (string, error) {
	h := sha256.New()
	for _, s := range sets {
		_, _ = fmt.Fprintf(h, "%q %q\n", s.Name, s.Schema) // a hash takes everything
		err := fs.WalkDir(s.FS, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			content, err := fs.ReadFile(s.FS, path)
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintf(h, "%q %q\n", path, content)
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("read migrations of %s: %w", s.Name, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// sweep drops what killed runs left behind.
func (h host) sweep(ctx context.Context) (err error) {
	conn, err := pgx.Connect(ctx, h.url.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	rows, err := conn.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, 'postbus_')")
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		if !outlived(name) {
			continue
		}
		// Not by force: a debugger may be sitting in that test.
		_, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize())
		if err != nil && !hasCode(err, "55006", "3D000") { // object_in_use; gone by now
			return err
		}
	}
	return nil
}

// stamped returns a new name with the time in it.
func stamped(prefix string) string {
	return prefix + strconv.FormatInt(time.Now().Unix(), 10) + "_" + strings.ToLower(rand.Text()[:12])
}

// outlived tells whether a database is one of ours and has been there for longer than it can be of use.
func outlived(name string) bool {
	for prefix, age := range map[string]time.Duration{testPrefix: leftoverAge, newPrefix: leftoverAge, templatePrefix: templateAge} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			stamp, _, _ := strings.Cut(rest, "_")
			seconds, err := strconv.ParseInt(stamp, 10, 64)
			return err == nil && time.Since(time.Unix(seconds, 0)) > age
		}
	}
	return false
}

// hasCode tells whether the server has answered with one of these codes.
func hasCode(err error, codes ...string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && slices.Contains(codes, pg.Code)
}

// address is the URL of one of the server's databases.
func (h host) address(database string) string {
	u := *h.url
	u.Path = "/" + database
	return u.String()
}
