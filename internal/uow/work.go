package uow

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/job"
)

// Querier runs statements in the transaction of a Unit of Work. It cannot begin or end one.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Work is one attempt at a unit of work. It belongs to the goroutine that fn was called on, and to fn: once fn has
// returned, its database handle answers ErrClosed.
type Work struct {
	db      querier
	sources []domain.Source
	cause   domain.Cause
	jobs    []job.Job
	jobErr  error // the first
}

// DB returns the transaction.
func (w *Work) DB() Querier { return &w.db }

// Track makes the events of the aggregates part of the transaction: those recorded before the call and those after. They
// are published in the order in which they were recorded, across all tracked aggregates, after everything that fn
// writes. Tracking one twice does no harm.
func (w *Work) Track(aggregates ...domain.Source) { w.sources = append(w.sources, aggregates...) }

// Enqueue makes a job part of the transaction: it is stored with the commit, after the events, or not at all. The cause
// that Do's context carries becomes the correlation and causation of the job's message. A job that cannot be, one over a
// limit, and any job where the Manager was made without WithJobs, make Do return an error before the commit. A job whose
// unique key is taken, or whose id is known, is skipped without a word; with a *job.Crossing that is decided when it arrives.
func (w *Work) Enqueue(args job.Args, options ...job.Option) {
	var causes []job.Option
	if w.cause.Correlation != "" {
		causes = append(causes, job.Metadata(job.MetadataCorrelation, w.cause.Correlation))
	}
	if w.cause.EventID != uuid.Nil {
		causes = append(causes, job.Metadata(job.MetadataCausation, w.cause.EventID.String()))
	}
	j, err := job.New(args, append(causes, options...)...)
	if err != nil && w.jobErr == nil {
		w.jobErr = err
	}
	w.jobs = append(w.jobs, j)
}

// checkJobs refuses jobs before the commit.
func (w *Work) checkJobs() error {
	switch {
	case w.jobErr != nil:
		return fmt.Errorf("enqueue job: %w", w.jobErr)
	case len(w.jobs) > jobsPerCommitMax:
		return &bus.LimitError{Limit: "jobsPerCommitMax", Max: jobsPerCommitMax, Got: len(w.jobs)}
	}
	return nil
}

// querier hides the connection's Begin, and everything once the work is over: the connection is another's by then.
type querier struct {
	conn *pgx.Conn // nil in memory
	over atomic.Bool
}

func (q *querier) refusal() error {
	switch {
	case q.over.Load():
		return ErrClosed
	case q.conn == nil:
		return ErrNoDatabase
	}
	return nil
}

// Exec implements Querier.
func (q *querier) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := q.refusal(); err != nil {
		return pgconn.CommandTag{}, err
	}
	return q.conn.Exec(ctx, sql, args...)
}

// Query implements Querier.
func (q *querier) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := q.refusal(); err != nil {
		return nil, err
	}
	return q.conn.Query(ctx, sql, args...)
}

// QueryRow implements Querier.
func (q *querier) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := q.refusal(); err != nil {
		return failedRow{err}
	}
	return q.conn.QueryRow(ctx, sql, args...)
}

type failedRow struct{ err error }

// Scan implements pgx.Row.
func (r failedRow) Scan(...any) error { return r.err }
