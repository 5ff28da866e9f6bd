package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// backlogs are the sizes that the rate is measured at. The small ones are written and drained several times in a row, in one
// process, so that they take long enough.
var backlogs = []struct {
	name   string
	count  int
	rounds int
}{{"10k", 10_000, 20}, {"30k", 30_000, 7}, {"100k", 100_000, 2}, {"300k", 300_000, 1}, {"1M", 1_000_000, 1}}

// backlogLeast is how small a backlog is at least, at smaller scales.
const backlogLeast = 10_000

// unread names the contender that has such a backlog.
func unread(kind, size string) string {
	if kind == kindPostbus {
		return size + " unread"
	}
	return kind + ": " + size + " unread"
}

func backlogFigure() figure {
	var contenders []contender
	for _, kind := range []string{kindPostbus, kindStock} {
		for _, size := range backlogs {
			contenders = append(contenders, contender{unread(kind, size.name), func(ctx context.Context, b *bench) (sample, error) {
				r := request{Kind: kind, Count: b.scaled(size.count, min(size.count, backlogLeast)), Rounds: b.scaled(size.rounds, 1)}
				if kind == kindStock {
					r.Rounds, r.Limit = 1, b.seconds(stockPeriod, time.Second)
				}
				return b.bursts(ctx, r)
			}})
		}
	}
	ratioOf := func(kind string) func(func(contender, metric string) float64) float64 {
		return ratio("rate", unread(kind, "1M"), unread(kind, "10k"))
	}
	return figure{
		name:  "backlog",
		title: "rate at 1,000,000 unread events over the rate at 10,000",
		how: "The rate is that from the first event handled to the last, after the backlog was written and Postgres has settled. " +
			"Those of 10,000, 30,000 and 100,000 are written and drained 20, 7 and 2 times in a row, in one process. The stock " +
			"subscriber has each once, and 20 s for it; where it is not through by then, its rate is of what it handled, and would rise " +
			"towards the end. At smaller scales the backlogs are smaller, at least 10,000.",
		metrics:    []metric{{"rate", "events/s"}},
		contenders: contenders,
		checks: []check{
			{what: "1 M / 10 k", limit: 0.9, of: ratioOf(kindPostbus)},
			{what: "for comparison, stock: 1 M / 10 k", limit: 0.9, of: ratioOf(kindStock)},
		},
	}
}

func (b *bench) bursts(ctx context.Context, r request) (s sample, err error) {
	p, err := b.prepare(ctx, r.Kind, []string{firstConsumer}, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	r.Role, r.URL, r.Consumers = "bursts", p.url, []string{firstConsumer}
	a, err := b.call(ctx, r)
	if err != nil {
		return nil, err
	}
	return sample{"rate": perSecond(a.Handled, a.Flowing)}, nil
}

// burstsRole loads Count events before the consumer starts, drains them, for at most the Limit, and does so Rounds times.
func burstsRole(ctx context.Context, r request, _ func(reply) error) (total reply, err error) {
	p, err := openPeer(ctx, r, nil)
	if err != nil {
		return reply{}, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	pool, err := openPool(ctx, r.URL, nil)
	if err != nil {
		return reply{}, err
	}
	defer pool.Close()
	for range r.Rounds {
		a, err := oneBurst(ctx, p, &database{pool: pool}, r)
		if err != nil {
			return total, err
		}
		total.Handled += a.Handled
		total.Flowing += a.Flowing
	}
	return total, nil
}

func oneBurst(ctx context.Context, p peer, db *database, r request) (reply, error) {
	if err := load(ctx, db, r.Kind, r.Consumers, r.Count); err != nil {
		return reply{}, err
	}
	if err := db.settle(ctx); err != nil {
		return reply{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.Limit > 0 {
		ctx, cancel = context.WithTimeout(ctx, r.Limit)
		defer cancel()
	}
	var handled, first, last atomic.Int64
	began := time.Now()
	err := p.consume(ctx, r.Consumers, func(string) handler {
		return func(context.Context, int64) error {
			switch handled.Add(1) {
			case 1:
				first.Store(int64(time.Since(began)))
			case int64(r.Count):
				last.Store(int64(time.Since(began)))
				cancel()
			}
			return nil
		}
	})
	if last.Load() == 0 && r.Limit > 0 && handled.Load() > 1 {
		last.Store(int64(r.Limit)) // what follows is the stopping
	}
	if err == nil && last.Load() == 0 {
		err = fmt.Errorf("%d of %d events were handled", handled.Load(), r.Count)
	}
	return reply{Handled: handled.Load(), Flowing: time.Duration(last.Load() - first.Load())}, err
}
