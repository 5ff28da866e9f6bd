package bustest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/bus"
	"postbus/internal/job"
)

// Limits on one Run.
const (
	handlingsPerRunMax = 10_000
	runTimeMax         = time.Minute
)

// errNoRest is returned when a Run has reached one of its limits.
var errNoRest = errors.New("things do not come to rest")

// watch stands around every handler: it lets one run at a time, counts, and makes them fail.
type watch struct {
	turn     sync.Mutex // of the handler that runs
	begun    atomic.Int64
	ended    atomic.Int64
	atBegin  int64 // of the Run
	deadline time.Time

	mu       sync.Mutex
	failures map[string]*failure
}

type failure struct {
	left int
	err  error
}

func (w *watch) begin() { w.atBegin, w.deadline = w.begun.Load(), time.Now().Add(runTimeMax) }

// limit returns errNoRest, and which limit it was, when the Run has gone on for too long.
func (w *watch) limit() error {
	switch {
	case w.begun.Load()-w.atBegin > handlingsPerRunMax:
		return fmt.Errorf("%w within handlingsPerRunMax, %d", errNoRest, handlingsPerRunMax)
	case time.Now().After(w.deadline):
		return fmt.Errorf("%w within runTimeMax, %s", errNoRest, runTimeMax)
	}
	return nil
}

// still returns how many handlings have begun, and whether all of them have ended.
func (w *watch) still() (begun int64, still bool) {
	ended := w.ended.Load()
	begun = w.begun.Load()
	return begun, begun == ended
}

func (w *watch) fail(name string, n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures[name] = &failure{left: n, err: err}
}

// next returns the error that the handling has to fail with, nil for none.
func (w *watch) next(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.failures[name]
	if f == nil || f.left == 0 {
		return nil
	}
	f.left--
	return f.err
}

// around is the middleware of consumers and queues.
func (h *Harness) around(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		h.watch.begun.Add(1)
		defer h.watch.ended.Add(1)
		h.watch.turn.Lock()
		defer h.watch.turn.Unlock()
		name := message.HandlerNameFromCtx(m.Context())
		if h.takes(name, bus.Type(m)) {
			if err := h.watch.next(name); err != nil {
				return nil, err
			}
		}
		return next(m)
	}
}

// takes tells whether there is a consumer of that name that handles the type.
func (h *Harness) takes(consumer, eventType string) bool {
	i := slices.IndexFunc(h.app.Consumers, func(c *bus.Consumer) bool { return c.Name() == consumer })
	return i >= 0 && slices.Contains(h.app.Consumers[i].Types(), eventType)
}

// beforeJob makes jobs fail, where the kind's own policy judges it.
func (h *Harness) beforeJob(ctx context.Context) error {
	running, ok := job.Current(ctx)
	if !ok {
		return nil
	}
	return h.watch.next(running.Kind)
}

// router puts consumers and queues on a router of the bus, for one Run.
func (h *Harness) router(
	from bus.Subscribers, queue func(name string) (message.Subscriber, error), refuser bus.Refuser,
) (*bus.Router, error) {
	router, err := bus.NewRouter(h.codec, from, h.logger, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	router.Use(h.around)
	if err := router.Add(h.app.Consumers...); err != nil {
		return nil, err
	}
	for _, name := range h.app.Queues {
		subscriber, err := queue(name)
		if err != nil {
			return nil, err
		}
		if err := router.AddQueue(name, subscriber, h.app.Workers.Handler(h.beforeJob), refuser, bus.Policy{}); err != nil {
			return nil, err
		}
	}
	return router, nil
}

// running is a router that runs.
type running struct {
	stop  context.CancelFunc
	ended chan struct{}
	err   error // once ended is closed
}

func start(ctx context.Context, router *bus.Router) *running {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{stop: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		r.err = router.Run(ctx)
	}()
	return r
}

// end stops the router and waits for it.
func (r *running) end() error {
	r.stop()
	<-r.ended
	return r.err
}

// early is the error for a router that has ended by itself.
func (r *running) early() error {
	if r.err != nil {
		return r.err
	}
	return errors.New("the router has ended by itself")
}

// left is what is due and not handled, for a person.
type left struct {
	served   []string // will be handled
	unserved []string // will not: nobody works for its queue
}

func (l *left) add(served bool, format string, args ...any) {
	if served {
		l.served = append(l.served, fmt.Sprintf(format, args...))
	} else {
		l.unserved = append(l.unserved, fmt.Sprintf(format, args...))
	}
}

// addJobs tells of due jobs of a kind. Where the application has no workers at all, jobs are for others to run.
func (h *Harness) addJobs(l *left, queue, kind string, n int) {
	switch {
	case len(h.app.Queues) == 0:
		return
	case slices.Contains(h.app.Queues, queue):
		l.add(true, "%d jobs %s", n, kind)
		return
	}
	l.add(false, "%d jobs %s of queue %s, which App does not serve", n, kind, queue)
}

// refusal is the error for what will not be handled; nil when there is none.
func (l *left) refusal() error {
	if len(l.unserved) == 0 {
		return nil
	}
	return fmt.Errorf("left are %s", strings.Join(l.unserved, ", "))
}

func (l *left) String() string {
	return strings.Join(append(slices.Clone(l.served), l.unserved...), ", ")
}
