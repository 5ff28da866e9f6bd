package postgres

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// TestThroughPgBouncer publishes and reads through a pooler that gives a connection to others after every transaction.
// No notification comes through there; polling is enough. Prepared statements would not come through either, hence the
// query mode in the URL.
func TestThroughPgBouncer(t *testing.T) {
	t.Parallel()
	address := startPgBouncer(t, pgtest.URL(t, Migrations(DefaultSchema)))
	config := Config{NotifyOff: true, Poll: 20 * time.Millisecond, Lease: time.Second}
	l := openLog(t, pgtest.Open(t, address), config, "reader")
	other := openLog(t, pgtest.Open(t, address), config, "reader")
	all := newLedger()
	listenAs(t.Context(), t, l, "a", all, 0)
	listenAs(t.Context(), t, other, "b", all, 0)
	const keys, each = 10, 20
	for n := range each {
		for k := range keys {
			silently(t, l, fmt.Sprint("k", k), n)
		}
	}
	eventually(t, "all messages", func() bool { return all.count() >= keys*each })
	all.check(t, keys, each)
}

// startPgBouncer starts one in transaction mode before the database, and returns the URL that leads through it.
func startPgBouncer(t *testing.T, address string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program = "/usr/sbin/pgbouncer"; !exists(program) {
			servertest.Missing(t, "pgbouncer")
		}
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	listen := freeAddress(t)
	host, port, _ := net.SplitHostPort(listen)
	dir, err := os.MkdirTemp("", "pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := filepath.Join(dir, "pgbouncer.ini")
	database := u.Path[1:]
	text := fmt.Sprintf(`[databases]
%s = host=%s port=%s dbname=%s user=%s password=%s
[pgbouncer]
listen_addr = %s
listen_port = %s
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
`, database, u.Hostname(), u.Port(), database, u.User.Username(), password, host, port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, config)
	if os.Geteuid() == 0 { // which it refuses to run as
		asNobody(t, cmd, dir, config)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "pgbouncer answers", func() bool {
		conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", listen)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	u.Host = listen
	query := u.Query()
	query.Set("default_query_exec_mode", "cache_describe")
	u.RawQuery = query.Encode()
	return u.String()
}

func asNobody(t *testing.T, cmd *exec.Cmd, paths ...string) {
	t.Helper()
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.ParseUint(nobody.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(nobody.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	for _, path := range paths {
		if err := os.Chown(path, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
