package wire

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/config"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// apartSettings are those of a program whose jobs are in a database of their own.
func apartSettings(t *testing.T, application, jobs string) config.Config {
	t.Helper()
	return config.Config{
		Program: config.App, DatabaseURL: application, JobsDatabaseURL: jobs, DataDir: pgtest.Dir(t), SecretKey: make([]byte, 32),
		PublicURL: "http://127.0.0.1", MailFrom: "postbus@example.org",
	}
}

func openApart(t *testing.T, application, jobs string) (*Backbone, error) {
	t.Helper()
	return Open(t.Context(), apartSettings(t, application, jobs), slog.New(slog.DiscardHandler), func(string) {})
}

// runUntil runs the program's consumers and jobs until the function it returns is called.
func runUntil(t *testing.T, b *Backbone) (stop func()) {
	t.Helper()
	all, err := b.Select(nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() {
		ended <- Together(ctx,
			func(ctx context.Context) error { return b.Consume(ctx, all) },
			func(ctx context.Context) error { b.Supervise(ctx); return nil },
		)
	}()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// eventually waits until the query answers true; that it fails is no answer.
func eventually(t *testing.T, pool *pgxpool.Pool, query string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for done := false; !done; <-time.After(10 * time.Millisecond) { // it has no signal
		if err := pool.QueryRow(t.Context(), query).Scan(&done); err != nil {
			done = false
		}
		if !done && time.Now().After(deadline) {
			t.Fatalf("in vain: %s", query)
		}
	}
}

// TestManyStartWithJobsApart: sixteen programs at once make one schema for jobs, in their database and not in the
// application's, and a job of the schedule runs there.
func TestManyStartWithJobsApart(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	application, jobs := pgtest.URL(t), pgtest.URL(t)
	programs := make([]*Backbone, 16)
	var starting sync.WaitGroup
	for i := range programs {
		starting.Go(func() {
			b, err := openApart(t, application+"&pool_max_conns=2", jobs+"&pool_max_conns=2")
			if err != nil {
				t.Error(err)
				return
			}
			programs[i] = b
		})
	}
	starting.Wait()
	for _, b := range programs[1:] {
		if b != nil {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	if len(programs[0].Notes) > 0 || !strings.Contains(programs[0].Jobs(), ", database ") {
		t.Errorf("it says %q and %q", programs[0].Jobs(), programs[0].Notes)
	}
	if err := programs[0].Close(); err != nil {
		t.Fatal(err)
	}
	b, err := openApart(t, application, jobs)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for pool, statement := range map[*pgxpool.Pool]string{
		b.database.pool: `insert into users (id, email, email_canonical, registered_at)
			values (gen_random_uuid(), 'a@example.org', 'a@example.org', now() - interval '31 days')`,
		b.jobsApart.pool: `insert into postbus.job_schedules (name, last_tick) values ('unverified-deletion', now() - interval '2 days')`,
	} {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	var list bytes.Buffer
	err = List(t.Context(), apartSettings(t, application, jobs), &list, slog.New(slog.DiscardHandler), func(string) {})
	if err != nil || !strings.Contains(list.String(), "\njobs:crossing ") {
		t.Errorf("the list is %v\n%s", err, &list)
	}
	defer runUntil(t, b)()
	eventually(t, b.database.pool, `select not exists (select from users)`)
	eventually(t, b.jobsApart.pool, `select count(*) = 1 from postbus.jobs`)
	eventually(t, b.database.pool, `select to_regclass('postbus.jobs') is null`)
}

// TestStartWhileTheJobsDatabaseIsAway: the program starts and says so, and the schema is made when the database is there.
func TestStartWhileTheJobsDatabaseIsAway(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t)
	server.Stop()
	b, err := openApart(t, pgtest.URL(t), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if len(b.Notes) != 1 || !strings.HasPrefix(b.Notes[0], "jobs wait: postgres at ") || !strings.HasSuffix(b.Jobs(), "does not answer yet") {
		t.Errorf("it says %q and %q", b.Notes, b.Jobs())
	}
	defer runUntil(t, b)()
	server.Start()
	eventually(t, b.jobsApart.pool, `select count(*) = 1 from postbus.job_schedules`)
}

// TestJobsDatabaseThatCannotBe is told in one sentence, at the start.
func TestJobsDatabaseThatCannotBe(t *testing.T) {
	t.Parallel()
	application := pgtest.URL(t)
	nowhere, err := url.Parse(application)
	if err != nil {
		t.Fatal(err)
	}
	nowhere.Path = "/nowhere"
	for jobs, want := range map[string]string{
		application:      "JOB_QUEUE_DATABASE_URL leads to the same database as DATABASE_URL; leave it unset to have jobs there",
		nowhere.String(): `has no database "nowhere"; create it, or name another in JOB_QUEUE_DATABASE_URL`,
	} {
		b, err := openApart(t, application, jobs)
		if err == nil {
			t.Error(errors.Join(errors.New("it was taken"), b.Close()))
			continue
		}
		if !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestJobsThatAreLeftBehindAreSpokenOf, when a program begins to look for jobs in another database.
func TestJobsThatAreLeftBehindAreSpokenOf(t *testing.T) {
	t.Parallel()
	application, jobs := pgtest.URL(t), pgtest.URL(t)
	notes := func(jobs string, between ...string) []string {
		t.Helper()
		b, err := openApart(t, application, jobs)
		if err != nil {
			t.Fatal(err)
		}
		for _, statement := range between {
			if _, err := b.database.pool.Exec(t.Context(), statement); err != nil {
				t.Error(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		return b.Notes
	}
	notes("", `insert into postbus.jobs (id, kind, queue, priority, state, run_at, metadata, args)
		values (gen_random_uuid(), 'x', 'default', 0, 'waiting', now(), '{}', '{}')`)
	if got := notes(jobs, `insert into postbus.topic_postbus_job (slot, id, metadata, payload)
		values (0, gen_random_uuid(), '{}', '{}')`); len(got) != 1 || !strings.HasPrefix(got[0], "jobs are still in the application's database") {
		t.Errorf("with a database of their own: %q", got)
	}
	if got := notes(""); len(got) != 1 || !strings.HasPrefix(got[0], "jobs are on their way to another database") {
		t.Errorf("without it: %q", got)
	}
}

// TestReadingWhileTheJobsDatabaseIsAway: --list and --dead=list print what there is of events, and then say in one sentence what is
// wrong with the database for jobs.
func TestReadingWhileTheJobsDatabaseIsAway(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const away = "postgres://127.0.0.1:1/nobody"
	application := pgtest.URL(t)
	b, err := openApart(t, application, away)
	if err != nil {
		t.Fatal(err)
	}
	b.breakAnEvent(t)
	end := b.consuming(t, []string{"verification-email"})
	eventually(t, b.database.pool, `select exists (select from postbus.parked where state = 'held')`)
	end()
	for jobs, want := range map[string]string{
		away: "jobs cannot be read: postgres at 127.0.0.1:1 does not answer (nothing listens there); start it, or set " +
			"JOB_QUEUE_DATABASE_URL to another",
		pgtest.URL(t): " has no tables for jobs yet; an app or consumer that runs with JOB_QUEUE_DATABASE_URL makes them",
	} {
		logger, say := slog.New(slog.DiscardHandler), func(string) {}
		c := apartSettings(t, application, jobs)
		c.Program, c.List = config.Consumer, true
		var out bytes.Buffer
		if err := List(t.Context(), c, &out, logger, say); err == nil || !strings.HasSuffix(err.Error(), want) ||
			!strings.Contains(out.String(), "\njobs:crossing ") {
			t.Errorf("--list says %v, want %s\n%s", err, want, &out)
		}
		c.List, c.Dead = false, "list"
		out.Reset()
		if err := ReadDead(t.Context(), c, &out, logger, say); err == nil || !strings.HasSuffix(err.Error(), want) ||
			!strings.Contains(out.String(), "\nverification-email ") {
			t.Errorf("--dead=list says %v, want %s\n%s", err, want, &out)
		}
		c.Dead, c.WhichQueue = "show", "outgoing-mail"
		if err := ReadDead(t.Context(), c, &out, logger, say); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("--dead=show says %v, want %s", err, want)
		}
	}
}
