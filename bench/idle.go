package main

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	idleConsumers = 50
	idlePeriod    = 10 * time.Second
	idleSettle    = 15 * time.Second // a consumer of postbus rests after 10 s
	idleShortest  = time.Second
)

func idleFigure() figure {
	const queries, ids = "queries", "transaction ids"
	idle := func(kind string) contender {
		return contender{kind, func(ctx context.Context, b *bench) (s sample, err error) {
			names := consumerNames(idleConsumers)
			store, err := b.prepare(ctx, kind, names, 1)
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, store.close(ctx)) }()
			period := b.seconds(idlePeriod, idleShortest)
			a, err := b.call(ctx, request{
				Role: "idle", Kind: kind, URL: store.url, Consumers: names, Limit: period, Wait: b.seconds(idleSettle, idleShortest),
			})
			return sample{
				queries: perSecond(a.Queries, period), ids: perSecond(a.Handled, period), "cpu": 100 * a.CPU.Seconds() / period.Seconds(),
			}, err
		}}
	}
	return figure{
		name:  "idle",
		title: "an idle process with 50 consumers",
		how: "50 consumers of one topic (with River: 50 queues of one client, one of which had a job) have handled an event and have " +
			"nothing to do. After 15 s, statements are counted for 10 s where pgx sends them; transaction ids by the next of the cluster.",
		metrics:    []metric{{queries, "/s"}, {ids, "/s"}, {"cpu", "% of a core"}},
		contenders: []contender{idle(kindPostbus), idle(kindRiver), idle(kindStock)},
		checks: []check{
			{what: "queries/s of postbus", limit: 2, atMost: true, of: value(kindPostbus, queries)},
			{what: "transaction ids/s of postbus", limit: 0, atMost: true, of: value(kindPostbus, ids)},
		},
	}
}

// idleRole has consumers that nothing comes to after the first event. The answer's Handled is how many transaction ids were taken.
func idleRole(ctx context.Context, r request, _ func(reply) error) (answer reply, err error) {
	var queries atomic.Int64
	p, err := openPeer(ctx, r, &queries)
	if err != nil {
		return reply{}, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	pool, err := openPool(ctx, r.URL, nil)
	if err != nil {
		return reply{}, err
	}
	defer pool.Close()
	consuming, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- p.consume(consuming, r.Consumers, func(string) handler {
			return func(context.Context, int64) error { return nil }
		})
	}()
	sleep(ctx, r.Wait)
	db := &database{pool: pool}
	ids, err := db.nextXID(ctx)
	sent, cpu := queries.Load(), processTime()
	sleep(ctx, r.Limit)
	answer.Queries, answer.CPU = queries.Load()-sent, processTime()-cpu
	after, err2 := db.nextXID(ctx)
	answer.Handled = after - ids
	stop()
	return answer, errors.Join(err, err2, <-ended)
}

// processTime is the CPU time that this process has used.
func processTime() time.Duration {
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
