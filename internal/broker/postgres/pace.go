package postgres

import (
	"context"
	"log/slog"
	"time"
)

// A consumer for which everything fails, because what is behind its handlers is down, does not park its whole topic. It
// slows down: one message at a time is tried, after growing pauses, and none is parked and no attempt counted, until
// something succeeds. What has failed before says nothing of that: one key that fails again and again is one key.
const (
	slowAfter = 16 // keys whose events failed when they were new, with no success in between
	slowFirst = time.Second
	slowMost  = 30 * time.Second
)

// pace is how fast a delivery goes. It belongs to delivery.mu, but for gate.
type pace struct {
	failing map[string]bool // keys whose new events failed since the last success
	slow    bool
	pause   time.Duration
	next    time.Time     // not before
	gate    chan struct{} // of one, which whoever tries holds
}

func newPace() pace { return pace{failing: make(map[string]bool), gate: make(chan struct{}, 1)} }

// paced delivers when its time has come, unless reading has ended before.
func (d *delivery) paced(reading context.Context, deliver func()) {
	if slow, _ := d.slowness(); !slow {
		deliver()
		return
	}
	select {
	case d.gate <- struct{}{}:
	case <-reading.Done():
		return
	}
	defer func() { <-d.gate }()
	if slow, wait := d.slowness(); slow {
		sleep(reading, wait)
	}
	deliver()
}

func (d *delivery) slowness() (slow bool, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.slow, time.Until(d.next)
}

// succeeded lets the consumer go on at its full pace.
func (d *delivery) succeeded() {
	clear(d.failing)
	if d.slow {
		d.slow = false
		d.logger.Info("consumer goes on at its full pace")
	}
}

// failed reports whether the first message of the queue stays where it is, because everything fails or there is no room to
// park more.
func (d *delivery) failed(q *queue, v verdict) (stays bool) {
	fresh := q.line == nil
	full := fresh && len(d.parked) >= parkedKeysMax
	if !v.everybody && !full {
		return false
	}
	if fresh && !d.slow {
		d.failing[q.key] = true
	}
	switch {
	case d.slow && time.Now().Before(d.next):
		return true // it was under way before
	case d.slow:
		d.pause = min(2*d.pause, slowMost)
	case len(d.failing) >= slowAfter || full:
		d.slow, d.pause = true, slowFirst
		d.logger.Warn("nothing but failures: consumer slows down until something succeeds", slog.Int("count", len(d.failing)),
			slog.String("reason", v.Class))
	default:
		return false
	}
	d.next = time.Now().Add(d.pause)
	return true
}
