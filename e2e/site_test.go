package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postbus/internal/localpg"
	"postbus/internal/pgtest"
)

// slots keeps the tests from asking more of a small machine than they would of themselves, one after another.
var slots = make(chan struct{}, 2)

// parallel lets the test run beside others.
func parallel(t *testing.T) {
	t.Helper()
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
}

// secretKey is that of sites with a database of their own.
const secretKey = "e2e-0123456789-abcdefghijklmnopqrstuvwxyz"

// site is one installation: what its processes share.
type site struct {
	t       testing.TB
	dir     string // POSTBUS_DATA_DIR, empty at first
	addr    string // HTTP_ADDR
	env     settings
	office  *office
	web     *http.Client
	visitor atomic.Uint32 // counts the addresses that requests seem to come from
}

// newSite prepares an installation with a mail server and no database: the first program makes a private Postgres.
func newSite(t testing.TB) *site {
	t.Helper()
	return newSiteWith(t, openOffice(t))
}

// newSiteWith is newSite with a mail server of the test's own.
func newSiteWith(t testing.TB, o *office) *site {
	t.Helper()
	s := &site{t: t, dir: pgtest.Dir(t), addr: "127.0.0.1:" + freePort(t), office: o}
	t.Cleanup(s.stopPostgres)
	s.env = settings{
		"POSTBUS_DATA_DIR": s.dir,
		"HTTP_ADDR":        s.addr,
		"SMTP_URL":         "smtp://" + o.addr,
		"TRUSTED_PROXIES":  "127.0.0.1/32", // requests come from many addresses by X-Forwarded-For
	}
	transport := &http.Transport{DisableKeepAlives: true}
	s.web = &http.Client{Transport: transport, Timeout: patience}
	t.Cleanup(transport.CloseIdleConnections)
	return s
}

// newSiteOn is newSite with an empty database in the server that tests share.
func newSiteOn(t testing.TB, o *office) *site {
	t.Helper()
	s := newSiteWith(t, o)
	s.env["DATABASE_URL"] = pgtest.URL(t)
	s.env["SECRET_KEY"] = secretKey
	return s
}

// freePort finds a port that nothing listens on, below those that systems give to outgoing connections: it has to stay
// free while the program that listens on it is away.
func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(20000 + rand.IntN(10000))
		listener, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = listener.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// stopPostgres stops the private Postgres that killed programs have left behind.
func (s *site) stopPostgres() {
	dir := filepath.Join(s.dir, "postgres")
	if _, err := os.Stat(filepath.Join(dir, "data")); errors.Is(err, fs.ErrNotExist) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := localpg.StopUnused(ctx, localpg.Options{Dir: dir}, 40*time.Millisecond); err != nil {
		s.t.Errorf("stop the private Postgres: %v", err)
	}
}

// start runs a program of this site, with further settings if there are any.
func (s *site) start(program string, more settings, args ...string) *process {
	s.t.Helper()
	env := maps.Clone(s.env)
	maps.Copy(env, more)
	if program == consumer {
		delete(env, "TRUSTED_PROXIES")
	}
	return start(s.t, program, env, args...)
}

// startApp runs the app and waits until it is ready.
func (s *site) startApp(more settings) *process {
	s.t.Helper()
	p := s.start(app, more)
	p.says(&p.out, "  stop       Ctrl-C\n")
	if a := s.get("/readyz"); a.status != http.StatusOK {
		s.t.Fatalf("the app says that it is running, but /readyz answers %v", a)
	}
	return p
}

// startConsumer runs the consumers as a process of their own and waits until they are at work, or waiting for it.
func (s *site) startConsumer(args ...string) *process {
	s.t.Helper()
	p := s.start(consumer, nil, args...)
	p.says(&p.out, "  stop       Ctrl-C\n")
	return p
}

// url is what links begin with.
func (s *site) url() string { return "http://" + s.addr }

// databaseURL is that of the site's database. It may change when a private Postgres is started again.
func (s *site) databaseURL() string {
	s.t.Helper()
	if url, ok := s.env["DATABASE_URL"]; ok {
		return url
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(s.dir, "postgres", name))
		if err != nil {
			s.t.Fatalf("read where the private Postgres is: %v", err)
		}
		return strings.TrimSpace(string(text))
	}
	return fmt.Sprintf("postgres://postbus:%s@127.0.0.1:%s/postbus?sslmode=disable", read("password"), read("port"))
}

// postgresPID is the process id of the private Postgres, or 0 if it does not run.
func (s *site) postgresPID() int {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "postgres", "data", "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, convErr := strconv.Atoi(first)
	if err := errors.Join(err, convErr); err != nil {
		s.t.Fatalf("read process id of the private Postgres: %v", err)
	}
	return pid
}

// killPostgres kills the main process of the private Postgres, which cannot clean up after itself.
func (s *site) killPostgres() {
	s.t.Helper()
	pid := s.postgresPID()
	if pid == 0 {
		s.t.Fatal("there is no private Postgres to kill")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatalf("kill the private Postgres: %v", err)
	}
}

// wantNoPostgres makes sure that the private Postgres, which ran as that process, is gone.
func (s *site) wantNoPostgres(pid int) {
	s.t.Helper()
	if left := s.postgresPID(); left != 0 {
		s.t.Errorf("the private Postgres still runs, as process %d", left)
	}
	if err := syscall.Kill(pid, 0); err == nil && !zombie(pid) {
		s.t.Errorf("process %d of the private Postgres is still there", pid)
	}
}

// zombie tells whether a process has ended and only waits for somebody to ask how, which is no more ours to do.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") Z ")
}
