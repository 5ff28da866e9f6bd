//go:build unix

package localpg

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A test binary started with this variable is another program that uses the server in that directory.
const programVariable = "LOCALPG_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(programVariable); dir != "" {
		if err := program(dir, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // this is a main
		}
		return
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code) //nolint:forbidigo // this is a main
}

// base is the directory of all that the tests make. It is removed at the end and not test by test: ext4 makes files slowly
// for some minutes after it has removed many.
var base string

func runTests(m *testing.M) (code int, err error) {
	if base, err = os.MkdirTemp("", "localpg-test-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base)) }()
	if err := errors.Join(os.Chmod(base, 0o711), os.Setenv("TMPDIR", base)); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// greeting is what the other program says when it has its server.
type greeting struct {
	State, Dir, Note string
	PID, UID         int
}

// program starts a server, says so, and closes it when its input ends.
func program(dir string, in io.Reader, out io.Writer) error {
	s, err := Start(context.Background(), Options{Dir: dir, Disposable: true})
	if err != nil {
		return err
	}
	g := greeting{State: s.State().String(), Dir: s.Dir(), Note: s.Note(), PID: s.PID(), UID: os.Geteuid()}
	if err := json.NewEncoder(out).Encode(g); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	return s.Close()
}

// process is a running other program.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr strings.Builder
}

// startProgram starts another program on that directory, as another user if there is one given.
func startProgram(t *testing.T, dir string, as *account) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t}
	if as != nil {
		// What the go tool builds lies where other users cannot go.
		there := filepath.Join(filepath.Dir(dir), "program.test")
		if err := os.Link(self, there); err != nil && !errors.Is(err, fs.ErrExist) { // on another file system
			// Not by this process: a child that is just being started would keep the file open for writing.
			if out, err := exec.Command("cp", "-p", self, there).CombinedOutput(); err != nil {
				t.Fatalf("copy the test binary: %v: %s", err, out)
			}
		}
		self = there
	}
	p.cmd = exec.Command(self)
	if as != nil {
		p.cmd.SysProcAttr = detached(as)
	}
	p.cmd.Env = append(os.Environ(), programVariable+"="+dir)
	p.cmd.Dir = filepath.Dir(dir)
	p.cmd.Stderr = &p.stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

// greeting waits for the program to have its server.
func (p *process) greeting() greeting {
	p.t.Helper()
	var g greeting
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		_ = p.cmd.Wait()
		p.t.Fatalf("the other program ended: %s", p.stderr.String())
	}
	if err := json.Unmarshal(line, &g); err != nil {
		p.t.Fatal(err)
	}
	return g
}

// failure waits for the program to end with an error, and returns what it said.
func (p *process) failure() string {
	p.t.Helper()
	if err := p.cmd.Wait(); err == nil {
		p.t.Fatal("the other program ended well; it should have failed")
	}
	return p.stderr.String()
}

// leave makes the program close its server and end.
func (p *process) leave() {
	p.t.Helper()
	if err := p.in.Close(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("the other program failed: %v: %s", err, p.stderr.String())
	}
}

// kill kills the program, which cannot close anything then.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	_ = p.cmd.Wait()
}

// newDir returns a directory that does not exist yet, in one that the server's user can reach.
func newDir(t *testing.T) string {
	t.Helper()
	parent, err := os.MkdirTemp(base, "test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(parent, 0o711); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(parent, "cluster")
}

// seed makes a cluster, once, that tests copy: initdb takes longer than most of them.
var seed = sync.OnceValue(func() error {
	s, err := Start(context.Background(), Options{Dir: filepath.Join(base, "seed"), Disposable: true})
	if err != nil {
		return err
	}
	return s.Close()
})

// newCluster returns the directory of a cluster whose server does not run, with a port of its own.
func newCluster(t *testing.T) string {
	t.Helper()
	if err := seed(); err != nil {
		t.Fatal(err)
	}
	dir := newDir(t)
	if out, err := exec.Command("cp", "-Rp", filepath.Join(base, "seed"), dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the cluster: %v: %s", err, out)
	}
	givePort(t, dir)
	return dir
}

// givePort has a cluster that does not run begin on a free port below those that systems give to outgoing connections: a
// test may stop the server and want the port again.
func givePort(t *testing.T, dir string) {
	t.Helper()
	for range 100 {
		if port := 20000 + rand.IntN(10000); isFree(port) {
			write(t, filepath.Join(dir, portFile), strconv.Itoa(port), 0o600)
			return
		}
	}
	t.Fatal("no free port")
}

// start starts a server, which the test may close itself.
func start(t *testing.T, o Options) *Server {
	t.Helper()
	o.Disposable = true
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if s.Runs() { // whatever went wrong, leave nothing behind
			_ = syscall.Kill(s.PID(), syscall.SIGQUIT)
		}
	})
	return s
}

func wantState(t *testing.T, s *Server, want State) {
	t.Helper()
	if s.State() != want {
		t.Errorf("the server was %v, want %v", s.State(), want)
	}
}

func wantRuns(t *testing.T, s *Server, want bool) {
	t.Helper()
	if s.Runs() != want {
		t.Errorf("the server runs: %v, want %v", s.Runs(), want)
	}
}

// ask runs a statement and returns its only value as text.
func ask(t *testing.T, s *Server, sql string, args ...any) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var text string
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&text); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

// tell runs a statement that returns nothing.
func tell(t *testing.T, s *Server, sql string) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), sql)
	return err
}

// killServer kills the server's main process and waits until it is gone.
func killServer(t *testing.T, s *Server) {
	t.Helper()
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the killed server is gone", func() bool { return !s.Runs() })
}

func waitUntil(t *testing.T, what string, fn func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if poll(ctx, 5*time.Millisecond, func() (bool, error) { return fn(), nil }) != nil {
		t.Fatalf("waited 20s in vain until %s", what)
	}
}

// ordinary returns a user without rights, for tests that run as root.
func ordinary(t *testing.T) *account {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user; every other test runs as an ordinary user then")
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Skip("there is no user nobody")
	}
	return newAccount(u)
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// chown gives a file to the server's user.
func chown(t *testing.T, s *Server, path string) {
	t.Helper()
	if a := s.cluster.account; a != nil {
		if err := os.Chown(path, a.uid, a.gid); err != nil {
			t.Fatal(err)
		}
	}
}

func line(n int) string { return strconv.Itoa(n) + "\n" }
