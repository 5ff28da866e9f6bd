package bustest

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/job"
	"postbus/internal/migrate"
	"postbus/internal/uow"
)

// Flavour is what a Harness runs on.
type Flavour int

const (
	// Memory needs no Postgres. Use cases must do without w.DB.
	Memory Flavour = iota
	// Postgres is a database of the test's own.
	Postgres
)

// String names the flavour, for subtests.
func (f Flavour) String() string {
	if f == Postgres {
		return "postgres"
	}
	return "memory"
}

// source is the CloudEvents source of events that tests publish.
const source = "/bustest"

// App is what handles events and jobs: what the application's wiring has, or the part of it that a test is about.
type App struct {
	Consumers []*bus.Consumer
	Workers   *job.Workers // nil: jobs are kept, and not run
	Queues    []string     // of jobs that are run. Default: job.DefaultQueue
	Schedules []job.Schedule
}

// Harness runs an application for one test.
type Harness struct {
	t         testing.TB
	catalogue *bus.Catalogue
	codec     *bus.Codec
	inProcess *bus.Bus
	logger    *slog.Logger
	app       App
	watch     watch
	pool      *pgxpool.Pool // nil in memory
	on        backbone
}

// backbone is what a flavour has to do.
type backbone interface {
	runner
	keeper
	clock
}

type runner interface {
	manager() *uow.Manager
	serve(ctx context.Context, app App) error
	// run handles what is due, until nothing is left.
	run(ctx context.Context, h *Harness) error
}

type keeper interface {
	messages(ctx context.Context, topic string) ([]*message.Message, error)
	jobs(ctx context.Context) ([]job.Status, error)
	dead(ctx context.Context, consumer string) ([]Dead, error)
	retryDead(ctx context.Context, name string) error
}

type clock interface {
	now(ctx context.Context) (time.Time, error)
	advance(ctx context.Context, d time.Duration) error
}

// New returns a harness for an application with these event types. On Postgres the database has the log's, the work table's
// and the given migrations, which are the application's own tables; in memory they count for nothing. It ends the test when the
// database cannot be made.
func New(t testing.TB, flavour Flavour, catalogue *bus.Catalogue, tables ...migrate.Set) *Harness {
	t.Helper()
	h := &Harness{t: t, catalogue: catalogue, codec: bus.NewCodec(catalogue, source)}
	h.logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	h.inProcess = bus.New(h.logger)
	h.watch.failures = make(map[string]*failure)
	if flavour == Memory {
		h.on = newMemory(h)
		return h
	}
	p, err := newOnPostgres(t, h, tables)
	h.must("make the database", err)
	h.pool, h.on = p.pool, p
	return h
}

// Work returns the Unit of Work that the application's use cases and handlers write through.
func (h *Harness) Work() *uow.Manager { return h.on.manager() }

// Pool returns the database, nil in memory. It is closed when the test ends.
func (h *Harness) Pool() *pgxpool.Pool { return h.pool }

// InProcess returns the bus of the handlers that run right after a commit.
func (h *Harness) InProcess() *bus.Bus { return h.inProcess }

// Serve has the application's consumers take what is published from now on, and its schedules begin now. It is called once. It
// ends the test for an application that cannot be run.
func (h *Harness) Serve(app App) {
	h.t.Helper()
	if h.app.Workers != nil {
		h.t.Fatalf("bustest: Serve is called once")
	}
	if app.Workers != nil && app.Queues == nil {
		app.Queues = []string{job.DefaultQueue}
	}
	if app.Workers == nil {
		app.Workers, app.Queues = job.NewWorkers(), nil
	}
	h.app = app
	h.must("serve the application", h.on.serve(h.t.Context(), app))
}

// Do carries out a unit of work, and ends the test when it fails.
func (h *Harness) Do(fn func(ctx context.Context, w *uow.Work) error) {
	h.t.Helper()
	h.must("do a unit of work", h.Work().Do(h.t.Context(), fn))
}

// Publish publishes events in a unit of work, in the order given.
func (h *Harness) Publish(events ...domain.Event) {
	h.t.Helper()
	h.Do(func(_ context.Context, w *uow.Work) error {
		var s recorded
		s.Record(events...)
		w.Track(&s)
		return nil
	})
}

type recorded struct{ domain.Recorder }

func (r *recorded) Recorded() *domain.Recorder { return &r.Recorder }

// Enqueue enqueues a job in a unit of work.
func (h *Harness) Enqueue(args job.Args, options ...job.Option) {
	h.t.Helper()
	h.Do(func(_ context.Context, w *uow.Work) error {
		w.Enqueue(args, options...)
		return nil
	})
}

// Run handles events and jobs until nothing is left that is due: no event, no parked one whose time has come, no job, nothing
// that handlers have published or enqueued meanwhile. What is not due, or waits behind a dead event, stays. It ends the test when
// things do not come to rest within 10,000 handlings or a minute, and says what is left.
func (h *Harness) Run() {
	h.t.Helper()
	h.watch.begin()
	h.must("run", h.on.run(h.t.Context(), h))
}

// Now is the time by the harness's clock.
func (h *Harness) Now() time.Time {
	h.t.Helper()
	now, err := h.on.now(h.t.Context())
	h.must("ask for the time", err)
	return now.UTC()
}

// Advance moves the clock. What becomes due is handled by the next Run.
func (h *Harness) Advance(d time.Duration) {
	h.t.Helper()
	if d <= 0 || d%time.Microsecond != 0 {
		h.t.Fatalf("bustest: the clock cannot move by %s: it goes forward, by whole microseconds", d)
	}
	h.must("move the clock", h.on.advance(h.t.Context(), d))
}

// FailNext has the next n handlings of a consumer, or of a kind of jobs, fail with err before they reach the handler. What
// becomes of them is the policy's business, or the error's: bus.Permanent, bus.RetryAfter, job.Permanent, job.Snooze and so on.
// With several keys to handle, or jobs, it is open which of them it is. A second call takes the place of the first.
func (h *Harness) FailNext(name string, n int, err error) {
	h.t.Helper()
	h.known(name)
	if err == nil || n < 1 {
		h.t.Fatalf("bustest: FailNext of %s wants a number above zero and an error", name)
	}
	h.watch.fail(name, n, err)
}

// Dead is an event that a consumer has given up, or a job that is not tried again.
type Dead struct {
	Name     string // the consumer, or the job's kind
	Type     string // the event's type, or the job's kind
	Key      string // the event's, or the job's lock key
	ID       uuid.UUID
	Attempts int
	Class    string // of the last failure
	Error    string // its text
	Payload  []byte // the event, or the job's arguments
}

// Dead returns what is dead of a consumer or of a kind of jobs, in the order in which it died.
func (h *Harness) Dead(name string) []Dead {
	h.t.Helper()
	h.known(name)
	if h.isConsumer(name) {
		all, err := h.on.dead(h.t.Context(), name)
		h.must("look at dead events", err)
		return all
	}
	var all []Dead
	for _, s := range h.jobs() {
		if s.Kind != name || s.State != job.StateDead {
			continue
		}
		d := Dead{Name: name, Type: name, Key: s.LockKey, ID: s.ID, Attempts: s.Attempt, Payload: s.Args}
		if n := len(s.Failures); n > 0 {
			d.Class, d.Error = s.Failures[n-1].Class, s.Failures[n-1].Error
		}
		all = append(all, d)
	}
	return all
}

// RetryDead has all that is dead of a consumer or of a kind of jobs tried again, with new attempts, as an operator would.
func (h *Harness) RetryDead(name string) {
	h.t.Helper()
	h.known(name)
	h.must("retry what is dead", h.on.retryDead(h.t.Context(), name))
}

func (h *Harness) isConsumer(name string) bool {
	return slices.ContainsFunc(h.app.Consumers, func(c *bus.Consumer) bool { return c.Name() == name })
}

// known ends the test for a name that is neither a consumer's nor a kind's.
func (h *Harness) known(name string) {
	h.t.Helper()
	if h.app.Workers == nil {
		h.t.Fatalf("bustest: there is no %q before Serve", name)
	}
	if h.isConsumer(name) || slices.Contains(h.app.Workers.Kinds(), name) {
		return
	}
	var names []string
	for _, c := range h.app.Consumers {
		names = append(names, c.Name())
	}
	h.t.Fatalf("bustest: there is no consumer and no kind of job %q; there are %s", name,
		strings.Join(append(names, h.app.Workers.Kinds()...), ", "))
}

func (h *Harness) must(what string, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("bustest: %s: %v", what, err)
	}
}

func (h *Harness) jobs() []job.Status {
	h.t.Helper()
	all, err := h.on.jobs(h.t.Context())
	h.must("look at jobs", err)
	return all
}

func (h *Harness) messages(topic string) []*message.Message {
	h.t.Helper()
	all, err := h.on.messages(h.t.Context(), topic)
	h.must("look at events", err)
	return all
}
