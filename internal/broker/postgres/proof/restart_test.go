package proof_test

import (
	"testing"
	"time"

	"postbus/internal/servertest"
)

const rollingRestarts = 50

// TestRollingRestarts replaces reader processes one after another while events are written, as deployments do: nothing
// is lost, and nothing is delivered twice.
func TestRollingRestarts(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	w := newWorld(t, 10*time.Millisecond)
	w.config.Lease = 10 * time.Second // a busy machine that loses one would be a reason for repeats
	w.start(shared)
	w.start(shared)
	w.start(alone)
	stopWriting := w.writers.start(1)
	for i := range rollingRestarts {
		old := w.readers[0]
		if i%10 != 9 { // now and then the old one leaves before its successor comes
			w.start(old.config.Consumer)
		}
		old.stop()
		w.remove(old)
		if i%10 == 9 {
			w.start(old.config.Consumer)
		}
		w.awaitProgress(old.config.Consumer)
	}
	stopWriting()
	for consumer, v := range w.finish() {
		if v.repeats > 0 {
			t.Errorf("%s: %d deliveries were repeats", consumer, v.repeats)
		}
	}
}

// awaitProgress waits until the consumer has handled some messages from now on.
func (w *world) awaitProgress(consumer string) {
	w.t.Helper()
	count := func() int {
		w.readDeliveries()
		return len(w.deliveries()[consumer])
	}
	now := count()
	await(w.t, "messages for "+consumer, func() bool { return count() >= now+20 })
}
