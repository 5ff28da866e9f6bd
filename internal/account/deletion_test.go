package account_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postbus/internal/account"
	"postbus/internal/domain"
)

const day = 24 * time.Hour

func (f *fixture) deleteUnverified(ctx context.Context) {
	f.t.Helper()
	must(f.t, f.service.DeleteUnverified(ctx, account.UnverifiedDeletion{}))
}

func (f *fixture) emails() []string {
	f.t.Helper()
	rows, err := f.pool.Query(f.t.Context(), `SELECT email FROM users ORDER BY email`)
	must(f.t, err)
	emails, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(f.t, err)
	return emails
}

// TestUnverifiedUsersAreDeleted: after 30 days, with what hangs on them, and nobody else.
func TestUnverifiedUsersAreDeleted(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	f.verified("verified@example.org")
	f.register("never@example.org")
	f.register("asks-again@example.org")
	f.letPass(29 * day)
	f.register("later@example.org")
	f.deleteUnverified(t.Context())
	if got := f.emails(); len(got) != 4 {
		t.Errorf("after 29 days there are %q", got)
	}
	f.letPass(day + time.Minute)
	f.resend("asks-again@example.org") // and has a link that is good
	events := len(f.events())
	f.deleteUnverified(t.Context())
	if got := f.emails(); !slices.Equal(got, []string{"asks-again@example.org", "later@example.org", "verified@example.org"}) {
		t.Errorf("after 30 days there are %q", got)
	}
	if n := f.count(`SELECT count(*) FROM email_verifications v WHERE NOT EXISTS (SELECT FROM users u WHERE u.id = v.user_id)`); n != 0 {
		t.Errorf("%d verifications of nobody", n)
	}
	if n := len(f.events()); n != events {
		t.Errorf("the deletion has recorded %d events", n-events)
	}
	f.verify(f.lastToken(), account.LinkVerified)
	f.register("never@example.org") // who may come back
	if n := f.count(`SELECT count(*) FROM postbus.jobs`); n != 0 {
		t.Errorf("%d jobs go on with nothing", n)
	}
}

// TestDeletionLeavesWhoIsVerifying: a user whose row is locked, by a verification that has not committed, is not waited for.
func TestDeletionLeavesWhoIsVerifying(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	f.register("just-now@example.org")
	f.letPass(31 * day)
	tx, err := f.pool.Begin(t.Context())
	must(t, err)
	defer tx.Rollback(t.Context())
	_, err = tx.Exec(t.Context(), `UPDATE users SET verified_at = now()`)
	must(t, err)
	f.deleteUnverified(t.Context())
	must(t, tx.Commit(t.Context()))
	f.deleteUnverified(t.Context())
	if n := len(f.emails()); n != 1 {
		t.Errorf("%d users are left", n)
	}
}

// TestManyUnverifiedAreDeletedByJobs: a thousand at a time, and a job for the rest in the same transaction; a job that is run
// again has no second effect.
func TestManyUnverifiedAreDeletedByJobs(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	f.exec(`INSERT INTO users (id, email, email_canonical, registered_at)
		SELECT gen_random_uuid(), i || '@example.org', i || '@example.org', now() - interval '40 days' FROM generate_series(1, 2500) AS i`)
	job := domain.Cause{EventID: uuid.Must(uuid.NewV7()), Consumer: "job:default"}
	for range 2 {
		f.deleteUnverified(domain.WithCause(t.Context(), job))
		if n := f.count(`SELECT count(*) FROM users`); n != 1500 {
			t.Errorf("%d users are left", n)
		}
	}
	if n := f.count(`SELECT count(*) FROM postbus.jobs WHERE kind = 'unverified-deletion' AND state = 'waiting'`); n != 1 {
		t.Errorf("%d jobs go on", n)
	}
	f.deleteUnverified(t.Context())
	f.deleteUnverified(t.Context())
	if n := f.count(`SELECT count(*) FROM users`); n != 0 {
		t.Errorf("%d users are left", n)
	}
	if n := f.count(`SELECT count(*) FROM postbus.jobs`); n != 2 {
		t.Errorf("%d jobs, want one for each full thousand", n)
	}
}

// TestUnverifiedSchedule: 03:17 UTC, every night.
func TestUnverifiedSchedule(t *testing.T) {
	t.Parallel()
	s, err := account.UnverifiedSchedule()
	must(t, err)
	at := time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC)
	for _, want := range []string{"2026-03-29T03:17:00Z", "2026-03-30T03:17:00Z"} {
		if at = s.When.Next(at); at.Format(time.RFC3339) != want {
			t.Errorf("it runs at %s, want %s", at, want)
		}
	}
	if s.Name != "unverified-deletion" || s.Args.Kind() != "unverified-deletion" {
		t.Errorf("the schedule is %s, of %s", s.Name, s.Args.Kind())
	}
}
