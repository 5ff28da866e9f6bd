package localpg

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// Name of the role and of the database that every private server has.
const roleName = "postbus"

// closeTimeout bounds how long Close waits for its turn and for the server to shut down.
const closeTimeout = time.Minute

// State says what Start found and did.
type State int

// The states of a server after Start.
const (
	// Created: there was no cluster; it was made and started.
	Created State = iota + 1
	// Started: there was a cluster; its server was started.
	Started
	// Adopted: the server was running already.
	Adopted
)

// String is the state as a verb: "created", "started" or "adopted".
func (s State) String() string {
	switch s {
	case Created:
		return "created"
	case Started:
		return "started"
	case Adopted:
		return "adopted"
	default:
		return "State(" + strconv.Itoa(int(s)) + ")"
	}
}

// Server is a share in a running private PostgreSQL. Its methods may be called from many goroutines.
type Server struct {
	cluster *cluster
	users   *lockFile
	state   State
	note    string
	took    time.Duration

	mu      sync.Mutex
	running instance
	closed  bool
}

// Start returns a share in the private PostgreSQL of o.Dir. It makes the cluster where there is none, starts the server
// unless it runs, and makes sure of the role and the database postbus. It is safe to call from many processes at once.
//
// The context covers the call and not the server, which runs until the last share is closed. Every share has to be
// closed; that of a Server which is out of reach, or of a process that has died, is given up without stopping the server,
// which stays for the next Start to adopt.
func Start(ctx context.Context, o Options) (*Server, error) {
	began := time.Now()
	o = o.defaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("check options of the private PostgreSQL: %w", err)
	}
	c, note, err := openCluster(ctx, o)
	if err != nil {
		return nil, err
	}
	s := &Server{cluster: c, note: note}
	err = c.exclusively(ctx, func() (err error) {
		if s.running, s.state, err = c.up(ctx); err != nil {
			return err
		}
		if s.users, err = c.share(); err != nil {
			return errors.Join(err, c.stopUnused(context.WithoutCancel(ctx)))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.took = time.Since(began)
	return s, nil
}

// Close gives this share up and stops the server if it was the last one. A second call does nothing. Connections that are
// still open then are ended by the server; what they had committed is kept.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := s.cluster.exclusively(ctx, func() error {
		if err := s.users.Close(); err != nil {
			return err
		}
		return s.cluster.stopUnused(ctx)
	})
	if err != nil {
		return errors.Join(fmt.Errorf("stop the private PostgreSQL: %w", err), s.users.Close())
	}
	return nil
}

// Ensure starts the server again if it has died, on the same port unless somebody else has taken that meanwhile; URL says
// which. It does nothing while the server runs.
func (s *Server) Ensure(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("ensure the private PostgreSQL: %w", ErrClosed)
	}
	return s.cluster.exclusively(ctx, func() (err error) {
		running, _, err := s.cluster.up(ctx)
		if err == nil {
			s.running = running
		}
		return err
	})
}

// URL is the address of the database postbus, password included. Only a log that redacts it may have it.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster.url(s.running.port, roleName)
}

// Dir is the directory that the cluster is in: Options.Dir, absolute, or the place that was taken instead (see Note).
func (s *Server) Dir() string { return s.cluster.dir }

// State says what Start did.
func (s *Server) State() State { return s.state }

// Took says how long Start took.
func (s *Server) Took() time.Duration { return s.took }

// Note is a sentence that the person should read, or empty: where the cluster is, if not in Options.Dir.
func (s *Server) Note() string { return s.note }

// Version is the server's own, such as "15.14".
func (s *Server) Version() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running.version
}

// PID is the process id of the server as of the last Start or Ensure.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running.pid
}

// Port is the server's port on 127.0.0.1 as of the last Start or Ensure.
func (s *Server) Port() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running.port
}

// Runs tells whether the process of PID is there and is the server. It need not answer yet.
func (s *Server) Runs() bool { return worksIn(s.PID(), s.cluster.dataDir()) }

// StopUnused waits until nobody has had a share in the server of o.Dir for as long as idle, then stops it and returns. It
// takes no share itself. It returns at once if somebody else does the same already: one caretaker is enough. It exists
// for users that cannot call Close, such as test processes.
func StopUnused(ctx context.Context, o Options, idle time.Duration) error {
	c, _, err := openCluster(ctx, o.defaults())
	if err != nil {
		return err
	}
	duty, held, err := c.tryLock(caretakerFile, lockExclusive)
	if err != nil || !held {
		return err
	}
	return errors.Join(c.caretake(ctx, idle, duty), duty.Close())
}

func (c *cluster) url(port int, database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(roleName, c.password),
		Host:     "127.0.0.1:" + strconv.Itoa(port),
		Path:     database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}
