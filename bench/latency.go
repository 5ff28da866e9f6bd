package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	idleEvents   = 100
	idleLeast    = 10
	restEvents   = 20
	restLeast    = 2
	restAfter    = 500 * time.Millisecond
	restPause    = 2 * time.Second
	loadRate     = 1000
	loadPeriod   = 10 * time.Second
	loadLeast    = 500 * time.Millisecond
	latencyLimit = 30 * time.Second // for the last events to arrive
)

// otherProcess ends the name of a contender that consumes in another process than the one that commits.
const otherProcess = ": other process"

var latencyMetrics = []metric{{"p50", "ms"}, {"p99", "ms"}, {"max", "ms"}}

// latencyShares are the percentiles of the picture.
var latencyShares = []struct {
	name  string
	share float64
}{{"p50", 0.5}, {"p75", 0.75}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}, {"p99.5", 0.995}, {"p99.9", 0.999}}

func idleLatencyFigure() figure {
	const long = "postbus: long history"
	return figure{
		name:  "latency-idle",
		title: "commit to handler, idle, in the process that commits",
		how: "100 events, one at a time, with random pauses of 50 to 150 ms. From the moment when the commit has returned to the " +
			"handler's first line. postbus, the stock subscriber and River with their defaults. A long " +
			"history is 1,000,000 events in the topic that the consumer has passed.",
		metrics: latencyMetrics,
		contenders: []contender{
			latency(kindPostbus, kindPostbus, idly, true),
			latency(long, kindPostbus, afterLong, true),
			latency(kindRiver, kindRiver, idly, true),
			latency(kindStock, kindStock, idly, true),
		},
		checks: append(limits(2, 10),
			check{what: "p50 with a long history, ms", limit: 2, atMost: true, of: value(long, "p50")},
			check{what: "p99 with a long history, ms", limit: 10, atMost: true, of: value(long, "p99")}),
	}
}

func otherLatencyFigure() figure {
	return figure{
		name:    "latency-other",
		title:   "commit to handler, idle, in another process",
		how:     "As before; one process commits and another one consumes.",
		metrics: latencyMetrics,
		contenders: []contender{
			latency(kindPostbus, kindPostbus, idly, false),
			latency(kindRiver, kindRiver, idly, false),
			latency(kindStock, kindStock, idly, false),
		},
		checks: limits(5, 20),
	}
}

// restLatencyFigure is about the first event after a time without. It is in no check of the others: an application that is
// idle has most of its events like this.
func restLatencyFigure() figure {
	const other = kindPostbus + otherProcess
	return figure{
		name:  "latency-rest",
		title: "commit to handler, the first event after a rest",
		how: "20 events, with random pauses of 2 to 6 s, for a consumer that gives up its leases after half a second without an event " +
			"(10 s is the default; what it does then is the same). From the moment when the commit has returned to the handler's " +
			"first line.",
		metrics: latencyMetrics,
		contenders: []contender{
			latency(kindPostbus, kindPostbus, rested, true), latency(other, kindPostbus, rested, false),
		},
		checks: []check{
			{what: "p50 of postbus, ms", limit: 10, atMost: true, of: value(kindPostbus, "p50")},
			{what: "p50 in another process, ms", limit: 20, atMost: true, of: value(other, "p50")},
		},
	}
}

func loadLatencyFigure() figure {
	const other, riverOther, stockOther = kindPostbus + otherProcess, kindRiver + otherProcess, kindStock + otherProcess
	var points []metric
	for _, p := range latencyShares {
		if m := (metric{p.name, "ms"}); !slices.Contains(latencyMetrics, m) {
			points = append(points, m)
		}
	}
	return figure{
		name:  "latency-load",
		title: "commit to handler at 1,000 events/s offered",
		how: "Open loop: events are due every millisecond for 10 s, whatever became of those before, and an event's time runs from when " +
			"it was due, so that it includes the commit and all waiting for it. In the process that commits, and in another one.",
		metrics: latencyMetrics,
		points:  points,
		contenders: []contender{
			latency(kindPostbus, kindPostbus, loaded, true), latency(other, kindPostbus, loaded, false),
			latency(kindRiver, kindRiver, loaded, true), latency(riverOther, kindRiver, loaded, false),
			latency(kindStock, kindStock, loaded, true), latency(stockOther, kindStock, loaded, false),
		},
		checks: []check{
			{what: "p99 of postbus, ms", limit: 25, atMost: true, of: value(kindPostbus, "p99")},
			{what: "p99 of postbus in another process, ms", limit: 25, atMost: true, of: value(other, "p99")},
		},
	}
}

func limits(p50, p99 float64) []check {
	return []check{
		{what: "p50 of postbus, ms", limit: p50, atMost: true, of: value(kindPostbus, "p50")},
		{what: "p99 of postbus, ms", limit: p99, atMost: true, of: value(kindPostbus, "p99")},
	}
}

// idly and loaded say how events are offered.
func idly(b *bench, r *request) { r.Idle, r.Count = true, b.scaled(idleEvents, idleLeast) }

// rested offers events to a consumer that rests when they come: it looks at the time every quarter of its lease of 5 s.
func rested(b *bench, r *request) {
	r.Idle, r.Count = true, b.scaled(restEvents, restLeast)
	r.Rest, r.Pause = restAfter, restPause
}

func afterLong(b *bench, r *request) {
	idly(b, r)
	r.History = b.scaled(drainCount, drainLeast)
}

func loaded(b *bench, r *request) {
	r.Interval = time.Second / loadRate
	r.Count = int(b.seconds(loadPeriod, loadLeast) / r.Interval)
}

func latency(name, kind string, offer func(*bench, *request), embedded bool) contender {
	return contender{name, func(ctx context.Context, b *bench) (sample, error) {
		r := request{Role: "latency", Kind: kind, Consumers: []string{firstConsumer}, Limit: latencyLimit}
		offer(b, &r)
		took, err := b.latencies(ctx, r, embedded)
		if err != nil {
			return nil, err
		}
		s := sample{"max": milliseconds(quantile(took, 1))}
		for _, p := range latencyShares {
			s[p.name] = milliseconds(quantile(took, p.share))
		}
		return s, nil
	}}
}

// latencies measures how long each event took to the first consumer.
func (b *bench) latencies(ctx context.Context, r request, embedded bool) (took []time.Duration, err error) {
	consumers := r.Consumers
	if r.History > 0 {
		consumers = nil // they come later
	}
	store, err := b.prepare(ctx, r.Kind, consumers, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.close(ctx)) }()
	if r.History > 0 {
		if err := follow(ctx, store.db, r); err != nil {
			return nil, err
		}
	}
	r.URL, r.Broker = store.url, store.broker
	var sent, got reply
	if embedded {
		r.Publish, r.Consume = true, true
		sent, err = b.call(ctx, r)
		got = sent
	} else {
		sent, got, err = b.twoProcesses(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	for number, from := range sent.Sent {
		until, ok := got.Got[number]
		if !ok {
			return nil, fmt.Errorf("event %d of %d did not arrive within %s", number, len(sent.Sent), r.Limit)
		}
		took = append(took, max(time.Duration(until-from), 0))
	}
	return took, nil
}

// follow loads events that were there before the consumers are.
func follow(ctx context.Context, db *database, r request) error {
	log, err := provisionPostbus(ctx, db.pool, []string{topicName}, nil)
	if err != nil {
		return err
	}
	if err := loadPostbus(ctx, db.pool, log, topicName, r.History); err != nil {
		return err
	}
	if _, err := provisionPostbus(ctx, db.pool, []string{topicName}, r.Consumers); err != nil {
		return err
	}
	return db.settle(ctx)
}

// twoProcesses lets one process publish what another one consumes.
func (b *bench) twoProcesses(ctx context.Context, r request) (sent, got reply, err error) {
	r.Consume = true
	consuming, err := b.start(ctx, r)
	if err != nil {
		return sent, got, err
	}
	defer func() { err = errors.Join(err, consuming.stop()) }()
	if err := b.warm(ctx, r); err != nil {
		return sent, got, err
	}
	if _, err := consuming.next(); err != nil {
		return sent, got, err
	}
	r.Publish, r.Consume = true, false
	if sent, err = b.call(ctx, r); err != nil {
		return sent, got, err
	}
	got, err = consuming.last()
	return sent, got, err
}

// warm publishes one event from this process.
func (b *bench) warm(ctx context.Context, r request) error {
	p, err := openPeer(ctx, r, nil)
	if err != nil {
		return err
	}
	return errors.Join(p.publish(ctx, warmUp), p.close())
}
