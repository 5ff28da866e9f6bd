package job

import (
	"fmt"
	"testing"
	"time"

	"postbus/internal/pgtest"
)

// TestThroughPgBouncer enqueues and works through a pooler that gives a connection to others after every transaction. No
// notification comes through there; polling is enough.
func TestThroughPgBouncer(t *testing.T) {
	t.Parallel()
	address := pgtest.Pooler(t, pgtest.URL(t, Migrations(DefaultSchema)))
	config := Config{Poll: 20 * time.Millisecond, NotifyOff: true, Lease: time.Second}
	here, there := openTable(t, pgtest.Open(t, address), config), openTable(t, pgtest.Open(t, address), config)
	o := work(t, here, 4, nil)
	const many = 50
	for i := range many {
		enqueue(t, there, fmt.Sprint(i), LockKey(fmt.Sprint(i%5)))
	}
	o.await(t, many)
	eventually(t, "all to be completed", func() bool {
		return value[int](t, here.pool, `select count(*) from postbus.jobs where state = 'completed'`) == many
	})
}
