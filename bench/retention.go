package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
)

// A day is simulated in steps. What a step publishes is published and read in real time; then everything that the log has
// a date for becomes older by the step's length.
const (
	dayLength  = 24 * time.Hour
	dayStep    = 5 * time.Minute
	dayRate    = 25 // events/s
	dayLeast   = 20 // events in a step
	dayAge     = 4 * time.Hour
	dayHorizon = dayAge + dayAge/8         // when the first partition goes
	dayPace    = 200 * time.Millisecond    // a step takes at least
	dayQuick   = 20 * time.Millisecond     // the same at the smallest scale
	dayPoint   = 30 * time.Minute          // between the points of the picture
	dayCommit  = loadBatch                 // events
	stepsOfDay = int(dayLength / dayStep)  //
	stepsLevel = int(dayHorizon / dayStep) // the table has its size by then
	stepsHalf  = int(dayLength / dayStep / 2)
)

const keptName = "kept for ever"

func retentionName() string { return fmt.Sprintf("kept for %.0f h", dayAge.Hours()) }

func retentionFigure() figure {
	const level, largest = "until the horizon", "second half"
	day := func(name string, age time.Duration) contender {
		return contender{name, func(ctx context.Context, b *bench) (sample, error) { return b.day(ctx, age) }}
	}
	var points []metric
	for h := dayPoint; h <= dayLength; h += dayPoint {
		points = append(points, metric{sizeAt(h), "MB"})
	}
	return figure{
		name:  "retention",
		title: "24 h of simulated publishing with retention: the process's memory and the topic's table",
		how: "25 events/s for 24 h, 2,160,000 in all, are published in commits of 1,000 while a consumer reads along; the process " +
			"maintains the log, which keeps events for 4 h, or for ever. The time is simulated in steps of 5 minutes: 7,500 events are " +
			"published and handled, then all that the log has a date for is made 5 minutes older. A step takes 0.2 s or " +
			"more, and maintenance comes every 0.1 s, so more seldom, by the simulated clock, than " +
			"the once in a minute that is the default. Partitions are closed every half hour and go when they are 4 h old. The " +
			"table's size is that of all partitions with their indexes; its largest until 4.5 h, when the first partition goes, " +
			"and in the second half of the day. Memory is the process's peak (VmHWM), publishing included.",
		metrics:    []metric{{"memory", "MB"}, {level, "MB"}, {largest, "MB"}, {"rate", "events/s"}},
		points:     points,
		contenders: []contender{day(retentionName(), dayAge), day(keptName, 0)},
		checks: []check{
			{what: "largest table of the second half / until the horizon", limit: 1.2, atMost: true,
				of: func(at func(contender, metric string) float64) float64 {
					return at(retentionName(), largest) / at(retentionName(), level)
				}},
			{what: "peak memory, MB", limit: 100, atMost: true, of: value(retentionName(), "memory")},
		},
	}
}

// sizeAt is the metric of the table's size at a time of the day.
func sizeAt(t time.Duration) string { return fmt.Sprintf("size at %g h", t.Hours()) }

func (b *bench) day(ctx context.Context, age time.Duration) (s sample, err error) {
	store, err := b.prepare(ctx, kindPostbus, []string{firstConsumer}, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.close(ctx)) }()
	count := b.scaled(dayRate*int(dayStep.Seconds()), dayLeast)
	a, err := b.call(ctx, request{
		Role: "retention", Kind: kindPostbus, URL: store.url, Consumers: []string{firstConsumer}, Count: count, Rounds: stepsOfDay,
		Interval: b.seconds(dayPace, dayQuick), Age: age,
	})
	if err != nil {
		return nil, err
	}
	megabytes := func(sizes []int64) float64 { return float64(slices.Max(sizes)) / 1e6 }
	s = sample{
		"memory": float64(a.Peak) / 1e6, "rate": perSecond(a.Handled, a.Elapsed),
		"until the horizon": megabytes(a.Sizes[:stepsLevel]), "second half": megabytes(a.Sizes[stepsHalf:]),
	}
	for h := dayPoint; h <= dayLength; h += dayPoint {
		s[sizeAt(h)] = float64(a.Sizes[h/dayStep-1]) / 1e6
	}
	return s, nil
}

// retentionRole lives through a day of Rounds steps, with Count events in each.
func retentionRole(ctx context.Context, r request, _ func(reply) error) (answer reply, err error) {
	pool, err := openPool(ctx, r.URL, nil)
	if err != nil {
		return reply{}, err
	}
	defer pool.Close()
	codec, err := newCodec()
	if err != nil {
		return reply{}, err
	}
	log, err := postgres.Open(pool, postgres.Config{
		Retention: postgres.Retention{Age: r.Age}, MaintainEvery: r.Interval / 2,
	}, warnings(os.Stderr))
	if err != nil {
		return reply{}, err
	}
	d := &day{pool: pool, log: log, codec: codec, moved: make(chan struct{}, 1)}
	consumers, err := newConsumers(r.Consumers, func(string) handler { return d.handle })
	if err != nil {
		return reply{}, err
	}
	living, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	var consumed error
	running.Go(func() { log.Maintain(living) })
	running.Go(func() {
		consumed = route(living, codec, log, consumers)
		stop()
	})
	began := time.Now()
	for step := 0; step < r.Rounds && err == nil; step++ {
		var size int64
		size, err = d.step(living, step, r)
		answer.Sizes = append(answer.Sizes, size)
	}
	answer.Elapsed, answer.Handled = time.Since(began), d.handled.Load()
	stop()
	running.Wait()
	return answer, errors.Join(err, consumed)
}

// day is what lives through one.
type day struct {
	pool    *pgxpool.Pool
	log     *postgres.Log
	codec   *bus.Codec
	handled atomic.Int64
	moved   chan struct{} // something was handled
}

func (d *day) handle(context.Context, int64) error {
	d.handled.Add(1)
	select {
	case d.moved <- struct{}{}:
	default:
	}
	return nil
}

// step publishes, waits until it is handled, lets time go by, and returns the size of the table.
func (d *day) step(ctx context.Context, number int, r request) (size int64, err error) {
	next := time.Now().Add(r.Interval)
	end := (number + 1) * r.Count
	for from := number * r.Count; from < end; from += dayCommit {
		if err := appendOrders(ctx, d.pool, d.log, d.codec, topicName, from, min(from+dayCommit, end)); err != nil {
			return 0, fmt.Errorf("publish: %w", err)
		}
		d.log.Wake(topicName)
	}
	for d.handled.Load() < int64(end) {
		if err := wait(ctx, d.moved, latencyLimit); err != nil {
			return 0, fmt.Errorf("%d of %d events were handled: %w", d.handled.Load(), end, err)
		}
	}
	for _, column := range []string{`partitions SET closed_at = closed_at`, `topics SET created_at = created_at`} {
		_, err := d.pool.Exec(ctx, `UPDATE postbus.`+column+` - $1::bigint * interval '1 microsecond'`, dayStep.Microseconds())
		if err != nil {
			return 0, fmt.Errorf("let time go by: %w", err)
		}
	}
	sleep(ctx, time.Until(next))
	err = d.pool.QueryRow(ctx, `SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
		WHERE relnamespace = 'postbus'::regnamespace AND relkind = 'r' AND relname LIKE $1`, `topic\_`+topicName+`$%`).Scan(&size)
	if err != nil {
		return 0, fmt.Errorf("read size: %w", err)
	}
	return size, nil
}
