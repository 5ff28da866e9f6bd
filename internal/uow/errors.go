package uow

import (
	"errors"
	"fmt"
)

var (
	// ErrOutcomeUnknown is returned when the connection was lost while COMMIT was under way: the change and its events
	// are both there or both not there, and only the database knows. Nothing is dispatched. A caller that tries again must
	// be safe to repeat.
	ErrOutcomeUnknown = errors.New("outcome of the commit is unknown")
	// ErrNested is returned by Do inside of Do. One use case is one transaction.
	ErrNested = errors.New("unit of work inside a unit of work")
	// ErrAborted is returned when fn returned nil although a statement of it had failed, so that Postgres could only roll
	// back. Nothing was stored.
	ErrAborted = errors.New("transaction was aborted by a failed statement")
	// ErrEnded is returned when fn has ended the transaction by itself, by a COMMIT or ROLLBACK of its own. Events were
	// not published.
	ErrEnded = errors.New("transaction was ended inside the unit of work")
	// ErrSecondEffect is returned by Do in a consumer's handler that has had its one effect in this delivery. The event's
	// inbox row stands for one transaction; what else is to be done belongs into it, or to another consumer.
	ErrSecondEffect = errors.New("second unit of work for one event")
	// errRepeated ends an attempt at an event that has had its effect.
	errRepeated = errors.New("event has had its effect")
	// ErrNoJobs is returned when fn has enqueued a job and the Manager was made without WithJobs. Nothing was stored.
	ErrNoJobs = errors.New("unit of work has nowhere to enqueue jobs")
	// ErrNoDatabase is returned by a Work's database handle in a test that runs in memory (NewManagerInMemory).
	ErrNoDatabase = errors.New("unit of work in memory has no database: give the use case a repository in memory, or test it on Postgres")
	// ErrClosed is returned by a Work's database handle once its unit of work is over.
	ErrClosed = errors.New("unit of work is over")
)

// DispatchError is returned when an in-process handler failed after the commit. The commit stands: the change and its
// events are stored and consumers will handle them.
type DispatchError struct{ Err error }

// Error says that the commit stands, and what failed after it.
func (e *DispatchError) Error() string {
	return fmt.Sprintf("committed, but dispatch failed: %v", e.Err)
}

// Unwrap returns the failure, a *bus.HandlerError.
func (e *DispatchError) Unwrap() error { return e.Err }
