package job

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrShape is returned for a job, a queue, a schedule or a handler that is declared in a way that cannot work.
	ErrShape = errors.New("job cannot be used")
	// ErrDuplicate is returned when a name is taken twice: a kind's handler, a schedule.
	ErrDuplicate = errors.New("declared twice")
	// ErrNotFound is returned for an id that no job has, or no longer.
	ErrNotFound = errors.New("job is not known")
	// ErrNotRunning is returned by Progress and SetResult outside of a job's handler, and when the job has become another
	// worker's.
	ErrNotRunning = errors.New("job is not running here")
	// ErrCancelled is the cause with which a running job's context ends when somebody has cancelled it.
	ErrCancelled = errors.New("job was cancelled")
	// ErrLost is the cause with which a running job's context ends when its lease could not be kept. Another worker may be
	// at it by now; nothing that this one says of it counts any more.
	ErrLost = errors.New("job's lease was lost")
	// ErrStopped is the cause with which a running job's context ends when its worker is stopped and the job's time to
	// finish is up. It goes back, and the attempt does not count.
	ErrStopped = errors.New("worker is stopped")
	// ErrClosed is returned by a subscriber that was closed.
	ErrClosed = errors.New("subscriber is closed")
	// ErrTimeout is the cause with which a running job's context ends when its handler's timeout is over.
	ErrTimeout = errors.New("job took too long")
)

// LimitError tells that a job is larger than may be enqueued. Nothing was stored.
type LimitError struct {
	Limit string // the limit's name, such as "argsBytesMax"
	Max   int
	Got   int
	Kind  string // the job's, or "" when the limit is not one job's
}

// Error names the limit and by how much it was passed.
func (e *LimitError) Error() string {
	if e.Kind == "" {
		return fmt.Sprintf("%s is %d, got %d", e.Limit, e.Max, e.Got)
	}
	return fmt.Sprintf("%s is %d, %s has %d", e.Limit, e.Max, e.Kind, e.Got)
}

// Snooze is the error with which a handler puts its job off. The attempt does not count, nothing is noted as a failure, and
// the job keeps its lock key.
func Snooze(d time.Duration) error { return snooze{d} }

type snooze struct{ d time.Duration }

func (s snooze) Error() string { return "snoozed for " + s.d.String() }

// Permanent is an error after which the job is not tried again: it is dead. It is nil for nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &verdict{err: err, class: "permanent"}
}

// RetryAfter is an error after which the job is tried again after d, as often as it takes. It is nil for nil.
func RetryAfter(d time.Duration, err error) error {
	if err == nil {
		return nil
	}
	return &verdict{err: err, class: "retry-after", wait: d, again: true}
}

// verdict is an error that knows what is to become of its job.
type verdict struct {
	err   error
	class string
	wait  time.Duration
	again bool
}

func (v *verdict) Error() string { return v.err.Error() }

func (v *verdict) Unwrap() error { return v.err }

// Next implements the policy that Refuse looks for.
func (v *verdict) Next(int) (wait time.Duration, again bool) { return v.wait, v.again }

// Class implements what Refuse looks for.
func (v *verdict) Class() string { return v.class }

// PanicError is a handler's panic turned into an error.
type PanicError struct {
	Value any
	stack []byte
}

// Error names the value's type only: the value may hold arguments. An error of the runtime's own says what it is.
func (e *PanicError) Error() string {
	if err, ok := e.Value.(interface {
		error
		RuntimeError()
	}); ok {
		return "panic: " + err.Error()
	}
	return fmt.Sprintf("panic with a %T", e.Value)
}

// Class returns "panic".
func (e *PanicError) Class() string { return "panic" }

// Stack returns the stack on which it happened.
func (e *PanicError) Stack() string { return string(e.stack) }
