package localpg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// obstacleTimeout is how long a start is tried again when something is in its way that passes: the port was taken since
	// it was found free, or children of a killed server are still at work.
	obstacleTimeout = 20 * time.Second
	// obstaclePause is the time between two such tries.
	obstaclePause = 200 * time.Millisecond
	// fastTimeout is how long a fast shutdown may take before it is made an immediate one, which loses no commits either.
	fastTimeout = 30 * time.Second
)

// up returns the server that runs; it starts it, and makes the cluster, if it has to.
func (c *cluster) up(ctx context.Context) (i instance, state State, err error) {
	there, err := c.exists()
	switch {
	case err != nil:
		return i, 0, err
	case !there:
		state = Created
		if err = c.create(ctx); err == nil {
			i, err = c.start(ctx)
		}
	default:
		i, state, err = c.upAgain(ctx)
	}
	if err != nil {
		return i, 0, err
	}
	if state == Adopted {
		return i, state, nil
	}
	if err := c.makeDatabase(ctx, i.port); err != nil {
		return i, 0, errors.Join(err, c.stop(context.WithoutCancel(ctx)))
	}
	return i, state, nil
}

// upAgain adopts or starts the server of a cluster that exists.
func (c *cluster) upAgain(ctx context.Context) (i instance, state State, err error) {
	if err = c.readPassword(); err == nil {
		var runs bool
		if i, runs, err = c.running(ctx); err == nil && runs {
			// The program that started the server may have been killed before it had made the database.
			if err = c.makeDatabase(ctx, i.port); err == nil || worksIn(i.pid, c.dataDir()) {
				return i, Adopted, err
			}
			err = nil // it died meanwhile
		}
		if err == nil {
			i, err = c.start(ctx)
		}
	}
	if err == nil || !c.options.Disposable || ctx.Err() != nil || errors.Is(err, ErrNoPostgres) {
		return i, Started, err
	}
	if free, unusedErr := c.unused(); unusedErr != nil || !free {
		return i, 0, errors.Join(err, unusedErr)
	}
	if err := errors.Join(c.stop(ctx), c.discard()); err != nil {
		return i, 0, err
	}
	if err := c.create(ctx); err != nil {
		return i, 0, err
	}
	i, err = c.start(ctx)
	return i, Created, err
}

// makeDatabase makes the database postbus if it is not there.
func (c *cluster) makeDatabase(ctx context.Context, port int) (err error) {
	conn, err := c.connect(ctx, port)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	var there bool
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, roleName).Scan(&there)
	if err != nil || there {
		return err
	}
	if _, err = conn.Exec(ctx, `CREATE DATABASE `+roleName); err != nil {
		return fmt.Errorf("make database %s: %w", roleName, err)
	}
	return nil
}

// start starts the server, which does not run, and waits until it answers.
func (c *cluster) start(ctx context.Context) (i instance, err error) {
	inst, err := c.installation(ctx)
	if err != nil {
		return i, err
	}
	last := time.Now().Add(obstacleTimeout)
	err = poll(ctx, obstaclePause, func() (done bool, err error) {
		port, err := c.port()
		if err != nil {
			return false, err
		}
		err = c.startOn(ctx, inst, port)
		// The server's messages are in English: its environment is ours.
		passes := err != nil && (!isFree(port) || strings.Contains(err.Error(), "pre-existing shared memory block"))
		if passes && ctx.Err() == nil && time.Now().Before(last) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return i, err
	}
	i, runs, err := c.running(ctx)
	if err == nil && !runs {
		err = fmt.Errorf("%w: it ended at once; see %s", ErrNotStarted, filepath.Join(c.dir, logFile))
	}
	return i, err
}

// startOn starts the server on that port.
func (c *cluster) startOn(ctx context.Context, inst *installation, port int) error {
	begin, err := c.prepareLog()
	if err != nil {
		return err
	}
	cmd := c.command(ctx, inst, "pg_ctl", "start", "-D", dataDirName, "-l", logFile, "-s", "-w",
		"-t", strconv.Itoa(int(c.options.StartTimeout.Seconds())), "-o", strings.Join(c.settings(port), " "))
	// pg_ctl passes an interrupt on to the server that it is starting.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, fs.ErrPermission):
		return denied(err)
	default:
		return fmt.Errorf("%w: %s; all of it is in %s", ErrNotStarted, c.why(begin, string(out)), filepath.Join(c.dir, logFile))
	}
}

// settings are the server's. They have no spaces or quotes in them: pg_ctl hands them to a shell.
func (c *cluster) settings(port int) []string {
	s := []string{
		"-c port=" + strconv.Itoa(port),
		"-c listen_addresses=127.0.0.1",
		"-c unix_socket_directories=",
		"-c max_connections=" + strconv.Itoa(c.options.MaxConnections),
		"-c shared_buffers=128MB",
		"-c timezone=UTC",
		"-c log_timezone=UTC",
		"-c idle_in_transaction_session_timeout=10min",
		// The details of an error are values that somebody typed.
		"-c log_error_verbosity=terse",
	}
	if c.options.Disposable {
		// Commits stay synchronous: without fsync that costs nothing, and a killed server still loses none.
		s = append(s, "-c fsync=off", "-c full_page_writes=off", "-c max_wal_size=256MB")
	}
	return s
}

// port returns the port of the last start if it is free, or another one, and keeps it.
func (c *cluster) port() (int, error) {
	if text, err := c.readFile(portFile); err == nil {
		if port, err := strconv.Atoi(text); err == nil && port > 0 && isFree(port) {
			return port, nil
		}
	}
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	return port, c.writeFile(portFile, strconv.Itoa(port))
}

func isFree(port int) bool {
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))) //nolint:noctx // it binds and waits for nothing
	return err == nil && l.Close() == nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0") //nolint:noctx // it binds and waits for nothing
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.Join(errors.New("find a free port: no TCP address"), l.Close())
	}
	return addr.Port, l.Close()
}

// prepareLog makes the server's log file, which the server's user could not make itself, and returns its size.
func (c *cluster) prepareLog() (size int64, err error) {
	path := filepath.Join(c.dir, logFile)
	if info, err := os.Lstat(path); err == nil && info.Size() > logBytesMax {
		if err := os.Rename(path, path+".1"); err != nil {
			return 0, denied(err)
		}
	}
	f, err := c.openFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, errors.Join(err, f.Close())
	}
	return info.Size(), f.Close()
}

// why is the reason that the server gave in its log since begin, or else what pg_ctl said.
func (c *cluster) why(begin int64, said string) string {
	f, err := c.openFile(logFile, os.O_RDONLY)
	if err != nil {
		return lastWords(said)
	}
	buf := make([]byte, 64<<10)
	n, _ := f.ReadAt(buf, begin) // what can be read is enough
	_ = f.Close()                // only read
	if words := lastWords(string(buf[:n])); words != "" {
		return words
	}
	return lastWords(said)
}

// stopUnused stops the server if nobody has a share in it.
func (c *cluster) stopUnused(ctx context.Context) error {
	free, err := c.unused()
	if err != nil || !free {
		return err
	}
	return c.stop(ctx)
}

// stop shuts the server down and waits until it is gone. Nothing happens if it does not run.
func (c *cluster) stop(ctx context.Context) error {
	i, err := c.readPIDFile()
	if err != nil || i.pid == 0 || !worksIn(i.pid, c.dataDir()) {
		return err
	}
	if err := signalFast(i.pid); err != nil {
		return fmt.Errorf("stop process %d: %w", i.pid, err)
	}
	fast, cancel := context.WithTimeout(ctx, fastTimeout)
	defer cancel()
	gone := func() (bool, error) { return !worksIn(i.pid, c.dataDir()), nil }
	if poll(fast, 10*time.Millisecond, gone) == nil {
		return nil
	}
	if err := signalImmediate(i.pid); err != nil {
		return fmt.Errorf("stop process %d: %w", i.pid, err)
	}
	return poll(ctx, 10*time.Millisecond, gone)
}
