package wire

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"postbus/internal/account"
	"postbus/internal/config"
	"postbus/internal/pgtest"
)

// TestEveryScheduleHasAHandler: what is made by the clock can be run.
func TestEveryScheduleHasAHandler(t *testing.T) {
	t.Parallel()
	w, err := workers(new(account.Service), new(account.Notifier))
	if err != nil {
		t.Fatal(err)
	}
	all, err := schedules()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if !slices.Contains(w.Kinds(), s.Args.Kind()) {
			t.Errorf("schedule %s makes jobs of kind %s, which has no handler", s.Name, s.Args.Kind())
		}
	}
}

// TestNightlyDeletionRunsOnce: three programs on one database have missed two nights. When they start, the users who never
// verified go, by one job.
func TestNightlyDeletionRunsOnce(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	var programs []*Backbone
	for range cap(ended) {
		b, err := Open(ctx, config.Config{
			Program: config.App, DatabaseURL: url, DataDir: t.TempDir(), SecretKey: make([]byte, 32), PublicURL: "http://127.0.0.1",
			MailFrom: "postbus@example.org",
		}, slog.New(slog.DiscardHandler), func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		programs = append(programs, b)
	}
	pool := programs[0].database.pool
	for _, statement := range []string{
		`insert into users (id, email, email_canonical, registered_at, verified_at) values
			(gen_random_uuid(), 'a@example.org', 'a@example.org', now() - interval '31 days', null),
			(gen_random_uuid(), 'b@example.org', 'b@example.org', now() - interval '31 days', now())`,
		`insert into postbus.job_schedules (name, last_tick) values ('unverified-deletion', now() - interval '2 days')`,
	} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range programs {
		go func() { ended <- b.Consume(ctx, Selection{consumers: b.consumers, queues: queues()}) }()
	}
	deadline := time.Now().Add(30 * time.Second)
	for users := 2; users != 1; <-time.After(10 * time.Millisecond) { // it has no signal
		if err := pool.QueryRow(ctx, `select count(*) from users`).Scan(&users); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("the user who never verified is still there")
		}
	}
	var jobs int
	if err := pool.QueryRow(ctx, `select count(*) from postbus.jobs`).Scan(&jobs); err != nil || jobs != 1 {
		t.Errorf("%d jobs, %v", jobs, err)
	}
	stop()
	for range programs {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
