package uow_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/pgtest"
	"postbus/internal/uow"
)

// opened and closed are the events of a domain that exists in these tests only.
type opened struct {
	ID   string `json:"id"`
	Note string `json:"note"`
}

func (opened) EventType() string  { return "door.opened" }
func (e opened) EventKey() string { return e.ID }

type closed struct {
	ID string `json:"id"`
}

func (closed) EventType() string { return "door.closed" }

type rang struct{}

func (rang) EventType() string { return "bell.rang" }

type door struct{ recorder domain.Recorder }

func (d *door) Recorded() *domain.Recorder { return &d.recorder }

// fixture is a manager on a database of the test's own, with a table "doors" for what use cases write.
type fixture struct {
	*uow.Manager
	pool *pgxpool.Pool
	bus  *bus.Bus
	logs *bytes.Buffer
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	return newFixtureOn(t, pgtest.New(t, postgres.Migrations(postgres.DefaultSchema)))
}

func newFixtureOn(t *testing.T, pool *pgxpool.Pool) fixture {
	t.Helper()
	catalogue, err := bus.NewCatalogue(bus.Define[opened](1), bus.Define[closed](1), bus.Define[rang](1))
	if err != nil {
		t.Fatal(err)
	}
	log, err := postgres.Open(pool, postgres.Config{NotifyOff: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Provision(t.Context(), catalogue.Topics(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `create table if not exists doors (id text primary key)`); err != nil {
		t.Fatal(err)
	}
	logs := &bytes.Buffer{}
	inProcess := bus.New(slog.New(slog.NewTextHandler(logs, nil)))
	manager := uow.NewManager(pool, log, bus.NewCodec(catalogue, "/test"), inProcess)
	t.Cleanup(func() {
		// The pool destroys a broken connection in its own time.
		for deadline := time.Now().Add(5 * time.Second); pool.Stat().AcquiredConns() > 0; <-time.After(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("%d connections were not given back", pool.Stat().AcquiredConns())
				return
			}
		}
	})
	return fixture{Manager: manager, pool: pool, bus: inProcess, logs: logs}
}

// insert is a use case's write.
func insert(ctx context.Context, w *uow.Work, id string) error {
	_, err := w.DB().Exec(ctx, `insert into doors values ($1)`, id)
	return err
}

// stored returns the ids of the rows and the types of the events that are durable, in log order for each topic.
func (f fixture) stored(t *testing.T) (doors, events []string) {
	t.Helper()
	return f.column(t, `select id from doors order by id`), f.column(t, `
		(select (metadata::json)->>'type' from postbus.topic_door order by position) union all
		(select (metadata::json)->>'type' from postbus.topic_bell order by position)`)
}

func (f fixture) column(t *testing.T, query string) (values []string) {
	t.Helper()
	rows, err := f.pool.Query(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		values = append(values, v)
	}
	return values
}

// proxy stands between a pool and Postgres. Once it is told to swallow, the client's bytes still arrive and the server's
// answers do not. Once it is told to hang up, it does at the server's next answer. It counts the
// client's flights: what is sent before an answer is waited for.
type proxy struct {
	listener net.Listener
	target   string
	swallow  atomic.Bool
	hangUp   atomic.Bool
	flights  atomic.Int32
	muffled  atomic.Int32 // the flight from which on it swallows

	mu    sync.Mutex
	conns []net.Conn
	pumps sync.WaitGroup
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, target: target}
	p.pumps.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
		p.pumps.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		p.pumps.Go(func() { _, _ = io.Copy(tap{server, p}, client); _ = server.Close() })
		p.pumps.Go(func() { _, _ = io.Copy(valve{client, p}, server); _ = client.Close() })
	}
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

// tap counts the client's flights.
type tap struct {
	to net.Conn
	of *proxy
}

func (t tap) Write(p []byte) (int, error) {
	if t.of.flights.Add(1) == t.of.muffled.Load() {
		t.of.swallow.Store(true)
	}
	return t.to.Write(p)
}

type valve struct {
	to net.Conn
	of *proxy
}

func (v valve) Write(p []byte) (int, error) {
	switch {
	case v.of.hangUp.Load():
		return 0, net.ErrClosed
	case v.of.swallow.Load():
		return len(p), nil
	}
	return v.to.Write(p)
}

// through returns the URL with the proxy's address in it.
func (p *proxy) through(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = p.listener.Addr().String()
	return u.String()
}

func hostOf(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
