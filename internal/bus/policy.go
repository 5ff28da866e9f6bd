package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Policy says what becomes of an event whose handler fails. Its zero value is complete.
//
// A failed event is parked with its key: later events of that key wait behind it, other keys and other consumers go on. It
// is tried again until it succeeds or is dead.
type Policy struct {
	// Attempts is how often an event is tried before it is dead. Default: 25, which is about half a day with the default
	// waits.
	Attempts int
	// BackoffMin is the wait after the first failure; it doubles with each, up to BackoffMax. Up to half of a wait is taken
	// off at random. Default: 1 s and 1 h.
	BackoffMin, BackoffMax time.Duration
	// Deadline is how long a handler may run. Then its context ends. It is not run a second time beside itself. Default: 1 min.
	Deadline time.Duration
	// Concurrency is how many keys a process handles at the same time. More are for handlers that wait for others; what is
	// behind a handler, such as a pool of connections, has to stand it. Default: 16; at most 1,000.
	Concurrency int
	// AfterDeath says what a dead event does to its key. Default: HoldKey.
	AfterDeath AfterDeath
}

// AfterDeath is what becomes of the events behind a dead one.
type AfterDeath int

const (
	// HoldKey has later events of the key wait until somebody has dealt with the dead one.
	HoldKey AfterDeath = iota
	// PassKey lets them go on.
	PassKey
)

// concurrencyMax keeps a process from more handlers than it can have messages in memory for.
const concurrencyMax = 1000

func (p Policy) withDefaults() Policy {
	if p.Attempts == 0 {
		p.Attempts = 25
	}
	if p.Concurrency == 0 {
		p.Concurrency = 16
	}
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&p.BackoffMin, time.Second)
	set(&p.BackoffMax, max(p.BackoffMin, time.Hour))
	set(&p.Deadline, time.Minute)
	return p
}

func (p Policy) validate() error {
	switch {
	case p.Attempts < 1:
		return fmt.Errorf("%w: %d attempts, at least 1", ErrPolicy, p.Attempts)
	case p.BackoffMin < time.Millisecond, p.BackoffMax < p.BackoffMin:
		return fmt.Errorf("%w: backoff from %s to %s, at least 1 ms", ErrPolicy, p.BackoffMin, p.BackoffMax)
	case p.Deadline < time.Millisecond:
		return fmt.Errorf("%w: a deadline of %s, at least 1 ms", ErrPolicy, p.Deadline)
	case p.Concurrency < 1 || p.Concurrency > concurrencyMax:
		return fmt.Errorf("%w: a concurrency of %d, from 1 to %d", ErrPolicy, p.Concurrency, concurrencyMax)
	case p.AfterDeath != HoldKey && p.AfterDeath != PassKey:
		return fmt.Errorf("%w: after death %d", ErrPolicy, p.AfterDeath)
	}
	return nil
}

// wait is how long after the failed attempt of that number, from 1 on, the next one comes.
func (p Policy) wait(attempt int) time.Duration {
	wait := p.BackoffMax
	if shift := attempt - 1; shift >= 0 && shift < 30 && p.BackoffMin < wait>>shift { // not BackoffMin<<shift, which overflows
		wait = p.BackoffMin << shift
	}
	return wait - rand.N(wait/2+1) //nolint:gosec // jitter needs no secrecy
}

// The classes of failures.
const (
	classTransient   = "transient"    // anything that is not one of the others
	classPermanent   = "permanent"    // Permanent: dead at once
	classRetryAfter  = "retry-after"  // RetryAfter: tried again when the error says
	classUndecodable = "undecodable"  // does not fit its type: dead at once
	classUnknownType = "unknown-type" // of a type, or a version, that a newer program may know
	classPanic       = "panic"
	classDeadline    = "deadline" // the handler overran
)

// AttemptError is why an attempt at an event failed, and what its consumer's policy makes of it. The subscriber gets it before
// the message is refused (Refuser), and needs to know nothing of policies.
type AttemptError struct {
	err    error
	class  string
	policy Policy
}

func newFailure(err error, policy Policy) *AttemptError {
	f := &AttemptError{err: err, class: classTransient, policy: policy}
	var permanent *permanentError
	var later *retryAfterError
	var panicked *PanicError
	switch {
	case errors.As(err, &panicked):
		f.class = classPanic
	case errors.As(err, &permanent):
		f.class = classPermanent
	case errors.As(err, &later):
		f.class = classRetryAfter
	case errors.Is(err, ErrUnknownType):
		f.class = classUnknownType
	case errors.Is(err, ErrUndecodable):
		f.class = classUndecodable
	case errors.Is(err, ErrDeadline):
		f.class = classDeadline
	}
	return f
}

// Error implements error.
func (f *AttemptError) Error() string { return f.err.Error() }

// Unwrap returns the handler's error.
func (f *AttemptError) Unwrap() error { return f.err }

// Class is what kind of failure it is: transient, permanent, retry-after, undecodable, unknown-type, panic, deadline.
func (f *AttemptError) Class() string { return f.class }

// Stack is where the handler panicked, "" if it did not.
func (f *AttemptError) Stack() string {
	var panicked *PanicError
	if errors.As(f.err, &panicked) {
		return string(panicked.Stack)
	}
	return ""
}

// Next tells when to try again after the failed attempt of that number, from 1 on; false for not at all.
func (f *AttemptError) Next(attempt int) (wait time.Duration, again bool) {
	switch {
	case f.class == classPermanent, f.class == classUndecodable, attempt >= f.policy.Attempts:
		return 0, false
	case f.class == classRetryAfter:
		var later *retryAfterError
		errors.As(f.err, &later)
		return later.wait, true
	}
	return f.policy.wait(attempt), true
}

// Everybody tells whether the failure may well be everybody's: of the handler or of what is behind it, not of this event. When
// nothing but such failures comes, a consumer slows down.
func (f *AttemptError) Everybody() bool {
	return f.class == classTransient || f.class == classDeadline || f.class == classRetryAfter || f.class == classPanic
}

// Hold tells whether later events of the key wait once this one is dead.
func (f *AttemptError) Hold() bool { return f.policy.AfterDeath == HoldKey }

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Next and Class tell the work table, which knows nothing of this package, what the error means.
func (e *permanentError) Next(int) (wait time.Duration, again bool) { return 0, false }
func (e *permanentError) Class() string                             { return classPermanent }

// Permanent marks an error that trying again will not mend: the event is dead at once. It returns nil for nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type retryAfterError struct {
	err  error
	wait time.Duration
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }

// Next and Class tell the work table, which knows nothing of this package, what the error means.
func (e *retryAfterError) Next(int) (wait time.Duration, again bool) { return e.wait, true }
func (e *retryAfterError) Class() string                             { return classRetryAfter }

// RetryAfter marks an error that says when trying again may help, such as a server's Retry-After. It counts as an attempt.
// It returns nil for nil; a wait below zero is none.
func RetryAfter(err error, wait time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryAfterError{err: err, wait: max(wait, 0)}
}

// stuckGrace is how long after its deadline a handler that still runs is named in the log.
const stuckGrace = 5 * time.Second

// limited is the context of a handler that has a deadline. One timer serves the deadline and, once it has passed, the watch
// for a handler that does not heed it: two for each message were a quarter of the router's time.
type limited struct {
	context.Context
	deadline time.Time
	timer    *time.Timer
	cancel   context.CancelCauseFunc
	ended    atomic.Bool
}

// withDeadline ends the context of a handler that overruns, with ErrDeadline, and calls stuck when it still runs stuckGrace
// later.
func withDeadline(parent context.Context, deadline time.Duration, stuck func()) *limited {
	l := &limited{deadline: time.Now().Add(deadline)}
	l.Context, l.cancel = context.WithCancelCause(parent)
	l.timer = time.AfterFunc(deadline, func() {
		l.cancel(ErrDeadline)
		time.AfterFunc(stuckGrace, func() {
			if !l.ended.Load() {
				stuck()
			}
		})
	})
	return l
}

// Deadline implements context.Context.
func (l *limited) Deadline() (time.Time, bool) {
	if earlier, ok := l.Context.Deadline(); ok && earlier.Before(l.deadline) {
		return earlier, true
	}
	return l.deadline, true
}

// end is called when the handler has returned.
func (l *limited) end() {
	l.ended.Store(true)
	l.timer.Stop()
	l.cancel(nil)
}
