package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postbus/internal/bus"
	"postbus/internal/bustest"
	"postbus/internal/domain"
	"postbus/internal/job"
	"postbus/internal/uow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Moved is an event. Scripts say what becomes of it in each consumer, a letter an attempt (scene.play).
type Moved struct {
	Box     string            `json:"box"`
	N       int               `json:"n"`
	Scripts map[string]string `json:"scripts"`
}

func (Moved) EventType() string  { return "box.moved" }
func (e Moved) EventKey() string { return e.Box }

// Noted is what a handler publishes in turn.
type Noted struct {
	Box string `json:"box"`
	N   int    `json:"n"`
}

func (Noted) EventType() string  { return "note.taken" }
func (e Noted) EventKey() string { return e.Box }

// Chore is a job that a test enqueues, Errand one that a handler does, Sweep one of a schedule.
type (
	Chore struct {
		N      int    `json:"n"`
		Script string `json:"script"`
		Lock   string `json:"lock"`
	}
	Errand struct {
		Box string `json:"box"`
		N   int    `json:"n"`
	}
	Sweep struct{}
)

func (Chore) Kind() string  { return "chore" }
func (Errand) Kind() string { return "errand" }
func (Sweep) Kind() string  { return "sweep" }

// scene is an application that writes down what happens to it.
type scene struct {
	t     *testing.T
	h     *bustest.Harness
	start time.Time

	mu       sync.Mutex
	lines    map[string][]string
	attempts map[string]int
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func catalogue(t testing.TB) *bus.Catalogue {
	t.Helper()
	c, err := bus.NewCatalogue(bus.Define[Moved](1), bus.Define[Noted](1))
	must(t, err)
	return c
}

func newScene(t *testing.T, flavour bustest.Flavour) *scene {
	t.Helper()
	s := &scene{t: t, h: bustest.New(t, flavour, catalogue(t)), lines: make(map[string][]string), attempts: make(map[string]int)}
	s.h.Advance(s.h.Now().Truncate(time.Hour).Add(time.Hour).Sub(s.h.Now())) // so that ticks come at the same times after the start
	s.start = s.h.Now()
	every, err := job.Every(10 * time.Second)
	must(t, err)
	s.h.Serve(bustest.App{Consumers: s.consumers(), Workers: s.workers(), Schedules: []job.Schedule{
		{Name: "sweep-latest", When: every, Args: Sweep{}},
		{Name: "sweep-skipped", When: hourly{}, Args: Sweep{}, Missed: job.SkipMissed},
	}})
	return s
}

// hourly is a timetable with a tick half past each hour.
type hourly struct{}

func (hourly) Next(after time.Time) time.Time {
	next := after.Truncate(time.Hour).Add(30 * time.Minute)
	if !next.After(after) {
		next = next.Add(time.Hour)
	}
	return next
}

func (s *scene) consumers() []*bus.Consumer {
	policy := bus.Policy{Attempts: 3, BackoffMin: time.Second, BackoffMax: time.Second}
	passing := policy
	passing.Attempts, passing.AfterDeath = 2, bus.PassKey
	hold, err1 := bus.NewConsumer("hold", bus.WithPolicy(policy))
	pass, err2 := bus.NewConsumer("pass", bus.WithPolicy(passing))
	tally, err3 := bus.NewConsumer("tally", bus.WithPolicy(policy))
	clerk, err4 := bus.NewConsumer("clerk")
	must(s.t, err1, err2, err3, err4)
	must(s.t,
		bus.Handle(hold, func(ctx context.Context, e Moved) error { return s.moved(ctx, "hold", e, nil) }),
		bus.Handle(pass, func(ctx context.Context, e Moved) error { return s.moved(ctx, "pass", e, nil) }),
		bus.Handle(tally, func(ctx context.Context, e Moved) error {
			return s.moved(ctx, "tally", e, func(w *uow.Work) {
				publish(w, Noted{e.Box, e.N})
				w.Enqueue(Errand{e.Box, e.N}, job.LockKey("box-"+e.Box))
			})
		}),
		bus.Handle(clerk, func(_ context.Context, e Noted) error {
			s.note("clerk/"+e.Box, "%d", e.N)
			return nil
		}),
	)
	return []*bus.Consumer{hold, pass, tally, clerk}
}

func (s *scene) workers() *job.Workers {
	policy := job.Policy{Attempts: 3, WaitMin: time.Second, WaitMax: time.Second}
	w := job.NewWorkers()
	must(s.t,
		job.Handle(w, func(ctx context.Context, c Chore) error {
			running, _ := job.Current(ctx)
			name := fmt.Sprintf("chore/%d", c.N)
			s.note(name, "attempt %d", running.Attempt)
			if c.Lock != "" {
				s.note("lock/"+c.Lock, "%d", c.N)
			}
			return s.play(ctx, name, c.Script, func(w *uow.Work) { publish(w, Noted{name, c.N}) })
		}, policy),
		job.Handle(w, func(_ context.Context, e Errand) error {
			s.note("errand/"+e.Box, "%d", e.N)
			return nil
		}, policy),
		job.Handle(w, func(ctx context.Context, _ Sweep) error {
			running, _ := job.Current(ctx)
			for _, j := range s.h.Jobs("sweep") {
				if j.ID == running.ID {
					s.note("sweep", "%s, due %s after the start", j.Metadata[job.MetadataSchedule], j.RunAt.Sub(s.start))
				}
			}
			return job.SetResult(ctx, "swept")
		}, policy),
	)
	return w
}

func (s *scene) note(group, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines[group] = append(s.lines[group], fmt.Sprintf(format, args...))
}

func publish(w *uow.Work, events ...domain.Event) {
	var a aggregate
	a.events.Record(events...)
	w.Track(&a)
}

type aggregate struct{ events domain.Recorder }

func (a *aggregate) Recorded() *domain.Recorder { return &a.events }

func (s *scene) moved(ctx context.Context, consumer string, e Moved, effect func(*uow.Work)) error {
	s.note(consumer+"/"+e.Box, "%d", e.N)
	return s.play(ctx, fmt.Sprintf("%s/%s/%d", consumer, e.Box, e.N), e.Scripts[consumer], effect)
}

// play has one attempt end as the script says: t is an error, a one that names the wait, p a permanent one, x a panic, s a snooze,
// e an error after the effect was committed. Beyond the script it succeeds.
func (s *scene) play(ctx context.Context, name, script string, effect func(*uow.Work)) error {
	s.mu.Lock()
	n := s.attempts[name]
	s.attempts[name]++
	s.mu.Unlock()
	letter := byte('.')
	if n < len(script) {
		letter = script[n]
	}
	_, isJob := job.Current(ctx)
	failed := fmt.Errorf("attempt %d of %s has failed", n, name)
	switch letter {
	case 't':
		return failed
	case 'a':
		if isJob {
			return job.RetryAfter(3*time.Second, failed)
		}
		return bus.RetryAfter(failed, 3*time.Second)
	case 'p':
		return bus.Permanent(failed)
	case 's':
		return job.Snooze(2 * time.Second)
	case 'x':
		panic(failed.Error())
	}
	if effect != nil {
		ran := false
		err := s.h.Work().Do(ctx, func(_ context.Context, w *uow.Work) error {
			ran = true
			effect(w)
			return nil
		})
		s.note(name, "effect %t", ran)
		if err != nil {
			return err
		}
	}
	if letter == 'e' {
		return failed
	}
	return nil
}

// run runs, and writes down how things stand then.
func (s *scene) run() {
	s.t.Helper()
	s.h.Run()
	states := make(map[string]int)
	for _, kind := range []string{"chore", "errand", "sweep"} {
		for _, j := range s.h.Jobs(kind) {
			states[kind+" "+j.State]++
		}
	}
	for _, name := range []string{"hold", "pass", "tally", "clerk", "chore", "errand"} {
		if n := len(s.h.Dead(name)); n > 0 {
			states["dead "+name] = n
		}
	}
	states["noted"] = len(bustest.Published[Noted](s.h))
	var line []string
	for _, state := range slices.Sorted(maps.Keys(states)) {
		line = append(line, fmt.Sprintf("%d %s", states[state], state))
	}
	s.note("after each run", "%s", strings.Join(line, ", "))
}

// transcript is all that has happened: per key, per job and per lock key, since there is no order between them.
func (s *scene) transcript() string {
	s.t.Helper()
	for _, name := range []string{"hold", "pass", "tally", "clerk", "chore", "errand"} {
		for _, d := range s.h.Dead(name) {
			s.note("dead "+name+" "+d.Key, "%s after %d attempts: %s: %s, %s", d.Type, d.Attempts, d.Class, d.Error, d.Payload)
		}
	}
	for _, e := range bustest.Published[Moved](s.h) {
		s.note("published box "+e.Box, "%d", e.N)
	}
	for _, e := range bustest.Published[Noted](s.h) {
		s.note("published note "+e.Box, "%d", e.N)
	}
	for _, j := range s.h.Jobs("chore") { // in the order in which the test has enqueued them
		var classes []string
		for _, f := range j.Failures {
			classes = append(classes, fmt.Sprintf("%d %s %s", f.Attempt, f.Class, f.Error))
		}
		s.note("chores", "%s: %s, attempt %d, %q", j.Args, j.State, j.Attempt, classes)
	}
	for _, j := range s.h.Jobs("errand") {
		s.note("errands "+j.LockKey, "%s: %s, attempt %d", j.Args, j.State, j.Attempt)
	}
	for _, j := range s.h.Jobs("sweep") {
		s.note("sweeps", "%s, result %s", j.State, j.Result)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var text strings.Builder
	for _, group := range slices.Sorted(maps.Keys(s.lines)) {
		fmt.Fprintf(&text, "%s\n\t%s\n", group, strings.Join(s.lines[group], "\n\t"))
	}
	return text.String()
}
