//go:build unix

// Package redistest runs Redis servers, as processes of their own, for tests. The program is the machine's redis-server.
package redistest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"postbus/internal/servertest"
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
	t       testing.TB
	dir     string
	port    int
	options []string // of the program
	*servertest.Process
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
	return start(t, "port", configuration)
}

// StartTLS starts a durable server that speaks nothing but TLS.
func StartTLS(t testing.TB, certificate, key string) *Server {
	t.Helper()
	files := fmt.Sprintf("tls-cert-file %s\ntls-key-file %s\ntls-auth-clients no\n", certificate, key)
	return start(t, "port 0\ntls-port", files+Durable)
}

// StartSentinel starts a sentinel that knows the server by the name, and has a replica take its place when it is away for a moment.
func StartSentinel(t testing.TB, server *Server, name string) *Server {
	t.Helper()
	return start(t, "port", fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d 1\nsentinel down-after-milliseconds %[1]s 500\n"+
		"sentinel failover-timeout %[1]s 3000\n", name, server.port), "--sentinel")
}

func start(t testing.TB, listen, configuration string, options ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		servertest.Missing(t, program)
	}
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, dir: dir, port: servertest.FreePort(t, 1), options: options}
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

// Start starts the server again, with what it has stored, and waits for it.
func (s *Server) Start() {
	s.t.Helper()
	s.Process = servertest.Run(s.t, s.config()+".log", program, append([]string{s.config()}, s.options...))
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
