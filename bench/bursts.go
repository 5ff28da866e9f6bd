package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	burstSmall = 10_000
	burstLarge = 1_000_000
)

func backlogFigure() figure {
	burst := func(name string, count, rounds int) contender {
		return contender{name, func(ctx context.Context, b *bench) (s sample, err error) {
			p, err := b.prepare(ctx, kindPostbus, []string{firstConsumer}, 0)
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, p.close(ctx)) }()
			a, err := b.call(ctx, request{
				Role: "bursts", Kind: kindPostbus, URL: p.url, Consumers: []string{firstConsumer}, Count: count,
				Rounds: max(b.scaled(rounds, 1), 1),
			})
			return sample{"rate": perSecond(a.Handled, a.Flowing)}, err
		}}
	}
	large := contender{"1M unread", func(ctx context.Context, b *bench) (sample, error) {
		return burst("", b.scaled(burstLarge, burstSmall), 1).measure(ctx, b)
	}}
	return figure{
		name:  "backlog",
		title: "rate at 1,000,000 unread events over the rate at 10,000",
		how: "The rate is that from the first event handled to the last, after the backlog was written and Postgres has settled. The " +
			"small backlog is written and drained 20 times in a row, in one process. At smaller scales the large one is smaller, at " +
			"least 10,000.",
		metrics:    []metric{{"rate", "events/s"}},
		contenders: []contender{burst("10k unread", burstSmall, 20), large},
		checks:     []check{{what: "1 M / 10 k", limit: 0.9, of: ratio("rate", "1M unread", "10k unread")}},
	}
}

// burstsRole loads Count events before the consumer starts, drains them, and does so Rounds times.
func burstsRole(ctx context.Context, r request, _ func(reply) error) (reply, error) {
	p, err := openPeer(ctx, r, nil)
	if err != nil {
		return reply{}, err
	}
	ours, ok := p.(*postbus)
	if !ok {
		return reply{}, errors.New("only postbus is measured here")
	}
	var total reply
	for range r.Rounds {
		a, err := oneBurst(ctx, ours, r)
		if err != nil {
			return total, errors.Join(err, p.close())
		}
		total.Handled += a.Handled
		total.Flowing += a.Flowing
	}
	return total, p.close()
}

func oneBurst(ctx context.Context, p *postbus, r request) (reply, error) {
	log, err := provisionPostbus(ctx, p.pool, []string{topicName}, r.Consumers)
	if err != nil {
		return reply{}, err
	}
	if err := loadPostbus(ctx, p.pool, log, topicName, r.Count); err != nil {
		return reply{}, err
	}
	for _, statement := range []string{`VACUUM ANALYZE`, `CHECKPOINT`} {
		if _, err := p.pool.Exec(ctx, statement); err != nil {
			return reply{}, fmt.Errorf("settle database: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var handled, first, last atomic.Int64
	began := time.Now()
	err = p.consume(ctx, r.Consumers, func(string) handler {
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
	if err == nil && last.Load() == 0 {
		err = fmt.Errorf("%d of %d events were handled", handled.Load(), r.Count)
	}
	return reply{Handled: handled.Load(), Flowing: time.Duration(last.Load() - first.Load())}, err
}
