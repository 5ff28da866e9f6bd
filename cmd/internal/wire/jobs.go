package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/config"
	"postbus/internal/job"
	"postbus/internal/migrate"
	"postbus/internal/uow"
)

// crossing is how jobs get to a database of their own. The relay starts at the beginning: a job may have been committed before
// any process knew of it.
var crossing = postgres.Subscription{Consumer: job.CrossingConsumer, Topic: job.CrossingTopic, Start: postgres.Beginning()}

// jobsApart is a database for jobs alone.
type jobsApart struct {
	*database
	application *pgxpool.Pool
	relay       *job.Crossing
	ready       bool // it was reached, and has its schema
}

// jobsRetryMax bounds the wait before a database for jobs that is away is looked for again.
const jobsRetryMax = 5 * time.Second

// openJobs opens the work table, in the application's database or in one of its own, and returns where units of work put jobs.
// A database of its own may be away: what is enqueued waits until it is there.
func (b *Backbone) openJobs(ctx context.Context, c config.Config) (jobs uow.Jobs, err error) {
	if c.JobsDatabaseURL == "" {
		if b.jobs, err = job.Open(b.database.pool, job.Config{Version: config.Version()}, b.logger); err != nil {
			return nil, err
		}
		return b.jobs, nil
	}
	apart := &jobsApart{database: &database{setting: settingJobsDatabase}, application: b.database.pool}
	if err := apart.open(ctx, c.JobsDatabaseURL, sessionName(c)); err != nil {
		return nil, err
	}
	b.jobsApart = apart
	if away, err := apart.prepare(ctx); err != nil && !away {
		return nil, err
	} else if away {
		b.Notes = append(b.Notes, fmt.Sprintf("jobs wait: postgres at %s does not answer (%s)", apart.place(), cause(err)))
	}
	if b.jobs, err = job.Open(apart.pool, job.Config{Version: config.Version()}, b.logger); err != nil {
		return nil, err
	}
	apart.relay = job.NewCrossing(b.log, b.jobs)
	return apart.relay, nil
}

// prepare makes the schema. away tells that the database was not reached, which may mend itself; any other error is a sentence
// for a person.
func (j *jobsApart) prepare(ctx context.Context) (away bool, err error) {
	if err := j.pool.Ping(ctx); err != nil {
		if reason := j.refusal(err); reason != "" {
			return false, fmt.Errorf("postgres at %s %s", j.place(), reason)
		}
		return true, err
	}
	if err := j.checkVersion(ctx); err != nil {
		return false, err
	}
	same, err := sameDatabase(ctx, j.application, j.pool)
	if err != nil {
		return false, fmt.Errorf("compare databases: %w", err)
	}
	if same {
		return false, errors.New(settingJobsDatabase + " leads to the same database as " + settingDatabase +
			"; leave it unset to have jobs there")
	}
	if err := migrate.Up(ctx, j.pool, job.Migrations(job.DefaultSchema)); err != nil {
		return false, j.explainSetUp(job.DefaultSchema, err)
	}
	j.ready = true
	return false, nil
}

// sameDatabase tells whether two pools lead to one database: what one session has locked another cannot lock there.
func sameDatabase(ctx context.Context, a, b *pgxpool.Pool) (same bool, err error) {
	lock := rand.Int64() //nolint:gosec // it is no secret
	err = pgx.BeginFunc(ctx, a, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lock); err != nil {
			return err
		}
		var free bool
		err := b.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, lock).Scan(&free)
		same = !free
		return err
	})
	return same && err == nil, err
}

// keepJobsApart looks for a database for jobs that was away at the start until it is there, and returns when ctx ends.
func (b *Backbone) keepJobsApart(ctx context.Context) error {
	wait := startRetry
	for b.jobsApart != nil && !b.jobsApart.ready {
		if wait = min(2*wait, jobsRetryMax); !pause(ctx, wait) {
			return nil
		}
		switch away, err := b.jobsApart.prepare(ctx); {
		case err == nil:
			b.logger.Info("the database for jobs is there")
		case !away && ctx.Err() == nil:
			b.logger.Error("the database for jobs cannot be used, will be tried again", slog.Any("error", err))
		}
	}
	<-ctx.Done() // a part of a program that returns ends the program
	return nil
}

// pause reports false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// reachJobs tells in a sentence that a database for jobs does not answer.
func (b *Backbone) reachJobs(ctx context.Context) error {
	if b.jobsApart == nil {
		return nil
	}
	err := b.jobsApart.pool.Ping(ctx)
	switch place := b.jobsApart.place(); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("reach the database for jobs: %w", context.Cause(ctx))
	case b.jobsApart.refusal(err) != "":
		return fmt.Errorf("jobs cannot be read: postgres at %s %s", place, b.jobsApart.refusal(err))
	default:
		return fmt.Errorf("jobs cannot be read: postgres at %s does not answer (%s); start it, or set %s to another", place, cause(err),
			settingJobsDatabase)
	}
}

// explainJobs puts into a sentence that there is no work table yet. It returns other errors as they are.
func (b *Backbone) explainJobs(err error) error {
	if b.jobsApart == nil || !isMissing(err) {
		return explainRead(err)
	}
	return fmt.Errorf("postgres at %s has no tables for jobs yet; an app or consumer that runs with %s makes them", b.jobsApart.place(),
		settingJobsDatabase)
}

// cross carries jobs to a database of their own until ctx ends.
func (b *Backbone) cross(ctx context.Context) error {
	if b.jobsApart == nil {
		<-ctx.Done() // a part of a program that returns ends the program
		return nil
	}
	return b.jobsApart.relay.Run(ctx)
}

// withCrossing adds what jobs need to get to a database of their own.
func (b *Backbone) withCrossing(topics []string, readers []postgres.Subscription) ([]string, []postgres.Subscription) {
	if b.jobsApart == nil {
		return topics, readers
	}
	return append(topics, crossing.Topic), append(readers, crossing)
}

// noteLeftBehind notes that jobs are where this program does not look for them, since JOB_QUEUE_DATABASE_URL was set, or unset.
func (b *Backbone) noteLeftBehind(ctx context.Context) error {
	if b.jobsApart == nil {
		status, _, err := b.log.Status(ctx, crossing)
		if status.Waiting+status.Parked > 0 {
			b.Notes = append(b.Notes, "jobs are on their way to another database; run with "+settingJobsDatabase+" until they are there")
		}
		return err
	}
	var left bool
	err := b.database.pool.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, job.DefaultSchema+".jobs").Scan(&left)
	if err == nil && left {
		err = b.database.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+job.DefaultSchema+`.jobs
			WHERE state IN ('waiting', 'behind', 'running'))`).Scan(&left)
	}
	if err != nil {
		return fmt.Errorf("look for jobs that were left behind: %w", err)
	}
	if left {
		b.Notes = append(b.Notes, "jobs are still in the application's database; run once without "+settingJobsDatabase+
			" until they have ended")
	}
	return nil
}

// Jobs says in a few words where jobs are, if they are in a database of their own.
func (b *Backbone) Jobs() string {
	switch {
	case b.jobsApart == nil:
		return ""
	case b.jobsApart.ready:
		return b.jobsApart.describe()
	default:
		return fmt.Sprintf("at %s, which does not answer yet", b.jobsApart.place())
	}
}
