package bustest

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/job"
	"postbus/internal/migrate"
	"postbus/internal/pgtest"
	"postbus/internal/uow"
)

//go:embed clock.sql
var clockSQL string

const (
	// pollEvery is how often the log and the work table look for what is due, and a Run for whether anything is left.
	pollEvery = 10 * time.Millisecond
	// operator notes in the database that a test has had dead ones tried again.
	operator = "bustest"
)

// onPostgres is the real log and work table, in a database with a clock of its own.
type onPostgres struct {
	harness   *Harness
	pool      *pgxpool.Pool
	log       *postgres.Log
	table     *job.Table
	scheduler *job.Scheduler
	work      *uow.Manager
}

func newOnPostgres(t testing.TB, h *Harness, tables []migrate.Set) (*onPostgres, error) {
	t.Helper()
	sets := append([]migrate.Set{postgres.Migrations(postgres.DefaultSchema), job.Migrations(job.DefaultSchema)}, tables...)
	url := pgtest.URL(t, sets...)
	if err := installClock(t.Context(), url); err != nil {
		return nil, fmt.Errorf("install the clock: %w", err)
	}
	p := &onPostgres{harness: h, pool: pgtest.Open(t, url)}
	var err error
	// One process, which tells itself of what is new.
	if p.log, err = postgres.Open(p.pool, postgres.Config{NotifyOff: true, Poll: pollEvery}, h.logger); err != nil {
		return nil, err
	}
	if p.table, err = job.Open(p.pool, job.Config{NotifyOff: true, Poll: pollEvery}, h.logger); err != nil {
		return nil, err
	}
	p.work = uow.NewManager(p.pool, p.log, h.codec, h.inProcess).WithJobs(p.table)
	return p, p.log.Provision(t.Context(), h.catalogue.Topics(), nil)
}

// installClock makes the clock, for all connections that come later.
func installClock(ctx context.Context, url string) (err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	_, err = conn.PgConn().Exec(ctx, clockSQL).ReadAll() // several statements
	return err
}

func (p *onPostgres) manager() *uow.Manager { return p.work }

func (p *onPostgres) serve(ctx context.Context, app App) (err error) {
	subscriptions := make([]postgres.Subscription, len(app.Consumers))
	for i, c := range app.Consumers {
		subscriptions[i] = postgres.Subscription{Consumer: c.Name(), Topic: c.Topic()}
	}
	if err := p.log.Provision(ctx, p.harness.catalogue.Topics(), subscriptions); err != nil {
		return err
	}
	if p.scheduler, err = p.table.Scheduler(app.Schedules...); err != nil {
		return err
	}
	return p.tick(ctx)
}

// tick makes the jobs of the schedules' ticks that have come.
func (p *onPostgres) tick(ctx context.Context) error {
	if len(p.harness.app.Schedules) == 0 {
		return nil
	}
	return p.scheduler.Tick(ctx)
}

func (p *onPostgres) now(ctx context.Context) (now time.Time, err error) {
	err = p.pool.QueryRow(ctx, `SELECT at FROM bustest.clock`).Scan(&now)
	return now, err
}

func (p *onPostgres) advance(ctx context.Context, d time.Duration) error {
	if _, err := p.pool.Exec(ctx, `UPDATE bustest.clock SET at = at + $1`, d); err != nil {
		return err
	}
	return p.tick(ctx)
}

func (p *onPostgres) messages(ctx context.Context, topic string) ([]*message.Message, error) {
	table := pgx.Identifier{postgres.DefaultSchema, "topic_" + topic}.Sanitize()
	rows, err := p.pool.Query(ctx, `SELECT id, metadata, payload FROM `+table+` ORDER BY position`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (*message.Message, error) {
		var id uuid.UUID
		var metadata string
		var payload []byte
		if err := r.Scan(&id, &metadata, &payload); err != nil {
			return nil, err
		}
		m := message.NewMessage(id.String(), payload)
		return m, json.Unmarshal([]byte(metadata), &m.Metadata)
	})
}

func (p *onPostgres) jobs(ctx context.Context) ([]job.Status, error) {
	rows, err := p.pool.Query(ctx, `SELECT id FROM postbus.jobs ORDER BY sequence`)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, err
	}
	all := make([]job.Status, len(ids))
	for i, id := range ids {
		if all[i], err = p.table.Get(ctx, id); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (p *onPostgres) dead(ctx context.Context, consumer string) ([]Dead, error) {
	letters, err := p.log.DeadLetters(ctx, postgres.Dead{Consumer: consumer})
	if err != nil {
		return nil, err
	}
	all := make([]Dead, len(letters))
	for i, l := range letters {
		var failures []struct{ Class, Error string }
		if err := json.Unmarshal(l.Failures, &failures); err != nil {
			return nil, fmt.Errorf("read failures: %w", err)
		}
		all[i] = Dead{Name: consumer, Type: l.Type, Key: l.Key, ID: l.Event, Attempts: l.Attempts, Payload: l.Payload}
		if n := len(failures); n > 0 {
			all[i].Class, all[i].Error = failures[n-1].Class, failures[n-1].Error
		}
	}
	return all, nil
}

func (p *onPostgres) retryDead(ctx context.Context, name string) error {
	if !p.harness.isConsumer(name) {
		_, err := p.table.Retry(ctx, job.Selection{Kind: name}, operator)
		return err
	}
	_, err := p.log.Resolve(ctx, postgres.Dead{Consumer: name}, postgres.Retry, postgres.Note{By: operator}, nil, false)
	return err
}

// patient is the log for a router whose consumers do not slow down when everything fails.
type patient struct{ *postgres.Log }

// Refuse implements bus.Refuser.
func (p patient) Refuse(m *message.Message, reason error) {
	var attempt *bus.AttemptError
	if errors.As(reason, &attempt) {
		reason = ownError{attempt}
	}
	p.Log.Refuse(m, reason)
}

// ownError is a failure of this event, whatever it is of.
type ownError struct{ *bus.AttemptError }

// Everybody takes the place of the attempt's.
func (ownError) Everybody() bool { return false }

// run has the router work until nothing is left.
func (p *onPostgres) run(ctx context.Context, h *Harness) (err error) {
	if l, err := p.left(ctx); err != nil || len(l.served) == 0 {
		return errors.Join(err, l.refusal())
	}
	if err := p.voidLeases(ctx); err != nil {
		return err
	}
	router, err := h.router(patient{p.log}, func(name string) (message.Subscriber, error) {
		return p.table.Subscriber(name, 1)
	}, p.table)
	if err != nil {
		return err
	}
	running := start(ctx, router)
	defer func() { err = errors.Join(err, running.end()) }()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-running.ended:
			return running.early()
		}
		l, rests, err := p.atRest(ctx)
		if err != nil || rests {
			return errors.Join(err, l.refusal())
		}
		if err := h.watch.limit(); err != nil {
			return fmt.Errorf("%w; left are %s", err, l)
		}
	}
}

// voidLeases has the consumers' shares free. By a clock that stands, a lease never runs out that the last Run has left behind: one
// that was asked for in the moment of its stop may be granted after it. So first of all nothing may be under way.
func (p *onPostgres) voidLeases(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for busy := true; busy; {
		err := p.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
			AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state = 'active')`).Scan(&busy)
		if err != nil {
			return err
		}
		if !busy {
			break
		}
		if err := p.harness.watch.limit(); err != nil {
			return fmt.Errorf("%w: a statement is under way in the database", err)
		}
		<-tick.C
	}
	batch := &pgx.Batch{}
	batch.Queue(`UPDATE postbus.consumer_shares SET owner = NULL, lease_until = NULL WHERE owner IS NOT NULL`)
	batch.Queue(`DELETE FROM postbus.consumer_members`)
	return p.pool.SendBatch(ctx, batch).Close()
}

// atRest tells whether nothing is left. It looks at several tables, one after another; what is published comes from a handler,
// so if none has run meanwhile they belong together.
func (p *onPostgres) atRest(ctx context.Context) (l *left, rests bool, err error) {
	before, still := p.harness.watch.still()
	if l, err = p.left(ctx); err != nil || len(l.served) > 0 || !still {
		return l, false, err
	}
	after, still := p.harness.watch.still()
	return l, still && before == after, nil
}

// left tells what is due.
func (p *onPostgres) left(ctx context.Context) (*left, error) {
	l := &left{}
	for _, c := range p.harness.app.Consumers {
		status, _, err := p.log.Status(ctx, postgres.Subscription{Consumer: c.Name(), Topic: c.Topic()})
		if err != nil {
			return l, err
		}
		if status.Waiting > 0 {
			l.add(true, "%d events of %s", status.Waiting, c.Name())
		}
	}
	rows, err := p.pool.Query(ctx, `SELECT consumer, '', count(*)::int FROM postbus.parked AS p
			WHERE state = 'retry' AND run_at <= bustest.now() AND NOT EXISTS (SELECT FROM postbus.parked AS before
				WHERE before.consumer = p.consumer AND before.key_hash = p.key_hash AND before.position < p.position
				AND (before.state = 'held' OR before.run_at > bustest.now()))
			GROUP BY consumer
		UNION ALL SELECT queue, kind, count(*)::int FROM postbus.jobs
			WHERE state = 'running' OR (state = 'waiting' AND run_at <= bustest.now()) GROUP BY queue, kind
		ORDER BY 2, 1`)
	if err != nil {
		return l, err
	}
	var name, kind string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&name, &kind, &n}, func() error {
		if kind == "" {
			l.add(true, "%d parked events of %s", n, name)
		} else {
			p.harness.addJobs(l, name, kind, n)
		}
		return nil
	})
	return l, err
}
