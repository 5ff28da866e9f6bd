package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/servertest"
)

// stallMax is how long maintenance may hold up a publisher. The server looks after it, for it tells a wait for a lock from
// one for the processor, of which tests that run at the same time leave little.
const stallMax = 100 * time.Millisecond

// unluckyMax is how often, in thousands of commits, whoever held a lock may have been kept from the processor meanwhile. What
// waits for others would hold up a publisher each time.
const unluckyMax = 2

// stalls publishes to the topics over and over, on a connection each, and notes how long the longest commit took. A
// publisher that waits for a lock longer than stallMax, more often than unluckyMax, fails.
type stalls struct {
	longest map[string]*atomic.Int64
}

func watchStalls(ctx context.Context, t *testing.T, l *Log, group *sync.WaitGroup, topics ...string) stalls {
	t.Helper()
	s := stalls{longest: make(map[string]*atomic.Int64)}
	for _, topic := range topics {
		longest, waited := &atomic.Int64{}, &atomic.Int64{}
		s.longest[topic] = longest
		group.Go(func() {
			err := l.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
				if _, err := c.Exec(ctx, fmt.Sprintf(`set lock_timeout = %d`, stallMax.Milliseconds())); err != nil {
					return err
				}
				for ctx.Err() == nil {
					batch := &pgx.Batch{}
					if err := l.Append(batch, topic, event("k", 0)); err != nil {
						return err
					}
					begun := time.Now()
					err := c.SendBatch(context.WithoutCancel(ctx), batch).Close()
					if hasCode(err, codeLockNotAvailable) && waited.Add(1) <= unluckyMax {
						continue
					}
					if err != nil {
						return err
					}
					longest.Store(max(longest.Load(), int64(time.Since(begun))))
				}
				return nil
			})
			if err != nil && ctx.Err() == nil {
				t.Errorf("publish to %s: %v", topic, err)
			}
		})
	}
	return s
}

// take returns the longest of each since it was last asked.
func (s stalls) take(topic string) time.Duration { return time.Duration(s.longest[topic].Swap(0)) }

// TestMaintenanceDoesNotHoldUpPublishers publishes while partitions are made, closed, detached and dropped, and while
// others hold the topic and a partition open so that they cannot be. Another topic, which nobody maintains, tells how
// long a commit takes on this machine just now.
func TestMaintenanceDoesNotHoldUpPublishers(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l := newLog(t, aged(false))
	if err := l.Provision(t.Context(), []string{"control"}, nil); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	s := watchStalls(ctx, t, l, &group, "user", "control")
	check := func(during string) {
		t.Helper()
		worst, usual := s.take("user"), s.take("control")
		t.Logf("%s: a commit took %s at most, one elsewhere %s", during, worst.Round(time.Millisecond), usual.Round(time.Millisecond))
		if worst == 0 {
			t.Errorf("nothing was published during %s", during)
		}
	}

	for range 6 {
		closePartition(t, l)
		makeOld(t, l)
		maintain(t, l)
	}
	eventually(t, "some drops", func() bool { maintain(t, l); return numbers(t, l)[0] >= 6 })
	check("closing and dropping")

	const insert = `insert into TOPIC (slot, id, metadata, payload) values (0, gen_random_uuid(), '{}', '')`
	for what, sql := range map[string]string{
		"another transaction reads the topic":       `select 1 from TOPIC limit 1`,
		"another transaction reads the partition":   `select 1 from PARTITION limit 1`,
		"another transaction has written something": insert,
	} {
		oldest := numbers(t, l)[0]
		names := strings.NewReplacer("TOPIC", l.topicTable("user"), "PARTITION", l.partitionTable("user", oldest))
		release := hold(t, l, names.Replace(sql))
		closePartition(t, l)
		for range 10 { // as if it had not been noticed before
			if err := l.execDetach(ctx, "user", oldest); !isBusy(err) {
				t.Errorf("detach while %s: %v", what, err)
			}
			if err := pause(ctx, detachPause/5); err != nil {
				t.Fatal(err)
			}
		}
		check(what + " and detach is tried all the same")
		makeOld(t, l)
		maintain(t, l)
		if numbers(t, l)[0] != oldest {
			t.Errorf("a partition was detached while %s", what)
		}
		check(what)
		release()
		eventually(t, "the drop", func() bool { maintain(t, l); return numbers(t, l)[0] > oldest })
	}
}

// hold leaves a transaction open that has run the statement.
func hold(t *testing.T, l *Log, sql string) (release func()) {
	t.Helper()
	tx, err := l.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { _ = tx.Rollback(context.Background()) })
	t.Cleanup(release)
	if _, err := tx.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
	return release
}
