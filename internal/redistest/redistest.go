//go:build unix

// Package redistest runs Redis servers, as processes of their own, for tests. The program is the machine's redis-server.
package redistest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	program = "redis-server"
	// patience is for a server to start on a busy machine.
	patience = time.Minute
	poll     = 10 * time.Millisecond
)

// Durable are the settings of a server that keeps what it acknowledges. It writes no snapshots.
const Durable = "appendonly yes\nappendfsync always\nsave \"\"\n"

// Server is a Redis server with its files, which outlive it.
type Server struct {
	t      testing.TB
	dir    string
	port   int
	server int    // process id
	option string // of the program
	keeper *exec.Cmd
	stdin  io.Closer
}

// Start starts a durable server. It ends with the test, or with the test's process. Where there is no redis-server the test
// is left out; in CI it fails.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartWith(t, Durable)
}

// StartWith starts a server with that configuration, and none of its own but where it listens and keeps its files.
func StartWith(t testing.TB, configuration string) *Server {
	t.Helper()
	return start(t, "", "port", configuration)
}

// StartTLS starts a durable server that speaks nothing but TLS.
func StartTLS(t testing.TB, certificate, key string) *Server {
	t.Helper()
	files := fmt.Sprintf("tls-cert-file %s\ntls-key-file %s\ntls-auth-clients no\n", certificate, key)
	return start(t, "", "port 0\ntls-port", files+Durable)
}

// StartSentinel starts a sentinel that knows the server by the name, and has a replica take its place when it is away for a moment.
func StartSentinel(t testing.TB, server *Server, name string) *Server {
	t.Helper()
	return start(t, "--sentinel", "port", fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d 1\nsentinel down-after-milliseconds %[1]s 500\n"+
		"sentinel failover-timeout %[1]s 3000\n", name, server.port))
}

func start(t testing.TB, option, listen, configuration string) *Server {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not installed", program)
		}
		t.Skipf("%s is not installed; .ci/run installs it", program)
	}
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, dir: dir, port: freePort(t), option: option}
	t.Cleanup(func() {
		s.Kill()
		_ = os.RemoveAll(dir)
	})
	text := fmt.Sprintf("bind 127.0.0.1\n%s %d\ndir %s\n", listen, s.port, dir) + configuration
	if err := os.WriteFile(s.config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Start()
	return s
}

func (s *Server) config() string { return filepath.Join(s.dir, "redis.conf") }

// Addr is host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Port is the port alone.
func (s *Server) Port() int { return s.port }

// Dir has the server's files.
func (s *Server) Dir() string { return s.dir }

// URL is what a broker is told to connect to.
func (s *Server) URL() string { return "redis://" + s.Addr() }

// Client is a plain client of the server. It is closed with the test.
func (s *Server) Client() *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.Addr()})
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// keep runs the server and kills it when nobody holds the other end of its input any more.
const keep = `"$0" "$1" $2 >"$1.log" 2>&1 & echo $!; cat >/dev/null; kill -9 $!; wait`

// Start starts the server again, with what it has stored, and waits for it.
func (s *Server) Start() {
	s.t.Helper()
	s.keeper = exec.Command("sh", "-c", keep, program, s.config(), s.option) //nolint:gosec,noctx // ends with its input
	var err error
	if s.stdin, err = s.keeper.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	out, err := s.keeper.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.keeper.Start(); err != nil {
		s.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		s.server, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		s.t.Fatalf("start %s: %v", program, err)
	}
	s.await()
}

// await waits until the server takes connections, which it does when it has loaded its files, or soon after.
func (s *Server) await() {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; <-time.After(poll) { // polls what has no signal
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", s.Addr())
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(s.config() + ".log")
			s.t.Fatalf("%s does not answer: %v\n%s", program, err, log)
		}
	}
}

// Kill ends the server's process without a word to it.
func (s *Server) Kill() {
	if s.keeper == nil {
		return
	}
	s.Signal(syscall.SIGKILL)
	_ = s.stdin.Close()
	_ = s.keeper.Wait() // it says that it was killed
	s.keeper = nil
}

// Signal sends the process a signal, SIGSTOP for one.
func (s *Server) Signal(signal syscall.Signal) { _ = syscall.Kill(s.server, signal) }

// freePort is one below those that systems give to outgoing connections: a server that is started again wants it again.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)                                                                //nolint:gosec // any will do
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil { //nolint:noctx // closed at once
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}
