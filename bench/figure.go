package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// figure is one row of the table that the project is measured by: several contenders that take turns.
type figure struct {
	name       string
	title      string
	how        string // what is done, for the document
	short      string // what keeps it from what is wanted, where it falls short
	metrics    []metric
	points     []metric // are for the picture only
	contenders []contender
	checks     []check
	partial    bool // not all of its contenders are taken
}

type metric struct{ name, unit string }

// contender is measured once a round.
type contender struct {
	name    string
	measure func(ctx context.Context, b *bench) (sample, error)
}

// sample is what one measurement found, by metric.
type sample map[string]float64

// check compares contenders with each other, round by round, or one with a limit.
type check struct {
	what   string
	atMost bool // the limit is an upper one
	limit  float64
	of     func(at func(contender, metric string) float64) float64
}

// skipped is the error of a contender that this machine does not have.
type skipped struct{ why string }

func (s skipped) Error() string { return s.why }

// measureTimeout bounds one measurement, its preparation included, beside what a flag asks for.
const measureTimeout = 10 * time.Minute

// figures lists them all, in the order of the table.
func figures() []figure {
	return []figure{
		drainFigure(), backlogFigure(), topicsFigure(), commitFigure(), batchFigure(),
		idleLatencyFigure(), otherLatencyFigure(), restLatencyFigure(), loadLatencyFigure(), isolationFigure(), idleFigure(),
		waitingFigure(), retentionFigure(), jobsFigure(), jobsLatencyFigure(), jobsHeldFigure(), jobsScheduledFigure(),
		relayFigure(), relayLatencyFigure(),
	}
}

// with keeps the contenders of those names; all of them when there is none.
func (f figure) with(names []string) figure {
	if len(names) > 0 {
		f.contenders = slices.DeleteFunc(slices.Clone(f.contenders), func(c contender) bool { return !slices.Contains(names, c.name) })
		f.partial = true
	}
	return f
}

// bench is one run.
type bench struct {
	options
	out     io.Writer
	server  *server
	machine machine
	number  int // of databases made
}

func open(ctx context.Context, o options, out io.Writer) (*bench, error) {
	b := &bench{options: o, out: out}
	var err error
	if b.server, err = startServer(ctx, o.dir); err != nil {
		return nil, err
	}
	if b.machine, err = readMachine(ctx, b.server); err != nil {
		return nil, errors.Join(err, b.close())
	}
	if err := b.say("%s\n", b.machine); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bench) close() error { return b.server.close() }

func (b *bench) say(format string, args ...any) error {
	_, err := fmt.Fprintf(b.out, format, args...)
	return err
}

// scaled is n at the run's scale, but not less than least.
func (b *bench) scaled(n, least int) int { return max(int(float64(n)*b.scale), least) }

// seconds is d at the run's scale, but not less than least.
func (b *bench) seconds(d, least time.Duration) time.Duration {
	return max(time.Duration(float64(d)*b.scale), least)
}

// takeAll takes the figures one after another. One that cannot be taken does not keep the others from it.
func (b *bench) takeAll(ctx context.Context, chosen []figure) (taken []result, err error) {
	for _, f := range chosen {
		if ctx.Err() != nil {
			return taken, errors.Join(err, fmt.Errorf("figure %s: %w", f.name, context.Cause(ctx)))
		}
		r, failure := b.take(ctx, f)
		if failure != nil {
			err = errors.Join(err, fmt.Errorf("figure %s: %w", f.name, failure))
			_ = b.say("%s could not be taken: %v\n\n", f.name, failure) // reported by the return value as well
			continue
		}
		taken = append(taken, r)
		if failure := b.say("%s\n", r.table()); failure != nil {
			return taken, errors.Join(err, failure)
		}
	}
	return taken, err
}

// take lets the contenders of a figure take turns.
func (b *bench) take(ctx context.Context, f figure) (result, error) {
	if err := b.say("# %s: %s\n", f.name, f.title); err != nil {
		return result{}, err
	}
	began := time.Now()
	samples := make(map[string][]sample)
	why := make(map[string]string)
	for round := range b.rounds {
		for _, c := range f.contenders {
			if why[c.name] != "" {
				continue
			}
			s, err := b.measure(ctx, c)
			var absent skipped
			if errors.As(err, &absent) {
				why[c.name] = absent.why
				continue
			}
			if err != nil {
				return result{}, fmt.Errorf("%s, round %d: %w", c.name, round+1, err)
			}
			samples[c.name] = append(samples[c.name], s)
		}
	}
	return b.summarise(f, samples, why, time.Since(began)), nil
}

func (b *bench) measure(ctx context.Context, c contender) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout+b.hold)
	defer cancel()
	return c.measure(ctx, b)
}

func (b *bench) summarise(f figure, samples map[string][]sample, why map[string]string, took time.Duration) result {
	r := result{
		Figure: f.name, Title: f.title, How: f.how, Scale: b.scale, Rounds: b.rounds, Note: b.note, Machine: b.machine,
		Taken: time.Now().UTC().Truncate(time.Second), Seconds: math.Round(took.Seconds()),
	}
	for _, c := range f.contenders {
		if why[c.name] != "" {
			r.Rows = append(r.Rows, row{Contender: c.name, Skipped: why[c.name]})
		}
		for i, m := range slices.Concat(f.metrics, f.points) {
			var values []float64
			for _, s := range samples[c.name] {
				if v, ok := s[m.name]; ok {
					values = append(values, v)
				}
			}
			if len(values) > 0 {
				r.Rows = append(r.Rows, row{
					Contender: c.name, Metric: m.name, Unit: m.unit, Point: i >= len(f.metrics), spread: spreadOf(values),
				})
			}
		}
	}
	for _, c := range f.checks {
		if v := c.verdict(b.rounds, samples); v.Taken || !f.partial {
			r.Checks = append(r.Checks, v)
		}
	}
	return r
}

// verdict evaluates the check in each round; the median decides.
func (c check) verdict(rounds int, samples map[string][]sample) verdict {
	var values []float64
	for round := range rounds {
		v := c.of(func(contender, metric string) float64 {
			if taken := samples[contender]; round < len(taken) {
				if v, ok := taken[round][metric]; ok {
					return v
				}
			}
			return math.NaN()
		})
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			values = append(values, v)
		}
	}
	v := verdict{What: c.what, Limit: c.limit, AtMost: c.atMost, Taken: len(values) > 0}
	if v.Taken {
		v.spread = spreadOf(values)
		v.Met = v.Median >= c.limit
		if c.atMost {
			v.Met = v.Median <= c.limit
		}
	}
	return v
}

// ratio compares a metric of two contenders.
func ratio(metric, of, over string) func(func(contender, metric string) float64) float64 {
	return func(at func(contender, metric string) float64) float64 { return at(of, metric) / at(over, metric) }
}

// value is a metric of one contender.
func value(contender, metric string) func(func(contender, metric string) float64) float64 {
	return func(at func(contender, metric string) float64) float64 { return at(contender, metric) }
}
