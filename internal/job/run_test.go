package job

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestJobRunsAndIsKept(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	got := make(chan Running, 1)
	work(t, table, 2, func(ctx context.Context, n note) error {
		running, ok := Current(ctx)
		if !ok || n.Text != "hello" {
			return fmt.Errorf("got %q, running %v", n.Text, ok)
		}
		got <- running
		return errors.Join(Progress(ctx, "half"), SetResult(ctx, map[string]int{"sent": 1}))
	})
	id := enqueue(t, table, "hello", Metadata(MetadataCorrelation, "c"))
	if running := <-got; running != (Running{ID: id, Kind: "test-note", Queue: DefaultQueue, Attempt: 1}) {
		t.Errorf("the handler saw %+v", running)
	}
	awaitState(t, table, id, StateCompleted)
}

func TestJobWithoutHistoryIsDeletedWhenItCompletes(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Keep: Keep{Completed: time.Nanosecond}})
	work(t, table, 1, nil)
	enqueue(t, table, "x")
	enqueue(t, table, "y", LockKey("k"))
	enqueue(t, table, "z", LockKey("k"))
	eventually(t, "an empty table", func() bool { return value[int](t, table.pool, `select count(*) from postbus.jobs`) == 0 })
	if n := value[int](t, table.pool, `select count(*) from postbus.job_keys`); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}
