package account_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/account"
	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain/user"
	"postbus/internal/job"
	"postbus/internal/pgtest"
	"postbus/internal/uow"
)

const publicURL = "https://post.example"

var secret = []byte("a secret key of at least 32 bytes")

// fixture is the package on a database of its own, with the real Unit of Work and the real log.
type fixture struct {
	t       *testing.T
	pool    *pgxpool.Pool
	bus     *bus.Bus
	tokens  account.Tokens
	service *account.Service
	trace   *trace
}

func setUp(t *testing.T) *fixture {
	t.Helper()
	return setUpOn(t, pgtest.URL(t, account.Migrations(), postgres.Migrations(postgres.DefaultSchema), job.Migrations(job.DefaultSchema)))
}

func setUpOn(t *testing.T, url string) *fixture {
	t.Helper()
	f := &fixture{t: t, tokens: account.NewTokens(secret), trace: &trace{}}
	f.pool = openTraced(t, url, f.trace)

	catalogue, err := bus.NewCatalogue(bus.Define[user.Registered](1), bus.Define[user.VerificationRequested](1),
		bus.Define[user.RegistrationRepeated](1), bus.Define[user.EmailVerified](1))
	must(t, err)
	logger := slog.New(slog.DiscardHandler)
	log, err := postgres.Open(f.pool, postgres.Config{NotifyOff: true}, logger)
	must(t, err)
	must(t, log.Provision(t.Context(), catalogue.Topics(), nil))
	f.bus = bus.New(logger)
	jobs, err := job.Open(f.pool, job.Config{NotifyOff: true}, logger)
	must(t, err)
	work := uow.NewManager(f.pool, log, bus.NewCodec(catalogue, "/postbus/test"), f.bus).WithJobs(jobs)
	f.service, err = account.New(work, f.pool, f.tokens)
	must(t, err)
	return f
}

// openTraced opens a pool large enough for calls that wait for each other's locks.
func openTraced(t *testing.T, url string, tracer pgx.QueryTracer) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	must(t, err)
	config.MaxConns = 12
	config.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func address(t *testing.T, s string) user.Address {
	t.Helper()
	a, err := user.ParseAddress(s)
	must(t, err)
	return a
}

func (f *fixture) register(email string) {
	f.t.Helper()
	must(f.t, f.service.Register(f.t.Context(), address(f.t, email)))
}

func (f *fixture) resend(email string) {
	f.t.Helper()
	must(f.t, f.service.Resend(f.t.Context(), address(f.t, email)))
}

// registered registers a new address and returns the token of its first link.
func (f *fixture) registered(email string) account.Token {
	f.t.Helper()
	f.register(email)
	return f.lastToken()
}

// verified makes a verified user.
func (f *fixture) verified(email string) {
	f.t.Helper()
	f.verify(f.registered(email), account.LinkVerified)
}

// lastToken is the token of the latest verification, as the mail would have it.
func (f *fixture) lastToken() account.Token {
	f.t.Helper()
	var id uuid.UUID
	f.scan([]any{&id}, `SELECT id FROM email_verifications ORDER BY id DESC LIMIT 1`)
	return f.tokens.For(id)
}

func (f *fixture) verify(token account.Token, want account.LinkState) {
	f.t.Helper()
	got, err := f.service.Verify(f.t.Context(), token)
	if err != nil || got != want {
		f.t.Errorf("verify: %v, %v; want %v", got, err, want)
	}
}

func (f *fixture) inspect(token account.Token, want account.LinkState) {
	f.t.Helper()
	got, err := f.service.Inspect(f.t.Context(), token)
	if err != nil || got != want {
		f.t.Errorf("inspect: %v, %v; want %v", got, err, want)
	}
}

func (f *fixture) exec(sql string, args ...any) {
	f.t.Helper()
	_, err := f.pool.Exec(f.t.Context(), sql, args...)
	must(f.t, err)
}

func (f *fixture) scan(into []any, sql string) {
	f.t.Helper()
	must(f.t, f.pool.QueryRow(f.t.Context(), sql).Scan(into...))
}

func (f *fixture) count(sql string) (n int) {
	f.t.Helper()
	f.scan([]any{&n}, sql)
	return n
}

// letPass makes what is stored older by d: time passes for the tables, and nobody waits.
func (f *fixture) letPass(d time.Duration) {
	f.t.Helper()
	f.exec(`UPDATE email_verifications
		SET created_at = created_at - $1::interval, expires_at = expires_at - $1::interval`, d)
	f.exec(`UPDATE users SET registered_at = registered_at - $1::interval, verified_at = verified_at - $1::interval,
		repeat_told_at = repeat_told_at - $1::interval`, d)
}

// event is one row of the log.
type event struct {
	ID      uuid.UUID
	Type    string
	Key     string
	Payload []byte
}

func (f *fixture) events() []event {
	f.t.Helper()
	rows, err := f.pool.Query(f.t.Context(), `
		SELECT id, metadata::json->>'type', metadata::json->>'partitionkey', payload
		FROM postbus.topic_user ORDER BY position`)
	must(f.t, err)
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event])
	must(f.t, err)
	return events
}

// wantEvents compares the types of all events so far.
func (f *fixture) wantEvents(want ...string) {
	f.t.Helper()
	var got []string
	for _, e := range f.events() {
		got = append(got, strings.TrimPrefix(e.Type, "user."))
	}
	if !slices.Equal(got, want) {
		f.t.Errorf("the log has %q, want %q", got, want)
	}
}

// lastEvent decodes the latest event.
func lastEvent[E any](f *fixture) (e E) {
	f.t.Helper()
	events := f.events()
	if len(events) == 0 {
		f.t.Fatal("the log is empty")
	}
	decoder := json.NewDecoder(bytes.NewReader(events[len(events)-1].Payload))
	decoder.DisallowUnknownFields()
	must(f.t, decoder.Decode(&e))
	return e
}

// dump is the whole content of the database as text, one line a row.
func (f *fixture) dump() string {
	f.t.Helper()
	rows, err := f.pool.Query(f.t.Context(), `
		SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables
		WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1`)
	must(f.t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(f.t, err)
	var out strings.Builder
	for _, table := range tables {
		rows, err := f.pool.Query(f.t.Context(), fmt.Sprintf(`SELECT r::text FROM %s r ORDER BY 1`, table))
		must(f.t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(f.t, err)
		for _, line := range lines {
			fmt.Fprintf(&out, "%s %s\n", table, line)
		}
	}
	return out.String()
}

// hold runs the statements in a transaction on a connection of its own. release commits it and waits until it has.
func (f *fixture) hold(statements ...string) (release func()) {
	f.t.Helper()
	conn, err := f.pool.Acquire(f.t.Context())
	must(f.t, err)
	release = sync.OnceFunc(func() {
		defer conn.Release()
		if _, err := conn.Exec(context.Background(), `COMMIT`); err != nil {
			f.t.Errorf("commit what was held: %v", err)
		}
	})
	f.t.Cleanup(release)
	for _, sql := range append([]string{`BEGIN`}, statements...) {
		_, err := conn.Exec(f.t.Context(), sql)
		must(f.t, err)
	}
	return release
}

// untilWaiting returns when n sessions of this database wait for a lock.
func (f *fixture) untilWaiting(n int) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	waiting := `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
	for f.count(waiting) < n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.t.Fatalf("there are no %d sessions that wait for a lock", n)
		}
	}
}

// together calls fn n times at once and returns when all calls have.
func together(n int, fn func(i int)) {
	start := make(chan struct{})
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			<-start
			fn(i)
		})
	}
	close(start)
	calls.Wait()
}

// trace sees every statement that reaches Postgres.
type trace struct {
	mu         sync.Mutex
	statements []string
	codes      []string // SQLSTATEs of those that failed
}

func (tr *trace) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	tr.add(data.SQL, nil)
	return ctx
}

func (tr *trace) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	tr.add("", data.Err)
}

func (tr *trace) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (tr *trace) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	tr.add(data.SQL, data.Err)
}

func (tr *trace) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (tr *trace) add(sql string, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if sql != "" {
		// The first word and its object are enough to compare; the rest of some statements differs by design.
		tr.statements = append(tr.statements, strings.Fields(sql)[0])
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		tr.codes = append(tr.codes, pg.Code)
	}
}

// take returns what was seen since the last call.
func (tr *trace) take() (statements, codes []string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	statements, codes = tr.statements, tr.codes
	tr.statements, tr.codes = nil, nil
	return statements, codes
}
