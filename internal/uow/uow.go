// Package uow is the transaction boundary. A use case changes aggregates inside Manager.Do; what it writes, the events that
// the aggregates recorded, and the jobs that it enqueued become durable together, or not at all.
//
// Do ends in one of three ways: committed, rolled back, or ErrOutcomeUnknown. After a commit the events are dispatched
// to the in-process bus, in the same call; the consumers get them from the log whatever becomes of that.
package uow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/job"
)

// Limits of a unit of work.
const (
	eventsPerCommitMax = 1000 // a *bus.LimitError beyond
	jobsPerCommitMax   = 1000 // a *bus.LimitError beyond
	attemptsMax        = 5    // of fn, when Postgres asks to try again
	retryWait          = 5 * time.Millisecond
	commitTimeout      = 10 * time.Second // for events, jobs and COMMIT, which the caller's context no longer cuts short
	rollbackTimeout    = 2 * time.Second
)

// Manager begins units of work on one database. It may be used from many goroutines.
type Manager struct {
	pool   *pgxpool.Pool
	log    *postgres.Log
	codec  *bus.Codec
	bus    *bus.Bus
	jobs   Jobs   // nil without WithJobs
	memory Memory // instead of pool, log and jobs; nil but in tests
}

// Jobs is where a unit of work's jobs go: a *job.Table in the database that the transactions run in, or the *job.Crossing that
// leads from there to a table in another.
type Jobs interface {
	// Append queues what stores the jobs on a batch that is sent with the COMMIT.
	Append(batch *pgx.Batch, jobs ...job.Job) error
	// Wake tells the workers of the queues, after the commit.
	Wake(queues ...string)
}

// NewManager returns a Manager whose transactions run on pool, in the database that log is in.
func NewManager(pool *pgxpool.Pool, log *postgres.Log, codec *bus.Codec, inProcess *bus.Bus) *Manager {
	return &Manager{pool: pool, log: log, codec: codec, bus: inProcess}
}

// WithJobs returns a Manager like this one whose units of work can enqueue jobs.
func (m *Manager) WithJobs(jobs Jobs) *Manager {
	with := *m
	with.jobs = jobs
	return &with
}

type withinKey struct{}

// Do runs fn in a transaction, publishes what the tracked aggregates recorded, commits, and then dispatches the events
// to the in-process bus.
//
// When fn returns an error, panics, or its context ends before the commit, everything is rolled back; the error is
// returned, the panic goes on. A serialization failure or a deadlock (40001, 40P01) is tried again after a short wait,
// so fn may run several times: it loads and changes its aggregates inside, and has no effects outside of w.DB. An event
// or a job over a limit is a *bus.LimitError or *job.LimitError, before the commit. Events stay in their recorders unless
// they were committed.
//
// Do returns nil when the commit stands and every in-process handler succeeded, a *DispatchError when the commit stands
// and one failed, ErrOutcomeUnknown when the connection was lost during COMMIT. Any other error means that nothing was
// stored. Once COMMIT has been sent, the end of ctx no longer breaks it off. Do inside of fn returns ErrNested.
//
// In a consumer's handler what fn writes, and the events it raises, take effect exactly once for each event: its inbox row
// is part of the transaction. When the event comes again after a commit that stood, Do returns nil without running fn, so
// that the handler goes on to what no transaction covers. A handler therefore takes nothing out of fn that it needs
// afterwards, and has one effect: Do after a Do that committed returns ErrSecondEffect.
func (m *Manager) Do(ctx context.Context, fn func(ctx context.Context, w *Work) error) error {
	switch {
	case ctx.Value(withinKey{}) != nil:
		return ErrNested
	case domain.HasEffect(ctx):
		return ErrSecondEffect
	}
	var committed commit
	for attempt := 1; ; attempt++ {
		var err error
		if committed, err = m.attempt(ctx, fn); err == nil {
			break
		}
		if errors.Is(err, errRepeated) {
			domain.MarkEffect(ctx)
			return nil
		}
		if attempt == attemptsMax || !wantsRetry(err) || !pause(ctx, attempt) {
			return err
		}
	}
	domain.MarkEffect(ctx)
	if len(committed.topics) > 0 {
		m.log.Wake(committed.topics...)
	}
	if len(committed.queues) > 0 {
		m.jobs.Wake(committed.queues...)
	}
	if err := m.bus.PublishAll(ctx, committed.events); err != nil {
		return &DispatchError{Err: err}
	}
	return nil
}

// commit is what an attempt has made durable.
type commit struct {
	events []domain.Event
	topics []string
	queues []string
}

// attempt runs fn once, in a transaction of its own.
func (m *Manager) attempt(ctx context.Context, fn func(ctx context.Context, w *Work) error) (commit, error) {
	if m.memory != nil {
		return m.attemptInMemory(ctx, fn)
	}
	pooled, err := m.pool.Acquire(ctx)
	if err != nil {
		return commit{}, fmt.Errorf("acquire connection: %w", err)
	}
	defer pooled.Release()
	conn := pooled.Conn()
	// Runs after a panic and runtime.Goexit as well. After the commit there is nothing left to roll back.
	defer rollback(ctx, conn)
	if err := m.begin(ctx, conn); err != nil {
		return commit{}, err
	}
	w := &Work{db: querier{conn: conn}, cause: domain.CauseOf(ctx)}
	defer w.db.over.Store(true)

	if err := fn(context.WithValue(ctx, withinKey{}, w), w); err != nil {
		return commit{}, err
	}
	w.db.over.Store(true)
	if err := ctx.Err(); err != nil {
		return commit{}, fmt.Errorf("before the commit: %w", context.Cause(ctx))
	}
	switch conn.PgConn().TxStatus() {
	case 'T':
	case 'E':
		return commit{}, ErrAborted
	default:
		return commit{}, ErrEnded
	}
	return m.commit(ctx, conn, w)
}

// begin opens the transaction. In a consumer's handler it notes the event in the inbox, and returns errRepeated when the
// event has had its effect.
func (m *Manager) begin(ctx context.Context, conn *pgx.Conn) error {
	cause := domain.CauseOf(ctx)
	if cause.Consumer == "" {
		if _, err := conn.Exec(ctx, "begin"); err != nil {
			return fmt.Errorf("begin transaction: %w", err)
		}
		return nil
	}
	batch := &pgx.Batch{}
	batch.Queue("begin")
	m.log.Enter(batch, cause.Consumer, cause.EventID)
	results := conn.SendBatch(ctx, batch)
	_, err := results.Exec()
	var entered pgconn.CommandTag
	if err == nil {
		entered, err = results.Exec()
	}
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	switch {
	case err != nil:
		return fmt.Errorf("enter event into inbox: %w", err)
	case entered.RowsAffected() == 0:
		return errRepeated
	}
	return nil
}

// commit sends the events, the jobs and COMMIT in one round trip. The recorders are emptied once it stands.
func (m *Manager) commit(ctx context.Context, conn *pgx.Conn, w *Work) (commit, error) {
	done := commit{events: domain.Recorded(w.sources...)}
	batch := &pgx.Batch{}
	var err error
	if done.topics, err = m.queue(ctx, batch, done.events); err != nil {
		return commit{}, err
	}
	if done.queues, err = m.queueJobs(batch, w); err != nil {
		return commit{}, err
	}
	batch.Queue("commit")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := send(ctx, conn, batch); err != nil {
		return commit{}, err
	}
	for _, s := range w.sources {
		s.Recorded().Take()
	}
	return done, nil
}

// queue encodes the events and puts one INSERT for each topic on the batch.
func (m *Manager) queue(ctx context.Context, batch *pgx.Batch, events []domain.Event) (topics []string, err error) {
	encoded, err := m.encode(ctx, events)
	if err != nil {
		return nil, err
	}
	for _, e := range encoded {
		if err := m.log.Append(batch, e.Topic, e.Messages...); err != nil {
			return nil, fmt.Errorf("append events: %w", err)
		}
		topics = append(topics, e.Topic)
	}
	return topics, nil
}

func (m *Manager) encode(ctx context.Context, events []domain.Event) ([]bus.Encoded, error) {
	if len(events) > eventsPerCommitMax {
		return nil, &bus.LimitError{Limit: "eventsPerCommitMax", Max: eventsPerCommitMax, Got: len(events)}
	}
	encoded, err := m.codec.EncodeAll(ctx, events)
	if err != nil {
		return nil, fmt.Errorf("encode events: %w", err)
	}
	return encoded, nil
}

// queueJobs puts what stores the jobs on the batch, and returns the queues that they go to.
func (m *Manager) queueJobs(batch *pgx.Batch, w *Work) (queues []string, err error) {
	switch err := w.checkJobs(); {
	case err != nil:
		return nil, err
	case len(w.jobs) == 0:
		return nil, nil
	case m.jobs == nil:
		return nil, ErrNoJobs
	}
	if err := m.jobs.Append(batch, w.jobs...); err != nil {
		return nil, fmt.Errorf("enqueue jobs: %w", err)
	}
	for _, j := range w.jobs {
		queues = append(queues, j.Queue())
	}
	slices.Sort(queues)
	return slices.Compact(queues), nil
}

// send carries out the batch, whose last statement is COMMIT, and tells the three outcomes apart.
func send(ctx context.Context, conn *pgx.Conn, batch *pgx.Batch) error {
	if conn.IsClosed() {
		return fmt.Errorf("commit: %w", pgconn.ErrConnClosed)
	}
	results := conn.SendBatch(ctx, batch)
	var tag pgconn.CommandTag
	var err error
	answered := 0 // statements; COMMIT is the last
	for ; answered < batch.Len(); answered++ {
		if tag, err = results.Exec(); err != nil {
			break
		}
	}
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	switch {
	case err == nil && tag.String() == "COMMIT":
		return nil
	case err == nil: // Postgres answers the COMMIT of an aborted transaction with ROLLBACK
		return ErrAborted
	case surelyNotCommitted(err, answered == batch.Len()-1):
		return fmt.Errorf("commit: %w", err)
	default:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}

// surelyNotCommitted is true for an error that Postgres reported for a statement before COMMIT, or for COMMIT itself if
// the session goes on after it, and for one that came before COMMIT was sent. A FATAL error of COMMIT, such as a shutdown
// while it waits for a standby, may follow a commit that stands. So may a closed connection, which pgx calls safe to retry:
// it was open, and in some modes that is how pgx tells of one that was lost since.
func surelyNotCommitted(err error, ofCommit bool) bool {
	// On a connection that does not know the statements yet pgx has them parsed first, in a round trip of its own. Until
	// that is answered it sends none to be carried out.
	var preparing pgx.ErrPreprocessingBatch
	if errors.As(err, &preparing) {
		return true
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return !ofCommit || pg.SeverityUnlocalized == "ERROR"
	}
	return pgconn.SafeToRetry(err) && !errors.Is(err, pgconn.ErrConnClosed)
}

// wantsRetry is true for what Postgres asks to try again: serialization_failure and deadlock_detected.
func wantsRetry(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01") && !errors.Is(err, ErrOutcomeUnknown)
}

// pause waits before the next attempt and reports false when ctx has ended.
func pause(ctx context.Context, attempt int) bool {
	wait := retryWait << attempt
	timer := time.NewTimer(wait/2 + rand.N(wait)) //nolint:gosec // jitter needs no secrecy
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// rollback ends the transaction if it is still open. A connection that cannot do even that is closed, and the pool
// drops it; Postgres rolls back when the connection is gone.
func rollback(ctx context.Context, conn *pgx.Conn) {
	if conn.IsClosed() || conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	if _, err := conn.Exec(ctx, "rollback"); err != nil {
		_ = conn.Close(ctx) // nothing is left to be done about it
	}
}
