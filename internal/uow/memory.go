package uow

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/job"
)

// Memory is where units of work end in a test without a database (package bustest).
type Memory interface {
	// Repeated tells whether the consumer has had its effect of the event.
	Repeated(consumer string, event uuid.UUID) bool
	// Commit keeps events and jobs, and that the event of cause has had its effect in the consumer of cause, if it names one.
	Commit(cause domain.Cause, events []bus.Encoded, jobs []job.Job)
}

// NewManagerInMemory returns a Manager whose units of work end in memory. What Do says of events, jobs, limits, effects and
// in-process handlers holds; w.DB answers ErrNoDatabase.
func NewManagerInMemory(memory Memory, codec *bus.Codec, inProcess *bus.Bus) *Manager {
	return &Manager{memory: memory, codec: codec, bus: inProcess}
}

// attemptInMemory is attempt without a transaction: until everything was checked nothing is kept.
func (m *Manager) attemptInMemory(ctx context.Context, fn func(ctx context.Context, w *Work) error) (commit, error) {
	if ctx.Err() != nil {
		return commit{}, fmt.Errorf("begin in memory: %w", context.Cause(ctx))
	}
	cause := domain.CauseOf(ctx)
	if cause.Consumer != "" && m.memory.Repeated(cause.Consumer, cause.EventID) {
		return commit{}, errRepeated
	}
	w := &Work{cause: cause}
	defer w.db.over.Store(true)
	if err := fn(context.WithValue(ctx, withinKey{}, w), w); err != nil {
		return commit{}, err
	}
	w.db.over.Store(true)
	if ctx.Err() != nil {
		return commit{}, fmt.Errorf("before the commit: %w", context.Cause(ctx))
	}
	done := commit{events: domain.Recorded(w.sources...)}
	encoded, err := m.encode(ctx, done.events)
	if err != nil {
		return commit{}, err
	}
	if err := w.checkJobs(); err != nil {
		return commit{}, err
	}
	m.memory.Commit(cause, encoded, w.jobs)
	for _, s := range w.sources {
		s.Recorded().Take()
	}
	return done, nil
}
