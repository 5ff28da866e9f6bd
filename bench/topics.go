package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
)

const (
	topicsCount  = 400_000
	topicsLeast  = 2000
	topicsOfMany = 200
)

func topicsFigure() figure {
	variant := func(name string, topics int, spread bool) contender {
		return contender{name, func(ctx context.Context, b *bench) (sample, error) { return b.drainTopics(ctx, topics, spread) }}
	}
	return figure{
		name:  "topics",
		title: "rate with 200 topics over the rate with one",
		how: "400,000 events are drained by one process: from one topic; from one of 200 topics, each with a consumer, of which the " +
			"others are empty; and evenly from all 200. Each consumer has its 16 lanes. The rate is from the first event to the last, " +
			"so that the start of 200 consumers does not count.",
		short: "Samples of what Postgres was at showed the poll, which had a branch for each topic and was planned twice a second, and the " +
			"renewals of 200 consumers, a commit each; both are one cheap statement now, and renewals have a connection of their own. " +
			"Then 40 connections, each of which reads a topic for the first time 200 times (statistics of statements: 3.3 s of planning " +
			"and 10.6 s of running 1,000 reads, against 0.3 and 1.9 s of 800 reads of one topic): four read at once now, and no more. " +
			"The reading process itself takes the same CPU time (11.2 s instead of 10.5), but waits for Postgres, which at 200 has first " +
			"reads, 1,100 checkpoints instead of 60, and 16 leases of each of 200 consumers every quarter of a lease. The start is a part " +
			"of it all the same: each topic is through after four pages. Of 2,000,000 events (one round, two reads at once) it was " +
			"0.90 with one busy topic and 0.85 with 200. Fewer reads at once, two or one, changed nothing more.",
		metrics: []metric{{"rate", "events/s"}},
		contenders: []contender{
			variant("1 topic", 1, false), variant("1 busy of 200", topicsOfMany, false), variant("200 busy", topicsOfMany, true),
		},
		checks: []check{
			{what: "1 busy of 200 / 1 topic", limit: 0.9, of: ratio("rate", "1 busy of 200", "1 topic")},
			{what: "200 busy / 1 topic", limit: 0.9, of: ratio("rate", "200 busy", "1 topic")},
		},
	}
}

func (b *bench) drainTopics(ctx context.Context, topics int, spread bool) (s sample, err error) {
	p, err := b.prepare(ctx, kindPostbus, nil, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	r := request{Role: "topics", Kind: kindPostbus, URL: p.url, Topics: topics, Spread: spread, Count: b.scaled(topicsCount, topicsLeast)}
	a, err := b.call(ctx, r)
	if err == nil && a.Handled != int64(r.Count) {
		err = fmt.Errorf("%d of %d events were handled", a.Handled, r.Count)
	}
	return sample{"rate": perSecond(a.Handled, a.Flowing)}, err
}

// topicsRole makes the topics, loads the events and drains them.
func topicsRole(ctx context.Context, r request, _ func(reply) error) (answer reply, err error) {
	var handled, first, last atomic.Int64
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	kinds, err := topicKinds(r.Topics, func() {
		switch handled.Add(1) {
		case 1:
			first.Store(int64(time.Since(began)))
		case int64(r.Count):
			last.Store(int64(time.Since(began)))
			cancel()
		}
	})
	if err != nil {
		return reply{}, err
	}
	pool, err := openPool(ctx, r.URL, nil)
	if err != nil {
		return reply{}, err
	}
	defer pool.Close()
	var definitions []bus.Definition
	var topics, names []string
	var consumers []*bus.Consumer
	for _, k := range kinds {
		definitions = append(definitions, k.definition)
		topics, names = append(topics, k.definition.Topic), append(names, k.consumer.Name())
		consumers = append(consumers, k.consumer)
	}
	catalogue, err := bus.NewCatalogue(definitions...)
	if err != nil {
		return reply{}, err
	}
	codec := bus.NewCodec(catalogue, "/postbus/bench")
	log, err := provisionPostbus(ctx, pool, topics, names)
	if err != nil {
		return reply{}, err
	}
	if err := loadTopics(ctx, (&database{pool: pool}), log, codec, kinds, r); err != nil {
		return reply{}, err
	}
	if err := route(ctx, codec, log, consumers); err != nil {
		return reply{}, err
	}
	return reply{Handled: handled.Load(), Flowing: time.Duration(last.Load() - first.Load())}, nil
}

// loadTopics spreads the events over the topics, or puts them all into the first.
func loadTopics(
	ctx context.Context, db *database, log *postgres.Log, codec *bus.Codec, kinds []topicKind, r request,
) error {
	busy := kinds[:1]
	if r.Spread {
		busy = kinds
	}
	for i, k := range busy {
		count := r.Count / len(busy)
		if i == 0 {
			count += r.Count % len(busy)
		}
		if err := appendEvents(ctx, db.pool, log, codec, k.event, count); err != nil {
			return fmt.Errorf("load topic %s: %w", k.definition.Topic, err)
		}
	}
	return db.settle(ctx)
}
