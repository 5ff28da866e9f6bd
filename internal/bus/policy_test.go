package bus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestFailuresByClass: what each kind of error means for the next attempt.
func TestFailuresByClass(t *testing.T) {
	t.Parallel()
	policy := Policy{Attempts: 3, BackoffMin: 10 * time.Second, BackoffMax: 15 * time.Second}.withDefaults()
	cause := errors.New("the ground is frozen")
	for class, c := range map[string]struct {
		err       error
		again     bool
		least     time.Duration
		most      time.Duration
		everybody bool
	}{
		classTransient:   {cause, true, 5 * time.Second, 10 * time.Second, true},
		classPermanent:   {Permanent(cause), false, 0, 0, false},
		classRetryAfter:  {RetryAfter(cause, 7*time.Hour), true, 7 * time.Hour, 7 * time.Hour, true},
		classUndecodable: {ErrUndecodable, false, 0, 0, false},
		classUnknownType: {ErrUnknownType, true, 5 * time.Second, 10 * time.Second, false},
		classDeadline:    {ErrDeadline, true, 5 * time.Second, 10 * time.Second, true},
		classPanic:       {&PanicError{Value: Permanent(cause), Stack: []byte("here")}, true, 5 * time.Second, 10 * time.Second, true},
	} {
		f := newFailure(fmt.Errorf("plant: %w", c.err), policy)
		if f.Class() != class || f.Everybody() != c.everybody || !errors.Is(f, c.err) {
			t.Errorf("%s: class %s, everybody's %t", class, f.Class(), f.Everybody())
		}
		if wait, again := f.Next(1); again != c.again || wait < c.least || wait > c.most {
			t.Errorf("%s: next %t in %s", class, again, wait)
		}
		if wait, again := f.Next(2); again != c.again || (class == classTransient && (wait < 7*time.Second || wait > 15*time.Second)) {
			t.Errorf("%s: after the second attempt %t in %s", class, again, wait)
		}
		if _, again := f.Next(3); again {
			t.Errorf("%s: tried a fourth time", class)
		}
		if stack := f.Stack(); (stack == "here") != (class == classPanic) {
			t.Errorf("%s: stack %q", class, stack)
		}
	}
	if Permanent(nil) != nil || RetryAfter(nil, time.Second) != nil {
		t.Error("no error became one")
	}
}

func TestPolicyIsChecked(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]Policy{
		"attempts":    {Attempts: -1},
		"no backoff":  {BackoffMin: time.Microsecond},
		"upside down": {BackoffMin: time.Minute, BackoffMax: time.Second},
		"deadline":    {Deadline: -time.Second},
		"after death": {AfterDeath: 7},
		"concurrency": {Concurrency: -1},
		"too many":    {Concurrency: concurrencyMax + 1},
	} {
		if _, err := NewConsumer("forester", WithPolicy(p)); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := NewConsumer("forester", WithPolicy(Policy{BackoffMin: 2 * time.Hour}))
	if err != nil || c.policy.BackoffMax != 2*time.Hour || c.policy.Attempts != 25 || !newFailure(ErrDeadline, c.policy).Hold() {
		t.Errorf("%+v, %v", c.policy, err)
	}
}

// TestDeadlineEndsTheContext with its cause; a handler that returns then is not named, one that goes on is.
func TestDeadlineEndsTheContext(t *testing.T) {
	t.Parallel()
	for name, heeds := range map[string]bool{"heeds it": true, "ignores it": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var named atomic.Bool
				ctx := withDeadline(t.Context(), time.Minute, func() { named.Store(true) })
				if at, ok := ctx.Deadline(); !ok || time.Until(at) != time.Minute {
					t.Errorf("the deadline is %s, %t", at, ok)
				}
				child, cancel := context.WithTimeout(ctx, time.Hour)
				defer cancel()
				<-child.Done()
				if !errors.Is(context.Cause(ctx), ErrDeadline) || !errors.Is(context.Cause(child), ErrDeadline) {
					t.Errorf("the causes are %v and %v", context.Cause(ctx), context.Cause(child))
				}
				if heeds {
					ctx.end()
				}
				<-time.After(2 * stuckGrace)
				if named.Load() == heeds {
					t.Errorf("named: %t", named.Load())
				}
				ctx.end()
			})
		})
	}
}

// TestBackoffDoesNotOverflow: an hour, doubled as often as the default has attempts, is more than a Duration holds.
func TestBackoffDoesNotOverflow(t *testing.T) {
	t.Parallel()
	p := Policy{Attempts: 100, BackoffMin: time.Hour, BackoffMax: 6 * time.Hour}.withDefaults()
	for attempt := 1; attempt < 100; attempt++ {
		if wait := p.wait(attempt); wait < 30*time.Minute || wait > 6*time.Hour {
			t.Fatalf("after attempt %d it waits %s", attempt, wait)
		}
	}
}
