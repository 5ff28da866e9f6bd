package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	drainCount  = 1_000_000
	drainSmall  = 30_000
	drainLeast  = 200
	stockPeriod = 20 * time.Second // what the stock subscriber gets at a backlog that it would take an hour for
)

func drainFigure() figure {
	whole := func(kind string) contender {
		return contender{kind, func(ctx context.Context, b *bench) (sample, error) {
			return b.drain(ctx, kind, b.scaled(drainCount, drainLeast), 0)
		}}
	}
	small := func(kind string) contender {
		return contender{kind + " 30k", func(ctx context.Context, b *bench) (sample, error) {
			return b.drain(ctx, kind, b.scaled(drainSmall, drainLeast), b.seconds(time.Minute, time.Second))
		}}
	}
	return figure{
		name:  "drain",
		title: "drain of 1,000,000 events into a typed JSON handler that does nothing",
		how: "All but River go through the project's router, its middleware and codec; 16 messages in flight. `memory` is that router " +
			"fed by 16 goroutines from memory, `gochannel` is Watermill's own Pub/Sub, whose events are published meanwhile. The clock " +
			"runs from the start of the router; for postbus until it has stopped and its checkpoint is durable (a second start that " +
			"delivers anything fails the figure), for River until the last job is marked as completed in the database, for the others " +
			"until the last handler has returned. River has the settings of its own bench command (2,000 workers). JetStream stores on " +
			"files with 16 subscriptions and asynchronous acknowledgements; Redis has 16 subscribers and an append-only file synced " +
			"every second: both keep less than Postgres when the power fails. The stock subscriber is given 20 s of its drain at 1 M " +
			"unread; its rate there is of what it handled by then. Memory is the process's peak (VmHWM); CPU time " +
			"is that of the process, without Postgres or the broker, and says what a noisy machine hides.",
		short: "GoChannel through the same router is the ceiling that was set; the router fed by 16 goroutines is a harder one: what " +
			"would be left if reading cost nothing. Of about 24 µs of CPU an event, 15 are the router's and the decoding's, which it " +
			"has as well. Reading rows takes 2.5, the lanes and the account of what is done 4.6, and Postgres most of what is left of " +
			"two cores. A fifth of all goes into the stacks of the goroutines that Watermill starts for each message, here and there. " +
			"A deadline with one timer instead of two, and metadata that are not copied for each delivery (after these numbers were " +
			"taken: 23.4 µs instead of 24.0), took some off.",
		metrics: []metric{{"rate", "events/s"}, {"cpu", "µs/event"}, {"memory", "MB"}},
		contenders: []contender{
			whole(kindPostbus), whole(kindMemory), whole(kindGoChannel), whole(kindRiver), whole(kindNATS), whole(kindRedis),
			small(kindPostbus), small(kindStock),
			{"stock 1M", func(ctx context.Context, b *bench) (sample, error) {
				return b.drain(ctx, kindStock, b.scaled(drainCount, drainLeast), b.seconds(stockPeriod, time.Second))
			}},
		},
		checks: []check{
			{what: "postbus / gochannel", limit: 0.8, of: ratio("rate", kindPostbus, kindGoChannel)},
			{what: "postbus / router fed from memory", limit: 0.8, of: ratio("rate", kindPostbus, kindMemory)},
			{what: "postbus / River", limit: 3.5, of: ratio("rate", kindPostbus, kindRiver)},
			{what: "postbus / JetStream", limit: 1, of: ratio("rate", kindPostbus, kindNATS)},
			{what: "postbus / Redis Streams", limit: 1, of: ratio("rate", kindPostbus, kindRedis)},
			{what: "postbus / stock at 30 k", limit: 5, of: ratio("rate", "postbus 30k", "stock 30k")},
			{what: "postbus / stock at 1 M", limit: 300, of: ratio("rate", kindPostbus, "stock 1M")},
			{what: "peak memory of postbus, MB", limit: 100, atMost: true, of: value(kindPostbus, "memory")},
		},
	}
}

// drain measures one contender with a backlog of count events, for at most the limit; 0 is all of them.
func (b *bench) drain(ctx context.Context, kind string, count int, limit time.Duration) (s sample, err error) {
	p, err := b.prepare(ctx, kind, []string{firstConsumer}, count)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	r := request{
		Role: "drain", Kind: kind, URL: p.url, Consumers: []string{firstConsumer}, Count: count, Limit: limit, BurnDown: true,
	}
	a, err := b.call(ctx, r)
	if err != nil {
		return nil, err
	}
	if a.Handled == 0 || (limit == 0 && a.Handled != int64(count)) {
		return nil, fmt.Errorf("%d of %d events were handled", a.Handled, count)
	}
	return drained(a), nil
}

// drained is the sample of a process that has handled something.
func drained(a reply) sample {
	return sample{
		"rate": perSecond(a.Handled, a.Elapsed), "memory": float64(a.Peak) / 1e6,
		"cpu": float64(a.CPU.Microseconds()) / float64(a.Handled),
	}
}

func perSecond(n int64, d time.Duration) float64 { return float64(n) / d.Seconds() }

// again is how long a second start may look for events that are not there any more.
const again = 300 * time.Millisecond

// drainRole consumes until Count events are handled or Limit is over.
func drainRole(ctx context.Context, r request, _ func(reply) error) (reply, error) {
	p, err := openPeer(ctx, r, nil)
	if err != nil {
		return reply{}, err
	}
	answer, err := drainOnce(ctx, p, r)
	if err == nil && r.Kind == kindPostbus && answer.Handled == int64(r.Count) {
		err = nothingLeft(ctx, p, r)
	}
	return answer, errors.Join(err, p.close())
}

func drainOnce(ctx context.Context, p peer, r request) (reply, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.Limit > 0 {
		ctx, cancel = context.WithTimeout(ctx, r.Limit)
		defer cancel()
	}
	var handled, last atomic.Int64
	began := time.Now()
	err := p.consume(ctx, r.Consumers, func(string) handler {
		return func(context.Context, int64) error {
			if handled.Add(1) == int64(r.Count) {
				last.Store(int64(time.Since(began)))
				cancel()
			}
			return nil
		}
	})
	elapsed := time.Since(began)
	if finished := time.Duration(last.Load()); finished > 0 && r.Kind != kindPostbus && r.Kind != kindJobs {
		elapsed = finished
	} else if r.Limit > 0 && elapsed > r.Limit && finished == 0 {
		elapsed = r.Limit // what follows is the stopping
	}
	return reply{Handled: handled.Load(), Elapsed: elapsed}, err
}

// nothingLeft starts the consumer once more: what was handled must not come again.
func nothingLeft(ctx context.Context, p peer, r request) error {
	ctx, cancel := context.WithTimeout(ctx, again)
	defer cancel()
	var repeated atomic.Int64
	err := p.consume(ctx, r.Consumers, func(string) handler {
		return func(context.Context, int64) error { repeated.Add(1); return nil }
	})
	if n := repeated.Load(); n > 0 {
		return errors.Join(err, fmt.Errorf("the checkpoint was not durable: %d events came again", n))
	}
	return err
}
