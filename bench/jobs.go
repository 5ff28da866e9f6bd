package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/job"
	"postbus/internal/migrate"
	"postbus/internal/uow"
)

const (
	jobsCount    = 100_000
	jobsWorkers  = 100 // at a time; as many as River's documentation has
	jobsDeadline = time.Hour
	steadyPeriod = 10 * time.Second
	steadyLeast  = 500 * time.Millisecond
	steadyStock  = 20_000 // jobs that are enqueued and not done
	steadyBatch  = 5000   // as in River's bench command
)

// workTable is a peer that jobs are enqueued into, many at once.
type workTable interface {
	peer
	// enqueue commits the jobs from one number up to, not including, another.
	enqueue(ctx context.Context, from, to int) error
}

// jobs is the project's work table, by nothing but what its programs use of it. It has one queue.
type jobs struct {
	pool    *pgxpool.Pool
	table   *job.Table
	log     *postgres.Log
	codec   *bus.Codec
	manager *uow.Manager
}

func openJobs(ctx context.Context, r request, queries *atomic.Int64) (peer, error) {
	pool, err := openPool(ctx, r.URL, queries)
	if err != nil {
		return nil, err
	}
	log, err := postgres.Open(pool, postgres.Config{}, quiet)
	if err != nil {
		return nil, err
	}
	table, err := job.Open(pool, job.Config{}, warnings(os.Stderr))
	if err != nil {
		return nil, err
	}
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	manager := uow.NewManager(pool, log, codec, bus.New(quiet)).WithJobs(table)
	return &jobs{pool: pool, table: table, log: log, codec: codec, manager: manager}, nil
}

// consume works under the project's router, as its programs do.
func (p *jobs) consume(ctx context.Context, consumers []string, handle func(consumer string) handler) error {
	if len(consumers) != 1 {
		return errors.New("the work table is measured with one queue")
	}
	h := handle(consumers[0])
	workers := job.NewWorkers()
	err := job.Handle(workers, func(ctx context.Context, args orderPlaced) error { return h(ctx, args.Number) })
	if err != nil {
		return err
	}
	queue, err := p.table.Subscriber(job.DefaultQueue, jobsWorkers)
	if err != nil {
		return err
	}
	router, err := bus.NewRouter(p.codec, p.log, warnings(os.Stderr), watermill.NopLogger{})
	if err != nil {
		return err
	}
	if err := router.AddQueue(job.DefaultQueue, queue, workers.Handler(), p.table, bus.Policy{Deadline: jobsDeadline}); err != nil {
		return err
	}
	return router.Run(ctx)
}

func (p *jobs) publish(ctx context.Context, number int64) error {
	return p.manager.Do(ctx, func(_ context.Context, w *uow.Work) error {
		w.Enqueue(newOrder(number))
		return nil
	})
}

func (p *jobs) enqueue(ctx context.Context, from, to int) error {
	return enqueueJobs(ctx, p.table, from, to)
}

func (p *jobs) close() error {
	p.pool.Close()
	return nil
}

func enqueueJobs(ctx context.Context, table *job.Table, from, to int, options ...job.Option) error {
	all := make([]job.Job, 0, to-from)
	for n := from; n < to; n++ {
		j, err := job.New(newOrder(int64(n)), options...)
		if err != nil {
			return err
		}
		all = append(all, j)
	}
	_, err := table.EnqueueAll(ctx, all...)
	return err
}

// provisionJobs makes the work table, and the log beside it, which a unit of work has in any case.
func provisionJobs(ctx context.Context, pool *pgxpool.Pool) error {
	return migrate.Up(ctx, pool, postgres.Migrations(postgres.DefaultSchema), job.Migrations(job.DefaultSchema))
}

func loadJobs(ctx context.Context, pool *pgxpool.Pool, count int, options ...job.Option) error {
	table, err := job.Open(pool, job.Config{NotifyOff: true}, quiet)
	if err != nil {
		return err
	}
	for from := 0; from < count; from += steadyBatch {
		if err := enqueueJobs(ctx, table, from, min(from+steadyBatch, count), options...); err != nil {
			return fmt.Errorf("load jobs: %w", err)
		}
	}
	return nil
}

func jobsFigure() figure {
	const burnOurs, burnRiver, steadyOurs, steadyRiver = "postbus: burn-down", "river: burn-down", "postbus: steady", "river: steady"
	burn := func(name, kind string) contender {
		return contender{name, func(ctx context.Context, b *bench) (sample, error) {
			return b.burnDown(ctx, kind, nil)
		}}
	}
	steady := func(name, kind string) contender {
		return contender{name, func(ctx context.Context, b *bench) (sample, error) {
			return b.steady(ctx, kind, b.seconds(steadyPeriod, steadyLeast), false)
		}}
	}
	return figure{
		name:  "jobs",
		title: "jobs that do nothing: 100,000 of a backlog, and as many as can be enqueued and run at the same time",
		how: "postbus runs 100 jobs at a time, under the project's router with its middleware and a typed handler; River has the " +
			"settings of its own bench command (2,000 workers). In a burn-down the clock runs from the start of the workers until the " +
			"last job's completion is stored. In the steady state the same process enqueues for 10 s, 5,000 jobs in a commit, whenever " +
			"fewer than 20,000 are left, and the rest is worked off; the rate is that of all jobs from the start of the workers until " +
			"all are stored as completed. postbus enqueues by EnqueueAll, River by InsertManyFast (COPY). Afterwards the table is asked: " +
			"a job that is not completed fails the figure. Memory and CPU time are the process's, without Postgres.",
		metrics: []metric{{"rate", "jobs/s"}, {"cpu", "µs/job"}, {"memory", "MB"}},
		contenders: []contender{
			burn(burnOurs, kindJobs), burn(burnRiver, kindRiver), steady(steadyOurs, kindJobs), steady(steadyRiver, kindRiver),
		},
		checks: []check{
			{what: "postbus / River, burn-down", limit: 1, of: ratio("rate", burnOurs, burnRiver)},
			{what: "postbus / River, steady state", limit: 1, of: ratio("rate", steadyOurs, steadyRiver)},
		},
	}
}

// burnDown works off a backlog that is there beside what `beside` has made.
func (b *bench) burnDown(ctx context.Context, kind string, beside func(ctx context.Context, db *database) error) (s sample, err error) {
	store, err := b.prepare(ctx, kind, nil, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.close(ctx)) }()
	if beside != nil {
		if err := beside(ctx, store.db); err != nil {
			return nil, err
		}
	}
	count := b.scaled(jobsCount, drainLeast)
	if err := load(ctx, store.db, kind, nil, count); err != nil {
		return nil, err
	}
	if err := store.db.settle(ctx); err != nil {
		return nil, err
	}
	a, err := b.call(ctx, request{
		Role: "drain", Kind: kind, URL: store.url, Consumers: []string{firstConsumer}, Count: count, BurnDown: true,
	})
	if err == nil && a.Handled != int64(count) {
		err = fmt.Errorf("%d of %d jobs were handled", a.Handled, count)
	}
	if err != nil {
		return nil, err
	}
	return drained(a), store.db.allCompleted(ctx, kind, a.Handled)
}

// steady enqueues and works for a period, while a transaction is open or not.
func (b *bench) steady(ctx context.Context, kind string, period time.Duration, open bool) (s sample, err error) {
	store, err := b.prepare(ctx, kind, nil, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.close(ctx)) }()
	if open {
		release, err := holdTransaction(ctx, store.db.pool, measureTimeout+period)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	a, err := b.call(ctx, request{
		Role: "steady", Kind: kind, URL: store.url, Consumers: []string{firstConsumer}, Limit: period, BurnDown: true,
		Count: b.scaled(steadyStock, drainLeast),
	})
	if err != nil {
		return nil, err
	}
	s = drained(a)
	s["rate at the end"], s["time"] = a.Late, a.Elapsed.Seconds()
	return s, store.db.allCompleted(ctx, kind, a.Handled)
}

// allCompleted asks the table whether so many jobs are completed.
func (d *database) allCompleted(ctx context.Context, kind string, handled int64) error {
	query := `SELECT count(*) FROM postbus.jobs WHERE state = 'completed'`
	if kind == kindRiver {
		query = `SELECT count(*) FROM river_job WHERE state = 'completed'`
	}
	var n int64
	if err := d.pool.QueryRow(ctx, query).Scan(&n); err != nil {
		return fmt.Errorf("count jobs: %w", err)
	}
	if n != handled {
		return fmt.Errorf("%d jobs were handled, and %d are completed", handled, n)
	}
	return nil
}

// steadyRole enqueues for a time as many jobs as it works off, and works off the rest.
func steadyRole(ctx context.Context, r request, _ func(reply) error) (answer reply, err error) {
	p, err := openPeer(ctx, r, nil)
	if err != nil {
		return reply{}, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	table, ok := p.(workTable)
	if !ok {
		return reply{}, fmt.Errorf("%s has no jobs", r.Kind)
	}
	f := feeder{table: table, stock: int64(r.Count), batch: min(steadyBatch, r.Count)}
	for f.short() {
		if err := f.enqueue(ctx); err != nil {
			return reply{}, err
		}
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	began := time.Now()
	var last atomic.Int64
	late := make(chan float64, 1)
	go func() {
		late <- f.feed(working, r.Limit)
		if f.err != nil || f.done.Load() == f.enqueued.Load() {
			last.CompareAndSwap(0, int64(time.Since(began)))
			stop()
		}
	}()
	err = p.consume(working, r.Consumers, func(string) handler {
		return func(context.Context, int64) error {
			if done := f.done.Add(1); f.ended.Load() && done == f.enqueued.Load() {
				last.Store(int64(time.Since(began)))
				stop()
			}
			return nil
		}
	})
	answer = reply{Handled: f.done.Load(), Elapsed: time.Since(began), Late: <-late}
	if r.Kind == kindRiver {
		answer.Elapsed = time.Duration(last.Load()) // what follows is the stopping
	}
	if f.err == nil && answer.Handled != f.enqueued.Load() {
		f.err = fmt.Errorf("%d of %d jobs were handled", answer.Handled, f.enqueued.Load())
	}
	return answer, errors.Join(err, f.err)
}

// feeder enqueues jobs while some are worked off.
type feeder struct {
	table          workTable
	stock          int64
	batch          int
	enqueued, done atomic.Int64
	ended          atomic.Bool // no more are enqueued; enqueued is final
	err            error       // of feed; to be read when it has returned
}

// short is true while there are fewer jobs than there are to be.
func (f *feeder) short() bool { return f.enqueued.Load()-f.done.Load() < f.stock }

func (f *feeder) enqueue(ctx context.Context) error {
	from := int(f.enqueued.Load())
	if err := f.table.enqueue(ctx, from, from+f.batch); err != nil {
		return fmt.Errorf("enqueue: %w", err)
	}
	f.enqueued.Add(int64(f.batch))
	return nil
}

// feed keeps the stock up for a period, and returns how many jobs a second were done in the last fifth of it.
func (f *feeder) feed(ctx context.Context, period time.Duration) (late float64) {
	defer f.ended.Store(true)
	begin, lately := time.Now(), time.Time{}
	var before int64
	for now := begin; now.Sub(begin) < period && ctx.Err() == nil; now = time.Now() {
		if lately.IsZero() && now.Sub(begin) > period*4/5 {
			lately, before = now, f.done.Load()
		}
		if !f.short() {
			sleep(ctx, time.Millisecond)
			continue
		}
		if f.err = f.enqueue(ctx); f.err != nil {
			return 0
		}
	}
	if lately.IsZero() {
		return 0
	}
	return perSecond(f.done.Load()-before, time.Since(lately))
}
