package relay_test

import (
	"fmt"
	"net/url"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// secondPostgres is a broker that is a Postgres.
type secondPostgres struct {
	*pgtest.OwnServer
	t       *testing.T
	stopped []int // processes
}

// Addr is where it listens.
func (s *secondPostgres) Addr() string { return fmt.Sprint("127.0.0.1:", s.Port()) }

// through is its URL by that way.
func (s *secondPostgres) through(way string) string {
	u, err := url.Parse(s.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	u.Host = way
	return u.String()
}

// Signal stops the main process, which begins sessions, and then all sessions; or has them go on.
func (s *secondPostgres) Signal(signal syscall.Signal) {
	s.t.Helper()
	if signal == syscall.SIGSTOP {
		conn, err := pgx.Connect(s.t.Context(), s.URL())
		if err != nil {
			s.t.Fatal(err)
		}
		defer conn.Close(s.t.Context())
		_ = syscall.Kill(s.PID(), signal)
		rows, err := conn.Query(s.t.Context(), `SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()`)
		if err == nil {
			s.stopped, err = pgx.CollectRows(rows, pgx.RowTo[int])
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	for _, pid := range s.stopped {
		_ = syscall.Kill(pid, signal)
	}
	_ = syscall.Kill(s.PID(), signal)
}

// TestRelayDiesBetweenAckAndNoteOverPostgres, again and again: events are published twice, and have one effect.
func TestRelayDiesBetweenAckAndNoteOverPostgres(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := pgtest.Own(t)
	relayDies(t, server.URL(), func() (stored int64, err error) {
		conn, err := pgx.Connect(t.Context(), server.URL())
		if err != nil {
			return 0, err
		}
		defer conn.Close(t.Context())
		table := pgx.Identifier{"postbus_broker", "topic_" + topic}.Sanitize()
		err = conn.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&stored)
		return stored, err
	})
}
