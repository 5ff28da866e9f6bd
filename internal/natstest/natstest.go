//go:build unix

// Package natstest runs NATS servers, as processes of their own, for tests. The program is the nats-server that go.mod
// names as a tool, which the go command builds.
package natstest

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

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbus/internal/servertest"
)

const (
	tool = "github.com/nats-io/nats-server/v2"
	// patience is for a server to start on a busy machine, and to be built before.
	patience = 2 * time.Minute
	poll     = 20 * time.Millisecond
)

// program is the server's path. The go command keeps what it has built.
var program = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "tool", "-n", tool).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return "", fmt.Errorf("build nats-server: %w: %s", err, failed.Stderr)
	}
	return strings.TrimSpace(string(out)), err
})

// Server is a NATS server with JetStream on files, which outlive it.
type Server struct {
	t    testing.TB
	name string
	dir  string
	port int
	*servertest.Process
	// options are what it takes to connect.
	options []nats.Option
}

// Start starts a server alone. It ends with the test, or with the test's process.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartWith(t, "")
}

// StartWith starts a server with more in its configuration, and what it then takes to connect.
func StartWith(t testing.TB, configuration string, options ...nats.Option) *Server {
	t.Helper()
	s := newServer(t, "alone")
	s.options = options
	s.configure(configuration)
	s.Start()
	return s
}

// Cluster starts that many servers that are one cluster.
func Cluster(t testing.TB, n int) []*Server {
	t.Helper()
	servers := make([]*Server, n)
	routes := make([]string, n)
	ports := make([]int, n)
	for i := range servers {
		servers[i] = newServer(t, fmt.Sprintf("n%d", i+1))
		ports[i] = servertest.FreePort(t, 1)
		routes[i] = fmt.Sprintf("nats://127.0.0.1:%d", ports[i])
	}
	for i, s := range servers {
		s.configure(fmt.Sprintf("cluster { name: test, listen: \"127.0.0.1:%d\", routes: [%s] }\n", ports[i], strings.Join(routes, ", ")))
		s.start()
	}
	for _, s := range servers {
		s.await()
	}
	return servers
}

func newServer(t testing.TB, name string) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "natstest")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, name: name, dir: dir, port: servertest.FreePort(t, 1)}
	t.Cleanup(func() {
		s.Kill()
		_ = os.RemoveAll(dir)
	})
	return s
}

func (s *Server) configure(more string) {
	s.t.Helper()
	text := fmt.Sprintf("server_name: %s\nlisten: \"127.0.0.1:%d\"\njetstream { store_dir: %q }\n", s.name, s.port,
		filepath.Join(s.dir, "store")) + more
	if err := os.WriteFile(s.config(), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) config() string { return filepath.Join(s.dir, "nats.conf") }

// Name is the server's own.
func (s *Server) Name() string { return s.name }

// Addr is host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL is what clients connect to.
func (s *Server) URL() string { return "nats://" + s.Addr() }

// Start starts the server again, with what it has stored, and waits for it.
func (s *Server) Start() {
	s.t.Helper()
	s.start()
	s.await()
}

func (s *Server) start() {
	s.t.Helper()
	path, err := program()
	if err != nil {
		s.t.Fatal(err)
	}
	s.Process = servertest.Run(s.t, s.config()+".log", path, []string{"-c", s.config()})
}

// await waits until JetStream answers.
func (s *Server) await() {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := s.ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(s.config() + ".log")
			s.t.Fatalf("nats-server %s does not answer: %v\n%s", s.name, err, log)
		}
		<-time.After(poll) // polls what has no signal
	}
}

func (s *Server) ask() error {
	conn, err := nats.Connect(s.URL(), append([]nats.Option{nats.Timeout(time.Second)}, s.options...)...)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := js.AccountInfo(ctx); err != nil {
		return fmt.Errorf("ask JetStream: %w", err)
	}
	return nil
}
