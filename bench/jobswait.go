package main

import (
	"context"
	"errors"
	"time"

	"github.com/riverqueue/river"

	"postbus/internal/job"
)

const (
	behindCount    = 100_000
	scheduledCount = 1_000_000
	farAhead       = 30 * 24 * time.Hour
	// holdOpen is how long jobs-held has a transaction open, unless a flag says otherwise.
	holdOpen = time.Minute
)

func jobsHeldFigure() figure {
	const free, behind = "postbus: nobody waits", "postbus: 100,000 behind a key"
	const ours, oursOpen, rivers, riversOpen = "postbus: steady", "postbus: open transaction", "river: steady", "river: open transaction"
	const rate, end = "rate", "rate at the end"
	burn := func(name string, beside func(ctx context.Context, b *bench, db *database) error) contender {
		return contender{name, func(ctx context.Context, b *bench) (sample, error) {
			return b.burnDown(ctx, kindJobs, func(ctx context.Context, db *database) error { return beside(ctx, b, db) })
		}}
	}
	steady := func(name, kind string, open bool) contender {
		return contender{name, func(ctx context.Context, b *bench) (sample, error) {
			return b.steady(ctx, kind, b.seconds(b.hold, holdLeast), open)
		}}
	}
	return figure{
		name:  "jobs-held",
		title: "jobs beside 100,000 that wait behind a held lock key, and while a transaction stays open",
		how: "The first two are burn-downs as in `jobs`, of 100,000 jobs without a key; beside them is nothing, or a lock key with " +
			"100,000 jobs, whose head is due in 30 days. The others are the steady state of `jobs` for a minute, alone or while another " +
			"session has a transaction open in the same database, with a transaction id and a snapshot, from before the first job until " +
			"after the last (`-hold 10m` makes it ten minutes). Meanwhile no dead row or index entry can go. `time` is how long that " +
			"was; the rate at the end is that of the last fifth of the enqueueing. River has no lock keys.",
		short: "Before, the rate beside an open transaction was 0.42 of the one without, and 0.22 at the end (five rounds, at commit 1da3550): " +
			"heartbeats and the storing of outcomes went through the index of running jobs, which has an entry of every job that ran " +
			"since, and takes waited for the lease's row meanwhile. What is left has not been taken apart: three versions of each job and " +
			"their index entries stay. It does not grow: with the transaction open for ten minutes (`-hold 10m`, one round, at commit " +
			"bf2a6a3), in which 12,000,000 jobs ran, the rate was 20,277 jobs/s, and 19,790 without (1.02), in the last fifth 19,481 and " +
			"22,421 (0.869).",
		metrics: []metric{{rate, "jobs/s"}, {end, "jobs/s"}, {"time", "s"}},
		contenders: []contender{
			burn(free, func(context.Context, *bench, *database) error { return nil }), burn(behind, behindOneKey),
			steady(ours, kindJobs, false), steady(oursOpen, kindJobs, true),
			steady(rivers, kindRiver, false), steady(riversOpen, kindRiver, true),
		},
		checks: []check{
			{what: "100,000 behind a key / nobody", limit: 0.9, of: ratio(rate, behind, free)},
			{what: "open transaction / none", limit: 0.9, of: ratio(rate, oursOpen, ours)},
			{what: "open transaction / none, at the end", limit: 0.9, of: ratio(end, oursOpen, ours)},
			{what: "for comparison, River: open transaction / none", limit: 0.9, of: ratio(rate, riversOpen, rivers)},
			{what: "for comparison, River: open transaction / none, at the end", limit: 0.9, of: ratio(end, riversOpen, rivers)},
		},
	}
}

// behindOneKey makes a key whose head is far from due, and those behind it.
func behindOneKey(ctx context.Context, b *bench, db *database) error {
	key := job.LockKey("held")
	if err := loadJobs(ctx, db.pool, 1, key, job.In(farAhead)); err != nil {
		return err
	}
	return loadJobs(ctx, db.pool, b.scaled(behindCount, drainLeast), key)
}

func jobsLatencyFigure() figure {
	const other, riverOther = kindPostbus + otherProcess, kindRiver + otherProcess
	return figure{
		name:  "jobs-latency",
		title: "enqueue to start, idle, in the process that enqueues and in another",
		how: "100 jobs, one at a time, with random pauses of 50 to 150 ms. From the moment when the commit that enqueues has returned to " +
			"the handler's first line. Both with their defaults.",
		metrics: latencyMetrics,
		contenders: []contender{
			latency(kindPostbus, kindJobs, idly, true), latency(other, kindJobs, idly, false),
			latency(kindRiver, kindRiver, idly, true), latency(riverOther, kindRiver, idly, false),
		},
		checks: append(limits(5, 20),
			check{what: "p50 in another process, ms", limit: 5, atMost: true, of: value(other, "p50")},
			check{what: "p99 in another process, ms", limit: 20, atMost: true, of: value(other, "p99")}),
	}
}

func jobsScheduledFigure() figure {
	const empty, full, riverEmpty, riverFull = "postbus: none", "postbus: 1M scheduled", "river: none", "river: 1M scheduled"
	const queries, ids, blocks = "queries", "transaction ids", "blocks"
	idle := func(name, kind string, count int) contender {
		return contender{name, func(ctx context.Context, b *bench) (sample, error) {
			return b.idleWorker(ctx, kind, min(count, b.scaled(count, drainLeast)))
		}}
	}
	return figure{
		name:  "jobs-scheduled",
		title: "an idle worker with 1,000,000 scheduled jobs, and with none",
		how: "All are due in 30 days. 15 s after the worker's start, statements are counted for 10 s where pgx sends them, transaction " +
			"ids by the next of the cluster, and the blocks of 8 kB that Postgres looks at in this database, in its cache or on the disk " +
			"(`pg_stat_database`; it counts with a delay of up to some seconds, and the asking itself).",
		metrics: []metric{{queries, "/s"}, {ids, "/s"}, {blocks, "/s"}, {"cpu", "% of a core"}},
		contenders: []contender{
			idle(empty, kindJobs, 0), idle(full, kindJobs, scheduledCount),
			idle(riverEmpty, kindRiver, 0), idle(riverFull, kindRiver, scheduledCount),
		},
		checks: []check{
			{what: "queries/s of postbus, 1 M scheduled / none", limit: 1.1, atMost: true, of: ratio(queries, full, empty)},
			{what: "transaction ids/s of postbus with 1 M scheduled", limit: 0, atMost: true, of: value(full, ids)},
			{what: "blocks/s of postbus with 1 M scheduled", limit: 200, atMost: true, of: value(full, blocks)},
		},
	}
}

// idleWorker measures a worker that has nothing to do, with so many jobs that are far from due.
func (b *bench) idleWorker(ctx context.Context, kind string, count int) (s sample, err error) {
	store, err := b.prepare(ctx, kind, nil, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.close(ctx)) }()
	if kind == kindRiver {
		err = loadRiver(ctx, store.db.pool, count, &river.InsertOpts{ScheduledAt: time.Now().Add(farAhead)})
	} else {
		err = loadJobs(ctx, store.db.pool, count, job.In(farAhead))
	}
	if err != nil {
		return nil, err
	}
	if err := store.db.settle(ctx); err != nil {
		return nil, err
	}
	return b.idle(ctx, request{Kind: kind, URL: store.url, Consumers: []string{firstConsumer}})
}
