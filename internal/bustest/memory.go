package bustest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/job"
	"postbus/internal/uow"
)

// memory is the log, the inbox, the work table and the clock of a test without Postgres.
type memory struct {
	harness *Harness
	work    *uow.Manager
	refuser *job.Table // it notes why a job's message is refused

	mu        sync.Mutex
	time      time.Time
	topics    map[string][]*message.Message
	consumers []*reading
	inbox     map[effect]bool
	table     jobTable
	schedules []job.Schedule
	ticks     map[string]time.Time // of schedules, that are dealt with
	reason    error                // of the latest refusal
}

// effect is one that an event has had in a consumer.
type effect struct {
	consumer string
	event    uuid.UUID
}

func newMemory(h *Harness) *memory {
	m := &memory{
		harness: h, time: time.Now().UTC().Truncate(time.Microsecond),
		topics: make(map[string][]*message.Message), inbox: make(map[effect]bool), ticks: make(map[string]time.Time),
	}
	m.work = uow.NewManagerInMemory(m, h.codec, h.inProcess)
	return m
}

func (m *memory) manager() *uow.Manager { return m.work }

// Repeated implements uow.Memory.
func (m *memory) Repeated(consumer string, event uuid.UUID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inbox[effect{consumer, event}]
}

// Commit implements uow.Memory.
func (m *memory) Commit(cause domain.Cause, events []bus.Encoded, jobs []job.Job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if cause.Consumer != "" {
		m.inbox[effect{cause.Consumer, cause.EventID}] = true
	}
	for _, e := range events {
		m.topics[e.Topic] = append(m.topics[e.Topic], e.Messages...)
		for _, r := range m.consumers {
			if r.consumer.Topic() == e.Topic {
				r.add(e.Messages...)
			}
		}
	}
	for _, j := range jobs {
		m.table.store(j, m.time)
	}
}

func (m *memory) serve(_ context.Context, app App) error {
	table := new(job.Table) // of no database: what is asked of it here needs none
	if _, err := table.Scheduler(app.Schedules...); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuser = table
	for _, c := range app.Consumers {
		m.consumers = append(m.consumers, &reading{consumer: c})
	}
	m.schedules = app.Schedules
	for _, s := range app.Schedules {
		m.ticks[s.Name] = m.time
	}
	return nil
}

func (m *memory) now(context.Context) (time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.time, nil
}

func (m *memory) advance(_ context.Context, d time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.time = m.time.Add(d)
	for _, s := range m.schedules {
		tick, runs := s.Due(m.ticks[s.Name], m.time)
		if tick.IsZero() {
			continue
		}
		m.ticks[s.Name] = tick
		if !runs {
			continue
		}
		j, err := s.Job(tick)
		if err != nil {
			return err
		}
		m.table.store(j, m.time)
	}
	return nil
}

func (m *memory) messages(_ context.Context, topic string) ([]*message.Message, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.topics[topic]), nil
}

func (m *memory) jobs(context.Context) (all []job.Status, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.table.rows {
		all = append(all, r.Status)
	}
	return all, nil
}

func (m *memory) dead(_ context.Context, consumer string) (all []Dead, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	entries := slices.Clone(m.reading(consumer).entries)
	slices.SortStableFunc(entries, func(a, b *entry) int { return a.diedAt.Compare(b.diedAt) })
	for _, e := range entries {
		if e.state != entryHeld && e.state != entryDead {
			continue
		}
		id, err := uuid.Parse(e.message.UUID)
		if err != nil {
			return nil, err
		}
		all = append(all, Dead{
			Name: consumer, Type: bus.Type(e.message), Key: e.key, ID: id, Attempts: e.attempts, Class: e.class, Error: e.text,
			Payload: e.message.Payload,
		})
	}
	return all, nil
}

func (m *memory) reading(consumer string) *reading {
	return m.consumers[slices.IndexFunc(m.consumers, func(r *reading) bool { return r.consumer.Name() == consumer })]
}

func (m *memory) retryDead(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.harness.isConsumer(name) {
		m.table.retry(name, m.time)
		return nil
	}
	for _, e := range m.reading(name).entries {
		if e.state == entryHeld || e.state == entryDead {
			e.state, e.runAt, e.attempts = entryRetry, m.time, 0
		}
	}
	return nil
}

// Subscriber implements bus.Subscribers. One message is out at a time, whatever the consumer's concurrency.
func (m *memory) Subscriber(consumer string, _ int) (message.Subscriber, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.reading(consumer)
	r.subscriber = newSubscriber()
	return r.subscriber, nil
}

// Refuse implements bus.Refuser.
func (m *memory) Refuse(_ *message.Message, reason error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reason = reason
}

// run hands out what is due, one after another, and waits for each answer.
func (m *memory) run(ctx context.Context, h *Harness) (err error) {
	queues := make(map[string]*subscriber)
	router, err := h.router(m, func(name string) (message.Subscriber, error) {
		queues[name] = newSubscriber()
		return queues[name], nil
	}, m.refuser)
	if err != nil {
		return err
	}
	running := start(ctx, router)
	defer func() { err = errors.Join(err, running.end()) }()
	for {
		next, err := m.next(ctx, queues)
		if err != nil {
			return err
		}
		if next == nil {
			return m.left().refusal()
		}
		if err := h.watch.limit(); err != nil {
			return fmt.Errorf("%w; left are %s", err, m.left())
		}
		if err := m.handOut(running, next); err != nil {
			return err
		}
	}
}

// handling is one message to be handed out.
type handling struct {
	to      *subscriber
	message *message.Message
	end     func(acknowledged bool) error // under the lock
}

// next chooses what is handed out next: events before jobs.
func (m *memory) next(ctx context.Context, queues map[string]*subscriber) (*handling, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.consumers {
		if e := r.due(m.time); e != nil {
			return m.eventHandling(ctx, r, e), nil
		}
	}
	for _, queue := range m.harness.app.Queues {
		if r := m.table.due(queue, m.time); r != nil {
			return m.jobHandling(ctx, queues[queue], r)
		}
	}
	return nil, nil //nolint:nilnil // nothing is due
}

func (m *memory) eventHandling(ctx context.Context, r *reading, e *entry) *handling {
	handed := e.message.Copy()
	handed.SetContext(ctx)
	return &handling{to: r.subscriber, message: handed, end: func(acknowledged bool) error {
		reason := m.reason
		m.reason = nil
		if acknowledged {
			r.remove(e)
			return nil
		}
		var attempt *bus.AttemptError
		if !errors.As(reason, &attempt) {
			return fmt.Errorf("event %s was refused without a reason", e.message.UUID)
		}
		e.fail(attempt, m.time)
		return nil
	}}
}

func (m *memory) jobHandling(ctx context.Context, to *subscriber, r *jobRow) (*handling, error) {
	now := m.time
	r.State, r.StartedAt = job.StateRunning, &now
	r.Attempt++
	trial, err := job.NewTrial(ctx, r.Status)
	if err != nil {
		return nil, err
	}
	return &handling{to: to, message: trial.Message(), end: func(acknowledged bool) error {
		outcome, err := trial.End(acknowledged)
		if err == nil {
			m.table.end(r, outcome, m.time)
		}
		return err
	}}, nil
}

// handOut has the message handled.
func (m *memory) handOut(running *running, next *handling) error {
	timeout := time.NewTimer(time.Until(m.harness.watch.deadline))
	defer timeout.Stop()
	tooLong := func() error {
		return fmt.Errorf("%w within runTimeMax, %s; left are %s", errNoRest, runTimeMax, m.left())
	}
	select {
	case <-next.to.subscribed:
	case <-running.ended:
		return running.early()
	case <-timeout.C:
		return tooLong()
	}
	select {
	case next.to.out <- next.message:
	case <-running.ended:
		return running.early()
	case <-timeout.C:
		return tooLong()
	}
	acknowledged := false
	select {
	case <-next.message.Acked():
		acknowledged = true
	case <-next.message.Nacked():
	case <-timeout.C:
		return tooLong()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return next.end(acknowledged)
}

// left tells what is due.
func (m *memory) left() *left {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &left{}
	for _, r := range m.consumers {
		waiting, parked := r.count(m.time)
		if waiting > 0 {
			l.add(true, "%d events of %s", waiting, r.consumer.Name())
		}
		if parked > 0 {
			l.add(true, "%d parked events of %s", parked, r.consumer.Name())
		}
	}
	type group struct{ queue, kind string }
	counts := make(map[group]int)
	var groups []group
	for _, r := range m.table.rows {
		if !r.dueAt(m.time) && r.State != job.StateRunning {
			continue
		}
		g := group{r.Queue, r.Kind}
		if counts[g]++; counts[g] == 1 {
			groups = append(groups, g)
		}
	}
	for _, g := range groups {
		m.harness.addJobs(l, g.queue, g.kind, counts[g])
	}
	return l
}
