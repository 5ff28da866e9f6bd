package pgtest

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/localpg"
)

// OwnServer is a PostgreSQL that one test may stop, start and kill as it likes.
type OwnServer struct {
	*localpg.Server
	t testing.TB
}

// Own returns a server for this test alone. It is fully durable, unlike the shared one, and gone when the test ends. It
// takes about a second to make.
func Own(t testing.TB) *OwnServer {
	t.Helper()
	dir := Dir(t)
	ctx, cancel := context.WithTimeout(context.Background(), setUpTimeout)
	defer cancel()
	s, err := localpg.Start(ctx, localpg.Options{Dir: dir})
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), os.RemoveAll(s.Dir())); err != nil {
			t.Errorf("close PostgreSQL: %v", err)
		}
	})
	return &OwnServer{Server: s, t: t}
}

// Stop shuts the server down at once, as a failing machine would: sessions are cut off and nothing is written any more.
func (s *OwnServer) Stop() {
	s.t.Helper()
	s.signal(syscall.SIGQUIT)
}

// Kill kills the server's main process, which cannot clean up after itself.
func (s *OwnServer) Kill() {
	s.t.Helper()
	s.signal(syscall.SIGKILL)
}

// Start starts the server again, on the same port, and waits until it answers.
func (s *OwnServer) Start() {
	s.t.Helper()
	port := s.Port()
	ctx, cancel := context.WithTimeout(context.Background(), setUpTimeout)
	defer cancel()
	if err := s.Ensure(ctx); err != nil {
		s.t.Fatalf("start PostgreSQL again: %v", err)
	}
	if s.Port() != port {
		s.t.Fatalf("start PostgreSQL again: port %d was taken by another program meanwhile", port)
	}
}

// signal sends the signal to the server and waits until it is gone with all its children: those of a killed server answer
// for a moment longer.
func (s *OwnServer) signal(signal syscall.Signal) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setUpTimeout)
	defer cancel()
	pids, err := s.pids(ctx)
	if err != nil {
		s.t.Fatalf("list PostgreSQL's processes: %v", err)
	}
	if err := send(s.PID(), signal); err != nil {
		s.t.Fatalf("%v PostgreSQL: %v", signal, err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	there := func(pid int) bool { return send(pid, syscall.Signal(0)) == nil }
	for s.Runs() || slices.ContainsFunc(pids, there) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("%v PostgreSQL: some of processes %v are still there", signal, pids)
		}
	}
}

func send(pid int, signal syscall.Signal) error {
	process, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return process.Signal(signal)
}

// pids lists the server's children.
func (s *OwnServer) pids(ctx context.Context) (pids []int, err error) {
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	rows, err := conn.Query(ctx, "SELECT pid FROM pg_stat_activity")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int])
}
