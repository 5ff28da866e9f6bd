package job_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/job"
	"postbus/internal/migrate"
	"postbus/internal/uow"
)

// InvoiceEmail is a kind of job: its arguments, as JSON, and its durable name.
type InvoiceEmail struct {
	InvoiceID uuid.UUID `json:"invoice_id"`
}

func (InvoiceEmail) Kind() string { return "invoice-email" }

var (
	pool    *pgxpool.Pool
	logger  = slog.New(slog.NewTextHandler(os.Stderr, nil))
	table   *job.Table
	manager *uow.Manager
	codec   *bus.Codec
	log     *postgres.Log
	invoice uuid.UUID
	ctx     = context.Background()
)

func send(context.Context, uuid.UUID, uuid.UUID) error { return nil }

var errClosed = errors.New("the account is closed")

// Making the table, and a Unit of Work that can enqueue.
func ExampleOpen() {
	if err := migrate.Up(ctx, pool, job.Migrations(job.DefaultSchema)); err != nil {
		return
	}
	table, err := job.Open(pool, job.Config{Version: "v1.4.0", Keep: job.Keep{Completed: 3 * 24 * time.Hour}}, logger)
	if err != nil {
		return
	}
	manager = manager.WithJobs(table)
}

// In a use case: the job is there if the use case's changes are.
func ExampleTable_Append() {
	_ = manager.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		_, err := w.DB().Exec(ctx, `UPDATE invoices SET due = true WHERE id = $1`, invoice)
		w.Enqueue(InvoiceEmail{invoice}, job.In(time.Hour), job.LockKey(invoice.String()))
		return err
	})
}

// InvoiceOverdue is an event.
type InvoiceOverdue struct {
	InvoiceID uuid.UUID `json:"invoice_id"`
}

func (InvoiceOverdue) EventType() string  { return "invoice.overdue" }
func (e InvoiceOverdue) EventKey() string { return e.InvoiceID.String() }

// Invoice is an aggregate. It records what happens to it.
type Invoice struct{ events domain.Recorder }

func (i *Invoice) Recorded() *domain.Recorder { return &i.events }

// OverdueCheck is a kind of job that records an event.
type OverdueCheck struct {
	InvoiceID uuid.UUID `json:"invoice_id"`
}

func (OverdueCheck) Kind() string { return "overdue-check" }

// An event at a time: a job that records it then, if it is still to be.
func ExampleAt() {
	dueAt := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	_ = manager.Do(ctx, func(_ context.Context, w *uow.Work) error {
		w.Enqueue(OverdueCheck{invoice}, job.At(dueAt))
		return nil
	})
	workers := job.NewWorkers()
	_ = job.Handle(workers, func(ctx context.Context, args OverdueCheck) error {
		return manager.Do(ctx, func(_ context.Context, w *uow.Work) error { // takes effect once for the job
			i := &Invoice{} // loaded inside
			w.Track(i)
			i.events.Record(InvoiceOverdue(args))
			return nil
		})
	})
}

// Jobs in another database than the use cases'. Every process that runs jobs runs the relay.
func ExampleNewCrossing() {
	err := log.Provision(ctx, []string{job.CrossingTopic}, []postgres.Subscription{
		{Consumer: job.CrossingConsumer, Topic: job.CrossingTopic, Start: postgres.Beginning()},
	})
	if err != nil {
		return
	}
	crossing := job.NewCrossing(log, table) // the log in one database, the table in the other
	manager = manager.WithJobs(crossing)
	go func() { _ = crossing.Run(ctx) }()
}

// Outside of one, and in bulk.
func ExampleTable_EnqueueAll() {
	var jobs []job.Job
	for _, id := range []uuid.UUID{invoice} {
		j, err := job.New(InvoiceEmail{id}, job.Queue("mail"), job.Priority(-1), job.UniqueKey(id.String()))
		if err != nil {
			return
		}
		jobs = append(jobs, j)
	}
	receipts, err := table.EnqueueAll(ctx, jobs...)
	if err != nil {
		return
	}
	for _, r := range receipts {
		fmt.Println(r.ID, r.Skipped)
	}
}

// A handler: what it returns decides what becomes of its job.
func ExampleHandle() {
	workers := job.NewWorkers()
	err := job.Handle(workers, func(ctx context.Context, args InvoiceEmail) error {
		key, _ := domain.IdempotencyKey(ctx) // the job's id, the same at every attempt
		err := send(ctx, args.InvoiceID, key)
		switch {
		case errors.Is(err, errClosed):
			return job.Permanent(err) // dead at once
		case errors.Is(err, context.DeadlineExceeded):
			return job.RetryAfter(time.Minute, err)
		case time.Now().Weekday() == time.Sunday:
			return job.Snooze(24 * time.Hour) // no attempt lost
		case err != nil:
			return err // tried again as the policy says
		}
		return job.SetResult(ctx, "sent")
	}, job.Policy{Attempts: 10, WaitMax: time.Hour, Timeout: 30 * time.Second})
	if err != nil {
		return
	}
}

// Running a queue beside the consumers, under one router.
func ExampleTable_Subscriber() {
	workers := job.NewWorkers()
	router, err := bus.NewRouter(codec, log, logger, watermill.NopLogger{})
	if err != nil {
		return
	}
	queue, err := table.Subscriber("mail", 8) // eight at a time
	if err != nil {
		return
	}
	if err := router.AddQueue("mail", queue, workers.Handler(), table, bus.Policy{Deadline: time.Hour}); err != nil {
		return
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	_ = router.Run(ctx)
}

// By the clock: one job a tick, however many processes run this.
func ExampleTable_Scheduler() {
	nightly, err := job.Cron("30 2 * * *", "Europe/Amsterdam")
	if err != nil {
		return
	}
	scheduler, err := table.Scheduler(job.Schedule{
		Name: "invoice-reminder", When: nightly, Args: InvoiceEmail{invoice},
		Options: []job.Option{job.UniqueKey("nightly")}, // no second one beside one that runs
		Missed:  job.SkipMissed,
	})
	if err != nil {
		return
	}
	_ = scheduler.Run(ctx)
}

// What an operator does.
func ExampleTable_Retry() {
	groups, err := table.Dead(ctx)
	if err != nil {
		return
	}
	for _, g := range groups {
		status, err := table.Get(ctx, g.Example)
		if err != nil {
			return
		}
		fmt.Println(g.Kind, g.Count, status.Failures[len(status.Failures)-1].Error)
		_, _ = table.Retry(ctx, job.Selection{Kind: g.Kind, Fingerprint: g.Fingerprint}, "anna")
	}
	_, _ = table.Cancel(ctx, invoice, "anna")
}
