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
			return b.idle(ctx, request{Kind: kind, URL: store.url, Consumers: names})
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

// idle measures what a process costs that has nothing to do.
func (b *bench) idle(ctx context.Context, r request) (sample, error) {
	period := b.seconds(idlePeriod, idleShortest)
	r.Role, r.Limit, r.Wait = "idle", period, b.seconds(idleSettle, idleShortest)
	a, err := b.call(ctx, r)
	return sample{
		"queries": perSecond(a.Queries, period), "transaction ids": perSecond(a.Handled, period),
		"blocks": perSecond(a.Blocks, period), "cpu": 100 * a.CPU.Seconds() / period.Seconds(),
	}, err
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
	db := &database{pool: pool}
	_, _, err = db.spent(ctx) // connects, which looks at many blocks
	sleep(ctx, r.Wait)
	ids, blocks, err1 := db.spent(ctx)
	sent, cpu := queries.Load(), processTime()
	sleep(ctx, r.Limit)
	answer.Queries, answer.CPU = queries.Load()-sent, processTime()-cpu
	idsAfter, blocksAfter, err2 := db.spent(ctx)
	answer.Handled, answer.Blocks = idsAfter-ids, blocksAfter-blocks
	stop()
	return answer, errors.Join(err, err1, err2, <-ended)
}

// processTime is the CPU time that this process has used.
func processTime() time.Duration {
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
