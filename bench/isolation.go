package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	holdPeriod = 30 * time.Second
	holdLeast  = 2 * time.Second
	holdEvery  = 10 * time.Millisecond
	holdGrace  = 20 * time.Second // for B to catch up
)

func isolationFigure() figure {
	const baseline, asleep, foreign = ": baseline", ": A asleep", ": foreign transaction"
	var contenders []contender
	for _, kind := range []string{kindPostbus, kindStock} {
		contenders = append(contenders,
			held(kind+baseline, kind, false, false), held(kind+asleep, kind, true, false), held(kind+foreign, kind, false, true))
	}
	p99 := func(kind, of string) func(func(contender, metric string) float64) float64 {
		return ratio("p99", kind+of, kind+baseline)
	}
	return figure{
		name:  "isolation",
		title: "p99 of consumer B while A's handler sleeps for 30 s, and while a foreign transaction stays open for 30 s",
		how: "100 events/s for 30 s, open loop; A and B consume the same topic in one process, which commits the events as well. " +
			"A's handler sleeps for 30 s over each event. The foreign transaction is in another database of the same cluster and has a " +
			"transaction id. What has not come to B 20 s after the end counts with the time until then.",
		short: "What is replaced cannot be cleared away while a transaction is open, so each time that a consumer stores its places costs " +
			"more than the one before: 0.8 ms at first, 3 to 4 ms after 30 s. The pause between two times grows with that, to a quarter of " +
			"a second at most; without it the p99 beside the foreign transaction was 3.1 times its baseline, in a run of its own.",
		metrics:    latencyMetrics,
		contenders: contenders,
		checks: []check{
			{what: "postbus, A asleep / baseline", limit: 1.2, atMost: true, of: p99(kindPostbus, asleep)},
			{what: "postbus, foreign transaction / baseline", limit: 1.2, atMost: true, of: p99(kindPostbus, foreign)},
			{what: "for comparison, stock: A asleep / baseline", limit: 1.2, atMost: true, of: p99(kindStock, asleep)},
			{what: "for comparison, stock: foreign transaction / baseline", limit: 1.2, atMost: true, of: p99(kindStock, foreign)},
		},
	}
}

// held measures B while A sleeps, or while a transaction stays open, or neither.
func held(name, kind string, asleep, foreign bool) contender {
	return contender{name, func(ctx context.Context, b *bench) (s sample, err error) {
		period := b.seconds(holdPeriod, holdLeast)
		r := request{
			Role: "latency", Kind: kind, Consumers: consumerNames(2), Publish: true, Consume: true, Interval: holdEvery,
			Count: int(period / holdEvery), Limit: b.seconds(holdGrace, holdLeast),
		}
		if asleep {
			r.Sleeper = period
		}
		store, err := b.prepare(ctx, kind, r.Consumers, 0)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, store.close(ctx)) }()
		r.URL = store.url
		c, err := b.start(ctx, r)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, c.stop()) }()
		if _, err := c.next(); err != nil {
			return nil, err
		}
		if foreign {
			release, err := holdTransaction(ctx, b.server.admin, period)
			if err != nil {
				return nil, err
			}
			defer release()
		}
		a, err := c.last()
		if err != nil {
			return nil, err
		}
		took := untilEnd(a)
		return sample{
			"p50": milliseconds(quantile(took, 0.5)), "p99": milliseconds(quantile(took, 0.99)), "max": milliseconds(quantile(took, 1)),
		}, nil
	}}
}

// untilEnd are the times that the events took, or had taken when nobody waited for them any longer.
func untilEnd(a reply) []time.Duration {
	var took []time.Duration
	for number, from := range a.Sent {
		until, ok := a.Got[number]
		if !ok || until > a.Ended {
			until = a.Ended
		}
		took = append(took, time.Duration(until-from))
	}
	return took
}

// holdTransaction opens a transaction with an id and a snapshot, for that long at most.
func holdTransaction(ctx context.Context, pool *pgxpool.Pool, period time.Duration) (release func(), err error) {
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return nil, fmt.Errorf("begin transaction that stays open: %w", err)
	}
	if _, err := tx.Exec(ctx, `SELECT pg_current_xact_id()`); err != nil {
		return nil, errors.Join(fmt.Errorf("begin transaction that stays open: %w", err), rollback(ctx, tx))
	}
	over, cancel := context.WithTimeout(ctx, period)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-over.Done()
		_ = rollback(ctx, tx) // it has done nothing
	}()
	return func() { cancel(); <-ended }, nil
}

func rollback(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(context.WithoutCancel(ctx)) }
