package main

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	waitingLanes  = 64
	waitingTime   = 5 * time.Millisecond
	waitingPeriod = 5 * time.Second
	waitingLeast  = 500 * time.Millisecond
	waitingWarm   = 3 * time.Second // to start processes and to share the work
)

func waitingFigure() figure {
	processes := func(kind string, n int) contender {
		return contender{kind + " x" + strconv.Itoa(n), func(ctx context.Context, b *bench) (sample, error) {
			return b.waiting(ctx, kind, n)
		}}
	}
	return figure{
		name:  "waiting",
		title: "handlers that wait 5 ms, 64 lanes, in 1, 2 and 4 processes",
		how: "The processes share a consumer (with River: a queue, 64 workers each, fetched as often as in its own bench command) and " +
			"a backlog that none of them exhausts. 3 s after their start the handlers that end are counted for 5 s. 64 lanes of " +
			"5 ms are 12,800/s at most.",
		short: "Four processes and Postgres keep the two cores busy to 94 to 100 percent, one to 28 and two to 62 (samples of each second, " +
			"at commit bf2a6a3). An event then takes 75 µs of CPU time instead of 44, of which Postgres has 25 instead of 8; half of that " +
			"are page faults of sessions that touch Postgres's shared memory for the first time, 4 kB at a time, and those of four " +
			"processes touch four times as much of it. With huge pages for Postgres (`vm.nr_hugepages`, which it takes by itself where " +
			"there are some) four processes had 35,182 events/s, 3.25 times the rate of one (two rounds); with a garbage collection that " +
			"comes a fourth as often (GOGC=400) 29,807, 2.65 times (two rounds, no huge pages).",
		metrics: []metric{{"rate", "events/s"}},
		contenders: []contender{
			processes(kindPostbus, 1), processes(kindPostbus, 2), processes(kindPostbus, 4),
			processes(kindRiver, 1), processes(kindRiver, 4),
		},
		checks: []check{
			{what: "events/s of one process", limit: 10_000, of: value("postbus x1", "rate")},
			{what: "2 processes / 1", limit: 1.8, of: ratio("rate", "postbus x2", "postbus x1")},
			{what: "4 processes / 1", limit: 3.2, of: ratio("rate", "postbus x4", "postbus x1")},
		},
	}
}

func (b *bench) waiting(ctx context.Context, kind string, processes int) (s sample, err error) {
	period := b.seconds(waitingPeriod, waitingLeast)
	// What they could handle at most, while they start as well.
	perSecond := float64(waitingLanes) / waitingTime.Seconds()
	count := int(float64(processes) * perSecond * (period + waitingWarm).Seconds())
	store, err := b.prepare(ctx, kind, []string{firstConsumer}, count)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.close(ctx)) }()
	from := time.Now().Add(waitingWarm)
	var children []*child
	defer func() {
		for _, c := range children {
			err = errors.Join(err, c.stop())
		}
	}()
	for range processes {
		c, err := b.start(ctx, request{
			Role: "window", Kind: kind, URL: store.url, Consumers: []string{firstConsumer}, Lanes: waitingLanes, Wait: waitingTime,
			From: from.UnixNano(), Until: from.Add(period).UnixNano(),
		})
		if err != nil {
			return nil, err
		}
		children = append(children, c)
	}
	var handled int64
	for _, c := range children {
		a, err := c.last()
		if err != nil {
			return nil, err
		}
		handled += a.Handled
	}
	if handled == 0 {
		return nil, errors.New("nothing was handled")
	}
	return sample{"rate": float64(handled) / period.Seconds()}, nil
}

// windowRole consumes with handlers that wait, and counts those that end in a window of time.
func windowRole(ctx context.Context, r request, _ func(reply) error) (reply, error) {
	p, err := openPeer(ctx, r, nil)
	if err != nil {
		return reply{}, err
	}
	from, until := time.Unix(0, r.From), time.Unix(0, r.Until)
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	var handled atomic.Int64
	err = p.consume(ctx, r.Consumers, func(string) handler {
		return func(ctx context.Context, _ int64) error {
			sleep(ctx, r.Wait)
			if now := time.Now(); now.After(from) && now.Before(until) {
				handled.Add(1)
			}
			return nil
		}
	})
	return reply{Handled: handled.Load()}, errors.Join(err, p.close())
}
