package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	relayCount = 30_000
	relayLong  = 100_000
	relayLeast = 200
	relayLimit = 20 * time.Second // of the forwarder
	relayMost  = 2 * time.Minute  // of the relay, which has to be through by then
)

// longBacklog ends the name of a contender that has relayLong events to carry.
const longBacklog = ": 100k"

func relayFigure() figure {
	f := figure{
		name:  "relay",
		title: "30,000 committed events over another broker into a typed JSON handler that does nothing",
		how: "One process relays a backlog in the application's Postgres to the broker, and handles there what arrives. postbus is as " +
			"its programs are with a BROKER_URL: relay, arrivals stored in Postgres (the application's), consumer. The forwarder is " +
			"Watermill's component with its defaults: messages in envelopes in watermill-sql's default tables, its subscriber there, " +
			"the broker's Watermill publisher, and its subscriber in the project's router with 16 messages in flight (of watermill-sql: " +
			"one). The rate runs from the start until the last event has come to the handler, an event counted once, the relayed " +
			"rate until the broker has acknowledged the last. The forwarder is given 20 s; what it has not handled by then does not count. " +
			"Alike are: commits are synchronous in both Postgres servers; the broker, a process of its own, acknowledges each message to " +
			"whoever relays, who waits for it; NATS keeps it in files, which it synchronises every two minutes, and knows repeats by " +
			"the message id for two minutes; Redis synchronises its append-only file before it answers; RabbitMQ " +
			"confirms, with postbus what is in a stream, which it does not synchronise, with the forwarder what is in a durable " +
			"queue. Not alike: postbus keeps the " +
			"order of a key, stores an event twice in Postgres and moves its place every 50 ms at most; the forwarder stores it once " +
			"there, has its offset in the transaction that it holds open for 100 messages, and but for Postgres keeps no order at " +
			"the end. Memory and CPU time are the process's, without Postgres and the broker. Kafka is left out: what runs here, " +
			"franz-go's kfake, keeps nothing.",
		metrics: []metric{{"rate", "events/s"}, {"relayed", "events/s"}, {"cpu", "µs/event"}, {"memory", "MB"}},
	}
	for _, w := range ways() {
		ours, theirs := over(kindPostbus, w), over(kindForwarder, w)
		f.contenders = append(f.contenders, relayed(ours, ours, relayCount), relayed(theirs, theirs, relayCount),
			relayed(ours+longBacklog, ours, relayLong))
		f.checks = append(f.checks, check{what: "postbus / forwarder, " + w.name, limit: 1, of: ratio("rate", ours, theirs)})
	}
	return f
}

func relayLatencyFigure() figure {
	const busy = ": 1000/s"
	f := figure{
		name:  "relay-latency",
		title: "commit to handler over another broker, idle and at 1,000 events/s offered",
		how: "As in latency-idle and latency-load, with the contenders of relay: one process commits, relays and handles. Idle, 100 " +
			"events come one at a time; under load, events are due every millisecond for 10 s, and a time runs from then.",
		short: "Under load the two cores have nothing to spare: commits and a consumer without any broker keep them 80 % busy at this rate, a " +
			"third of it in the kernel. The longest waits are those of the first second, in which 32 writers open their connections; without " +
			"a broker the p99 of single rounds on the same machine was 0.4 to 1.4 s. A reader that waits 2, 5 or 10 ms before it looks again " +
			"(two rounds of each, and two without) made no difference beyond that between rounds: p50 54 to 87 ms, p99 1.2 to 2.3 s.",
		metrics: latencyMetrics,
	}
	for _, w := range ways() {
		ours, theirs := over(kindPostbus, w), over(kindForwarder, w)
		f.contenders = append(f.contenders,
			latency(ours, ours, idly, true), latency(theirs, theirs, idly, true),
			latency(ours+busy, ours, loaded, true), latency(theirs+busy, theirs, loaded, true))
		f.checks = append(f.checks,
			check{what: "p50 of postbus / forwarder, " + w.name, limit: 1, atMost: true, of: ratio("p50", ours, theirs)},
			check{what: "p99 at 1,000/s, postbus / forwarder, " + w.name, limit: 1, atMost: true, of: ratio("p99", ours+busy, theirs+busy)})
	}
	return f
}

func relayed(name, kind string, count int) contender {
	return contender{name, func(ctx context.Context, b *bench) (sample, error) {
		return b.relay(ctx, kind, b.scaled(count, relayLeast))
	}}
}

// relay measures one contender with a backlog of count events.
func (b *bench) relay(ctx context.Context, kind string, count int) (s sample, err error) {
	p, err := b.prepare(ctx, kind, []string{firstConsumer}, count)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	_, who, _ := wayOf(kind)
	limit := relayLimit
	if who == kindPostbus {
		limit = relayMost
	}
	a, err := b.call(ctx, request{
		Role: "relay", Kind: kind, URL: p.url, Broker: p.broker, Consumers: []string{firstConsumer}, Count: count, Limit: limit,
	})
	if err != nil {
		return nil, err
	}
	if a.Handled == 0 || (who == kindPostbus && a.Handled != int64(count)) {
		return nil, fmt.Errorf("%d of %d events were handled", a.Handled, count)
	}
	s = drained(a)
	s["relayed"] = perSecond(a.Relayed, a.RelayedIn)
	return s, nil
}

// relayRole relays and consumes until Count events are handled or Limit is over.
func relayRole(ctx context.Context, r request, _ func(reply) error) (answer reply, err error) {
	p, err := openPeer(ctx, r, nil)
	if err != nil {
		return reply{}, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	counting, ok := p.(interface{ relayed() *tally })
	if !ok {
		return reply{}, fmt.Errorf("%s relays nothing", r.Kind)
	}
	ctx, cancel := context.WithTimeout(ctx, r.Limit)
	defer cancel()
	seen := make([]atomic.Bool, r.Count)
	var handled, last atomic.Int64
	began := time.Now()
	t := counting.relayed()
	t.began, t.over = began, func() bool { return ctx.Err() != nil }
	err = p.consume(ctx, r.Consumers, func(string) handler {
		return func(_ context.Context, number int64) error {
			if !seen[number].CompareAndSwap(false, true) { // it came twice
				return nil
			}
			last.Store(int64(time.Since(began)))
			if handled.Add(1) == int64(r.Count) {
				cancel()
			}
			return nil
		}
	})
	if t.failed.Load() > 0 {
		err = errors.Join(err, errUnacknowledged)
	}
	return reply{
		Handled: handled.Load(), Elapsed: time.Duration(last.Load()),
		Relayed: t.acknowledged.Load(), RelayedIn: time.Duration(t.last.Load()),
	}, err
}
