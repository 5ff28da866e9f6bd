//go:build unix

package localpg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"postbus/internal/servertest"
)

func TestStartCreatesThenStartsThenAdopts(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	givePort(t, dir)
	first := start(t, Options{Dir: dir})
	wantState(t, first, Created)
	if err := tell(t, first, "CREATE TABLE kept AS SELECT 'here' AS word"); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	wantRuns(t, first, false)

	second := start(t, Options{Dir: dir})
	wantState(t, second, Started)
	if second.Port() != first.Port() {
		t.Errorf("started on port %d, want the former one, %d", second.Port(), first.Port())
	}
	third := start(t, Options{Dir: dir})
	wantState(t, third, Adopted)
	if third.PID() != second.PID() || third.URL() != second.URL() {
		t.Errorf("adopted process %d, want %d", third.PID(), second.PID())
	}
	if got := ask(t, third, "SELECT word FROM kept"); got != "here" {
		t.Errorf("the table holds %q", got)
	}

	for range 2 { // a second Close does nothing: it must not take away the other's share
		if err := second.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantRuns(t, third, true)
	if err := second.Ensure(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Ensure after Close: %v", err)
	}
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}
	wantRuns(t, third, false)
}

func TestRunningServer(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Dir: newCluster(t), MaxConnections: 42})
	for name, want := range map[string]func(*testing.T, *Server){
		"is private":                     wantPrivate,
		"logs no values":                 wantNoValuesInLog,
		"has its password checked":       wantPasswordChecked,
		"lets a Start wait and be ended": wantStartToEndWithItsContext,
	} {
		t.Run(name, func(t *testing.T) { want(t, s) })
	}
}

func wantPrivate(t *testing.T, s *Server) {
	t.Helper()
	for setting, want := range map[string]string{
		"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "server_encoding": "UTF8", "lc_collate": "C",
		"TimeZone": "UTC", "max_connections": "42", "idle_in_transaction_session_timeout": "10min", "fsync": "off",
	} {
		if got := ask(t, s, "SELECT current_setting($1)", setting); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	if got := ask(t, s, "SELECT current_user || '@' || current_database()"); got != "postbus@postbus" {
		t.Errorf("connected as %s", got)
	}
	info, err := os.Stat(filepath.Join(s.Dir(), passwordFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the password file: %v, %v; want 0600", info.Mode(), err)
	}
	if info, err = os.Stat(s.cluster.dataDir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the data directory: %v, %v; want 0700", info.Mode(), err)
	}
	other := strings.Replace(s.URL(), s.cluster.password, "guess", 1)
	if out, err := (&cluster{password: "guess"}).connect(t.Context(), s.Port()); err == nil {
		t.Errorf("connected with a wrong password: %v %s", out, other)
	}
	wantLoopbackOnly(t, s.Port())
	session, err := unix.Getsid(s.PID())
	if err != nil || session != s.PID() {
		t.Errorf("session of the server is %d, %v; want its own, %d", session, err, s.PID())
	}
	if got := ask(t, s, "SHOW server_version"); !strings.HasPrefix(got, s.Version()) || s.Version() == "" || s.Took() <= 0 {
		t.Errorf("version %q, want that of %q; took %v", s.Version(), got, s.Took())
	}
}

// wantLoopbackOnly dials every other address of this machine.
func wantLoopbackOnly(t *testing.T, port int) {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		ip, _, err := net.ParseCIDR(a.String())
		if err != nil || ip.Equal(net.IPv4(127, 0, 0, 1)) || ip.IsLinkLocalUnicast() {
			continue
		}
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip.String(), strconv.Itoa(port)), 2*time.Second)
		if err == nil {
			_ = conn.Close()
			t.Errorf("the server listens on %s", ip)
		}
	}
}

func wantNoValuesInLog(t *testing.T, s *Server) {
	t.Helper()
	if err := tell(t, s, "CREATE TABLE people (address text UNIQUE)"); err != nil {
		t.Fatal(err)
	}
	if err := tell(t, s, "INSERT INTO people SELECT chr(115) || 'ecret' FROM generate_series(1, 2)"); err == nil {
		t.Fatal("a unique index took the same value twice")
	}
	b, err := os.ReadFile(filepath.Join(s.Dir(), logFile))
	if err != nil || !strings.Contains(string(b), "duplicate key") || strings.Contains(string(b), "secret") {
		t.Errorf("want a log of the error without its value: %v\n%s", err, b)
	}
}

func wantPasswordChecked(t *testing.T, s *Server) {
	t.Helper()
	path := filepath.Join(s.Dir(), passwordFile)
	write(t, path, "another\n", 0o600)
	defer write(t, path, s.cluster.password, 0o600)
	other, err := Start(t.Context(), Options{Dir: s.Dir()})
	if !errors.Is(err, ErrNotOurs) || !strings.Contains(err.Error(), passwordFile) || strings.Contains(err.Error(), "another") {
		t.Errorf("%v, %v; want ErrNotOurs that names the file and not the password", other, err)
	}
	wantRuns(t, s, true)
}

func wantStartToEndWithItsContext(t *testing.T, s *Server) {
	t.Helper()
	l, held, err := s.cluster.tryLock(startFile, lockExclusive)
	if err != nil || !held {
		t.Fatal(held, err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, Options{Dir: s.Dir()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start while another starts, with a context that ends: %v", err)
	}
}

func TestFilesAreDurableUnlessDisposable(t *testing.T) {
	t.Parallel()
	settings := strings.Join((&cluster{options: Options{}.defaults()}).settings(1), " ")
	for _, unsafe := range []string{"fsync", "full_page_writes"} {
		if strings.Contains(settings, unsafe) {
			t.Errorf("%s is set in %s", unsafe, settings)
		}
	}
}

func TestPathOfAnySpelling(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	dir := filepath.Join(newDir(t), "a b", `it's "q" $(exit 1) `+"`x`", "ünïcode 🐘")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{Dir: dir})
	wantState(t, s, Created)
	if s.Dir() != dir || s.Note() != "" {
		t.Errorf("placed in %q (%s), want %q", s.Dir(), s.Note(), dir)
	}
	if got := ask(t, s, "SELECT current_setting('data_directory')"); got != filepath.Join(dir, dataDirName) {
		t.Errorf("data is in %q", got)
	}
}

func TestKilledProgramLeavesItsServerToTheNext(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	other := startProgram(t, dir, nil)
	g := other.greeting()
	other.kill()
	s := start(t, Options{Dir: dir})
	wantState(t, s, Adopted)
	if s.PID() != g.PID {
		t.Errorf("adopted process %d, want %d", s.PID(), g.PID)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantRuns(t, s, false)
}

func TestKilledServerIsStartedAgain(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Dir: newCluster(t)})
	port, pid := s.Port(), s.PID()
	if err := tell(t, s, "CREATE TABLE kept AS SELECT 'here' AS word"); err != nil {
		t.Fatal(err)
	}
	killServer(t, s)
	if err := s.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.PID() == pid || s.Port() != port {
		t.Errorf("process %d on port %d again; want another than %d on port %d", s.PID(), s.Port(), pid, port)
	}
	if got := ask(t, s, "SELECT word FROM kept"); got != "here" {
		t.Errorf("the table holds %q", got)
	}
	killServer(t, s)
	other := start(t, Options{Dir: s.Dir()})
	wantState(t, other, Started)
	if err := s.Ensure(t.Context()); err != nil || s.PID() != other.PID() {
		t.Errorf("Ensure: process %d, %v; want %d, which another program has started", s.PID(), err, other.PID())
	}
}

func TestKilledServerWithBusyChildren(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	s := start(t, Options{Dir: newCluster(t)})
	var busy sync.WaitGroup
	busy.Go(func() { _ = tell(t, s, "SELECT count(*) FROM generate_series(1, 3000000)") }) // it may or may not get its answer
	waitUntil(t, "the long statement runs", func() bool {
		return ask(t, s, "SELECT count(*)::text FROM pg_stat_activity WHERE query LIKE '%generate_series(1, 30%' AND state = 'active' "+
			"AND pid <> pg_backend_pid()") == "1"
	})
	killServer(t, s)
	if err := s.Ensure(t.Context()); err != nil {
		t.Errorf("start while a child of the killed server is at work: %v", err)
	}
	busy.Wait()
}

func TestTwoProgramsAtOnceOnAnEmptyDirectory(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	one, two := startProgram(t, dir, nil), startProgram(t, dir, nil)
	a, b := one.greeting(), two.greeting()
	if a.PID != b.PID {
		t.Errorf("two servers: processes %d and %d", a.PID, b.PID)
	}
	if got := a.State + b.State; got != "createdadopted" && got != "adoptedcreated" {
		t.Errorf("the server was %s and %s; want created and adopted", a.State, b.State)
	}
	one.leave()
	if !worksIn(a.PID, filepath.Join(dir, dataDirName)) {
		t.Error("the first to leave stopped the server")
	}
	two.leave()
	if worksIn(a.PID, filepath.Join(dir, dataDirName)) {
		t.Error("the last to leave did not stop the server")
	}
}

func TestOneLeavesAsAnotherArrives(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	dir := newCluster(t)
	held := start(t, Options{Dir: dir})
	for range 6 {
		var leaving sync.WaitGroup
		leaving.Go(func() {
			if err := held.Close(); err != nil {
				t.Error(err)
			}
		})
		next := start(t, Options{Dir: dir})
		leaving.Wait()
		if got := ask(t, next, "SELECT 'alive'"); got != "alive" {
			t.Errorf("answer %q", got)
		}
		held = next
	}
}

func TestManyArriveAndLeave(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	dir := newCluster(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			s, err := Start(t.Context(), Options{Dir: dir, Disposable: true})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.cluster.greet(t.Context(), s.Port()); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if _, err := os.Stat(filepath.Join(dir, dataDirName, "postmaster.pid")); !os.IsNotExist(err) {
		t.Errorf("all have left and the server runs: %v", err)
	}
}

func TestStopUnused(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	s := start(t, Options{Dir: dir})
	o := Options{Dir: dir, Disposable: true}
	done := make(chan error, 1)
	go func() { done <- StopUnused(t.Context(), o, 40*time.Millisecond) }()
	waitUntil(t, "there is a caretaker", func() bool {
		l, held, err := s.cluster.tryLock(caretakerFile, lockExclusive)
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		return !held
	})
	if err := StopUnused(t.Context(), o, time.Hour); err != nil {
		t.Errorf("a second caretaker: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("the caretaker ended while the server was in use: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := s.users.Close(); err != nil { // as the end of a process does
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantRuns(t, s, false)
}

func TestStalePIDFile(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	dir := newCluster(t)
	tests := map[string]func(t *testing.T, s *Server) string{
		"of a process that is gone": func(t *testing.T, _ *Server) string {
			t.Helper()
			gone := exec.Command("true")
			if err := gone.Run(); err != nil {
				t.Fatal(err)
			}
			return line(gone.Process.Pid)
		},
		"of a process of the same user": func(t *testing.T, s *Server) string {
			t.Helper()
			stranger := exec.Command("sleep", "600")
			stranger.SysProcAttr = detached(s.cluster.account)
			stranger.Dir = "/"
			if err := stranger.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if !exists(stranger.Process.Pid) {
					t.Error("the process that has the old process id was killed")
				}
				_ = stranger.Process.Kill()
				_ = stranger.Wait()
			})
			return line(stranger.Process.Pid)
		},
		"of this process": func(*testing.T, *Server) string { return line(os.Getpid()) },
		"that is empty":   func(*testing.T, *Server) string { return "" },
		"that is garbage": func(*testing.T, *Server) string { return "\x00\x00\x00" },
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			s := start(t, Options{Dir: dir})
			wantState(t, s, Started)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			rest := s.cluster.dataDir() + "\n1\n" + line(s.Port()) + "\n127.0.0.1\n"
			write(t, s.cluster.pidFile(), content(t, s)+rest, 0o600)
			chown(t, s, s.cluster.pidFile())
			wantState(t, start(t, Options{Dir: dir}), Started)
		})
	}
	t.Run("and a taken port", func(t *testing.T) { wantAnotherPort(t, dir) })
}

func wantAnotherPort(t *testing.T, dir string) {
	t.Helper()
	s := start(t, Options{Dir: dir})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", s.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	again := start(t, Options{Dir: s.Dir()})
	wantState(t, again, Started)
	if again.Port() == s.Port() {
		t.Errorf("started on port %d, which is taken", again.Port())
	}
}

func TestUnfinishedClusterIsMadeAnew(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	dir := newDir(t)
	left := filepath.Join(dir, newDataPrefix+"123")
	write(t, filepath.Join(left, "PG_VERSION"), "15\n", 0o600)
	write(t, filepath.Join(dir, passwordFile), "old\n", 0o600)
	if err := os.Mkdir(filepath.Join(dir, dataDirName), 0o700); err != nil { // empty
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	wantState(t, start(t, Options{Dir: dir}), Created)
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what the killed run left is still there: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{MaxConnections: 1}, {StartTimeout: time.Millisecond}} {
		if s, err := Start(t.Context(), o); err == nil {
			t.Errorf("%+v was accepted: %v", o, s.Close())
		}
	}
}
