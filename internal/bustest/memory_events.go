package bustest

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/bus"
)

// reading is what a consumer has yet to handle, in memory.
type reading struct {
	consumer   *bus.Consumer
	subscriber *subscriber
	entries    []*entry // in the order of the commits
}

// The states of an entry: those of the log's parked rows, and fresh for what was not parked.
const (
	entryFresh = "fresh"
	entryRetry = "retry" // once runAt has come
	entryHeld  = "held"  // dead, and holds its key
	entryDead  = "dead"  // dead, and its key went on
)

// entry is an event that a consumer has yet to handle, or has given up.
type entry struct {
	message  *message.Message
	key      string
	state    string
	runAt    time.Time
	attempts int
	class    string // of the last failure
	text     string
	diedAt   time.Time
}

func (r *reading) add(messages ...*message.Message) {
	for _, m := range messages {
		key := bus.Key(m)
		if key == "" {
			key = m.UUID // in nobody's way
		}
		r.entries = append(r.entries, &entry{message: m, key: key, state: entryFresh})
	}
}

func (r *reading) remove(done *entry) {
	r.entries = slices.DeleteFunc(r.entries, func(e *entry) bool { return e == done })
}

// due returns the first event that may be handled: the first of its key that is not out of the way.
func (r *reading) due(now time.Time) *entry {
	seen := make(map[string]bool)
	for _, e := range r.entries {
		if e.state == entryDead || seen[e.key] {
			continue
		}
		if seen[e.key] = true; e.state == entryFresh || (e.state == entryRetry && !e.runAt.After(now)) {
			return e
		}
	}
	return nil
}

// count tells how many events are to be handled, and how many that failed before are due.
func (r *reading) count(now time.Time) (waiting, parked int) {
	blocked := make(map[string]bool)
	for _, e := range r.entries {
		switch {
		case e.state == entryDead || blocked[e.key]:
		case e.state == entryFresh:
			waiting++
		case e.state == entryRetry && !e.runAt.After(now):
			parked++
		default:
			blocked[e.key] = true
		}
	}
	return waiting, parked
}

// fail notes a failed attempt, and what the policy makes of it.
func (e *entry) fail(reason *bus.AttemptError, now time.Time) {
	e.attempts++
	e.class, e.text = reason.Class(), reason.Error()
	wait, again := reason.Next(e.attempts)
	switch {
	case again:
		e.state, e.runAt = entryRetry, now.Add(wait.Truncate(time.Microsecond))
	case reason.Hold():
		e.state, e.diedAt = entryHeld, now
	default:
		e.state, e.diedAt = entryDead, now
	}
}

// subscriber hands the router what the Run hands out. It is of one Run.
type subscriber struct {
	out        chan *message.Message
	subscribed chan struct{}
	once       sync.Once
}

func newSubscriber() *subscriber {
	return &subscriber{out: make(chan *message.Message), subscribed: make(chan struct{})}
}

// Subscribe implements message.Subscriber. It is called once. The router may end ctx instead of calling Close.
func (s *subscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	context.AfterFunc(ctx, func() { _ = s.Close() })
	close(s.subscribed)
	return s.out, nil
}

// Close implements message.Subscriber.
func (s *subscriber) Close() error {
	s.once.Do(func() { close(s.out) })
	return nil
}
