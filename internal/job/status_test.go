package job

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestQueueStatus: what waits, what failed and waits again, what is behind, dead, or running; of this queue only.
func TestQueueStatus(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	empty, err := table.QueueStatus(t.Context(), DefaultQueue)
	if err != nil || empty.Waiting+empty.Parked+empty.Dead+len(empty.Running) != 0 || empty.Oldest != 0 {
		t.Errorf("an empty queue is %+v, %v", empty, err)
	}
	release := make(chan struct{})
	o := work(t, table, 3, func(_ context.Context, n note) error {
		switch n.Text {
		case "dead":
			return Permanent(errors.New("no"))
		case "again":
			return RetryAfter(time.Hour, errors.New("no"))
		}
		<-release
		return nil
	})
	enqueue(t, table, "dead")
	enqueue(t, table, "again")
	o.await(t, 2)
	for range 3 {
		enqueue(t, table, "runs")
	}
	o.await(t, 5)
	enqueue(t, table, "waits")
	enqueue(t, table, "waits", Priority(2), LockKey("k"))
	enqueue(t, table, "behind", LockKey("k"))
	enqueue(t, table, "later", In(time.Hour))
	enqueue(t, table, "elsewhere", Queue("other"))
	want := QueueStatus{Waiting: 2, Parked: 2, Dead: 1}
	eventually(t, "the status", func() bool {
		s, err := table.QueueStatus(t.Context(), DefaultQueue)
		running := 0
		for owner, n := range s.Running {
			if owner == "" {
				t.Error("a job runs nowhere")
			}
			running += n
		}
		return err == nil && s.Waiting == want.Waiting && s.Parked == want.Parked && s.Dead == want.Dead && s.Oldest > 0 && running == 3
	})
	close(release)
}
