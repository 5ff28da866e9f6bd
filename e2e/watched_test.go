package e2e_test

import (
	"sync"
	"testing"
	"time"
)

// patience bounds every wait that has no limit of its own to prove. It is for a machine that is busy with other things.
const patience = 60 * time.Second

// watched is a value that changes under the eyes of tests. It may be used from many goroutines.
type watched[T any] struct {
	mu      sync.Mutex
	value   T
	changed chan struct{}
}

// update changes the value and wakes all who wait for it.
func (w *watched[T]) update(change func(T) T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.value = change(w.value)
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

// get returns the value, and a channel that is closed when it changes.
func (w *watched[T]) get() (T, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return w.value, w.changed
}

// await returns the value as soon as it satisfies enough, and fails the test when it has not within that time.
func (w *watched[T]) await(t testing.TB, what string, within time.Duration, enough func(T) bool) T {
	t.Helper()
	deadline := time.After(within)
	for {
		value, changed := w.get()
		if enough(value) {
			return value
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited %v for %s", within, what)
		}
	}
}

// until calls done until it says so. It is for what gives no signal, such as another process that comes to listen.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %v until %s", patience, what)
		}
	}
}
