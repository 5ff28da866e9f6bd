package localpg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// errNoAnswer ends the wait for a server that does not answer.
var errNoAnswer = errors.New("no answer")

// instance is a server that runs.
type instance struct {
	pid, port int
	version   string
}

// running returns the server of this cluster if it runs. One that is on its way up or down is waited for; a
// postmaster.pid that points to nothing, or to somebody else, is removed.
func (c *cluster) running(ctx context.Context) (i instance, runs bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.options.StartTimeout, errNoAnswer)
	defer cancel()
	var last error
	err = poll(ctx, 50*time.Millisecond, func() (done bool, err error) {
		i, err = c.readPIDFile()
		if err != nil || i.pid == 0 {
			return true, err
		}
		if !worksIn(i.pid, c.dataDir()) {
			return true, c.removePIDFile()
		}
		if i.port == 0 {
			return false, nil // it has just begun
		}
		if i.version, last = c.greet(ctx, i.port); last == nil {
			runs = true
			return true, nil
		}
		if final(last) {
			return true, fmt.Errorf("%w: process %d, the server of %s, does not know the password in %s: %w",
				ErrNotOurs, i.pid, c.dataDir(), filepath.Join(c.dir, passwordFile), last)
		}
		return false, nil
	})
	if errors.Is(err, errNoAnswer) {
		err = fmt.Errorf("%w: process %d works in %s but has not answered for %v (%w); see %s",
			ErrNotStarted, i.pid, c.dataDir(), c.options.StartTimeout, errors.Join(err, last), filepath.Join(c.dir, logFile))
	}
	return i, runs, err
}

// readPIDFile returns the process and the port of postmaster.pid; zeros are what is not there (yet).
func (c *cluster) readPIDFile() (i instance, err error) {
	b, err := os.ReadFile(c.pidFile())
	if errors.Is(err, fs.ErrNotExist) {
		return i, nil
	}
	if err != nil {
		return i, denied(err)
	}
	lines := strings.Split(string(b), "\n")
	if i.pid, err = strconv.Atoi(strings.TrimSpace(lines[0])); err != nil {
		return instance{}, c.removePIDFile() // empty after a power failure
	}
	i.pid = max(i.pid, -i.pid) // negative is a backend in single-user mode
	if len(lines) > 3 {
		i.port, err = strconv.Atoi(strings.TrimSpace(lines[3]))
		if err != nil {
			i.port = 0 // not yet
		}
	}
	return i, nil
}

func (c *cluster) pidFile() string { return filepath.Join(c.dataDir(), "postmaster.pid") }

func (c *cluster) removePIDFile() error {
	if err := os.Remove(c.pidFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return denied(err)
	}
	return nil
}

// greet makes sure that the server on that port knows our password, and works on our data; it returns its version.
func (c *cluster) greet(ctx context.Context, port int) (version string, err error) {
	conn, err := c.connect(ctx, port)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	var dir string
	err = conn.QueryRow(ctx, `SELECT current_setting('data_directory'), current_setting('server_version')`).Scan(&dir, &version)
	if err != nil {
		return "", fmt.Errorf("greet the private PostgreSQL: %w", err)
	}
	if !sameDir(dir, c.dataDir()) {
		return "", fmt.Errorf("%w: port %d is that of %s", ErrNotOurs, port, dir)
	}
	version, _, _ = strings.Cut(version, " ")
	return version, nil
}

func sameDir(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// connect connects to the maintenance database. It offers the password by SCRAM only, which gives nothing away to a
// stranger that has taken the port.
func (c *cluster) connect(ctx context.Context, port int) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(c.url(port, "postgres"))
	if err != nil {
		return nil, fmt.Errorf("connect to the private PostgreSQL: %w", err)
	}
	config.RequireAuth = "scram-sha-256"
	config.ConnectTimeout = 5 * time.Second
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to the private PostgreSQL: %w", err)
	}
	return conn, nil
}

// final tells whether the server has refused us for good, rather than for now.
func final(err error) bool {
	var pg *pgconn.PgError
	return errors.Is(err, ErrNotOurs) || errors.As(err, &pg) && strings.HasPrefix(pg.Code, "28") // invalid authorization
}
