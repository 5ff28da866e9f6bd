package account_test

import (
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/account"
	"postbus/internal/bus"
	"postbus/internal/bustest"
	"postbus/internal/domain/user"
	"postbus/internal/job"
)

// TestNightlyDeletionByTheClock lets a month pass: the schedule, the job, its handler and its SQL, all by one clock.
func TestNightlyDeletionByTheClock(t *testing.T) {
	t.Parallel()
	types, err := bus.NewCatalogue(bus.Define[user.Registered](1), bus.Define[user.VerificationRequested](1),
		bus.Define[user.RegistrationRepeated](1), bus.Define[user.EmailVerified](1))
	must(t, err)
	h := bustest.New(t, bustest.Postgres, types, account.Migrations())
	tokens := account.NewTokens(secret)
	accounts, err := account.New(h.Work(), h.Pool(), tokens)
	must(t, err)
	workers := job.NewWorkers()
	must(t, job.Handle(workers, accounts.DeleteUnverified))
	nightly, err := account.UnverifiedSchedule()
	must(t, err)
	h.Serve(bustest.App{Workers: workers, Schedules: []job.Schedule{nightly}})

	must(t, accounts.Register(t.Context(), address(t, "verified@example.org")))
	link := tokens.For(bustest.PublishedOne[user.Registered](h).VerificationID)
	must(t, accounts.Register(t.Context(), address(t, "late@example.org")))
	state, err := accounts.Verify(t.Context(), link)
	must(t, err)
	if state != account.LinkVerified {
		t.Errorf("the link is %v", state)
	}
	late := tokens.For(bustest.Published[user.Registered](h)[1].VerificationID)
	for _, night := range []struct {
		after time.Duration
		want  []string
	}{
		{29 * day, []string{"late@example.org", "verified@example.org"}},
		{2 * day, []string{"verified@example.org"}},
	} {
		h.Advance(night.after)
		h.Run()
		rows, err := h.Pool().Query(t.Context(), `SELECT email FROM users ORDER BY email`)
		must(t, err)
		emails, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		if !slices.Equal(emails, night.want) {
			t.Errorf("%s later there are %q, want %q", night.after, emails, night.want)
		}
	}
	if state, err := accounts.Verify(t.Context(), late); err != nil || state != account.LinkUnknown {
		t.Errorf("the link of somebody who is gone is %v, %v", state, err)
	}
	if n := len(bustest.Enqueued[account.UnverifiedDeletion](h)); n != 2 {
		t.Errorf("%d nights had a job", n)
	}
}
