package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// The settings of River's own bench command, and its subscription's size.
const (
	riverBenchWorkers = 2000
	riverBenchFetch   = 2 * time.Millisecond
	riverBenchPoll    = 20 * time.Millisecond
	riverBenchEvents  = 75_000
	riverWorkers      = 100 // of a queue, otherwise; as in River's documentation
	riverStop         = 10 * time.Second
)

// riverPeer is River. A consumer is a queue.
type riverPeer struct {
	pool     *pgxpool.Pool
	inserts  *river.Client[pgx.Tx]
	burnDown bool
	eager    bool // fetches as River's bench command does
	workers  int
}

func openRiver(ctx context.Context, r request, queries *atomic.Int64) (peer, error) {
	pool, err := openPool(ctx, r.URL, queries)
	if err != nil {
		return nil, err
	}
	inserts, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Logger: warnings(os.Stderr)})
	if err != nil {
		return nil, fmt.Errorf("make River client: %w", err)
	}
	p := &riverPeer{pool: pool, inserts: inserts, burnDown: r.BurnDown, eager: r.BurnDown, workers: riverWorkers}
	if r.Lanes > 0 {
		p.workers, p.eager = r.Lanes, true
	}
	return p, nil
}

// worker is a handler as River's worker.
type worker struct {
	river.WorkerDefaults[orderPlaced]
	handle func(queue string) handler
}

// Work implements river.Worker.
func (w worker) Work(ctx context.Context, job *river.Job[orderPlaced]) error {
	return w.handle(job.Queue)(ctx, job.Args.Number)
}

func (p *riverPeer) consume(ctx context.Context, consumers []string, handle func(consumer string) handler) (err error) {
	handlers := make(map[string]handler)
	config := &river.Config{Logger: warnings(os.Stderr), Queues: make(map[string]river.QueueConfig), Workers: river.NewWorkers()}
	for _, name := range consumers {
		handlers[queueOf(name)] = handle(name)
		config.Queues[queueOf(name)] = river.QueueConfig{MaxWorkers: p.workers}
	}
	atWork := func(queue string) handler { return handlers[queue] }
	if p.eager {
		config.FetchCooldown, config.FetchPollInterval = riverBenchFetch, riverBenchPoll
	}
	if p.burnDown {
		config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: riverBenchWorkers}}
		atWork = func(string) handler { return func(context.Context, int64) error { return nil } }
	}
	river.AddWorker(config.Workers, worker{handle: atWork})
	client, err := river.NewClient(riverpgxv5.New(p.pool), config)
	if err != nil {
		return fmt.Errorf("make River client: %w", err)
	}
	if p.burnDown {
		// As its bench command does: a job counts when the completer is through with it.
		completed, cancel := client.SubscribeConfig(&river.SubscribeConfig{
			ChanSize: riverBenchEvents, Kinds: []river.EventKind{river.EventKindJobCompleted},
		})
		defer cancel()
		go func() {
			for range completed {
				_ = handlers[river.QueueDefault](ctx, 0) // counts, and cannot fail
			}
		}()
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("start River client: %w", err)
	}
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), riverStop)
	defer cancel()
	if err := client.Stop(stopping); errors.Is(err, context.DeadlineExceeded) {
		return client.StopAndCancel(context.WithoutCancel(ctx))
	} else if err != nil {
		return fmt.Errorf("stop River client: %w", err)
	}
	return nil
}

// queueOf is the queue of a consumer; the first has the default one.
func queueOf(consumer string) string {
	if consumer == firstConsumer {
		return river.QueueDefault
	}
	return consumer
}

// firstConsumer is the one that all measurements have.
const firstConsumer = "reader-0"

func (p *riverPeer) publish(ctx context.Context, number int64) error {
	return p.commit(ctx, nil, number)
}

// commit is one transaction: what change does, and a job.
func (p *riverPeer) commit(ctx context.Context, change func(pgx.Tx) error, number int64) error {
	return pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		if change != nil {
			if err := change(tx); err != nil {
				return err
			}
		}
		_, err := p.inserts.InsertTx(ctx, tx, newOrder(number), nil)
		return err
	})
}

// enqueue implements workTable.
func (p *riverPeer) enqueue(ctx context.Context, from, to int) error {
	_, err := p.inserts.InsertManyFast(ctx, riverJobs(from, to, nil))
	return err
}

func (p *riverPeer) close() error {
	p.pool.Close()
	return nil
}

// provisionRiver makes River's tables.
func provisionRiver(ctx context.Context, pool *pgxpool.Pool) error {
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: quiet})
	if err != nil {
		return fmt.Errorf("make River migrator: %w", err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("make River tables: %w", err)
	}
	return nil
}

// copyRows is how many rows are loaded by one COPY.
const copyRows = 20_000

// loadRiver inserts jobs by River's fastest way.
func loadRiver(ctx context.Context, pool *pgxpool.Pool, count int, options *river.InsertOpts) error {
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Logger: quiet})
	if err != nil {
		return fmt.Errorf("make River client: %w", err)
	}
	for from := 0; from < count; from += copyRows {
		if _, err := client.InsertManyFast(ctx, riverJobs(from, min(from+copyRows, count), options)); err != nil {
			return fmt.Errorf("load River jobs: %w", err)
		}
	}
	return nil
}

func riverJobs(from, to int, options *river.InsertOpts) []river.InsertManyParams {
	jobs := make([]river.InsertManyParams, 0, to-from)
	for n := from; n < to; n++ {
		jobs = append(jobs, river.InsertManyParams{Args: newOrder(int64(n)), InsertOpts: options})
	}
	return jobs
}

// columnsOf are a message's id, payload and metadata, as text.
func columnsOf(m *message.Message) ([]any, error) {
	metadata, err := json.Marshal(m.Metadata)
	if err != nil {
		return nil, err
	}
	return []any{m.UUID, string(m.Payload), string(metadata)}, nil
}
