package postgres

import (
	"fmt"
	"testing"
	"time"

	"postbus/internal/pgtest"
)

// TestThroughPgBouncer publishes and reads through a pooler that gives a connection to others after every transaction.
// No notification comes through there; polling is enough. Prepared statements would not come through either, hence the
// query mode in the URL.
func TestThroughPgBouncer(t *testing.T) {
	t.Parallel()
	address := pgtest.Pooler(t, pgtest.URL(t, Migrations(DefaultSchema)))
	config := Config{NotifyOff: true, Poll: 20 * time.Millisecond, Lease: time.Second}
	l := openLog(t, pgtest.Open(t, address), config, "reader")
	other := openLog(t, pgtest.Open(t, address), config, "reader")
	all := newLedger()
	listenAs(t.Context(), t, l, "a", all, 0)
	listenAs(t.Context(), t, other, "b", all, 0)
	const keys, each = 10, 20
	for n := range each {
		for k := range keys {
			silently(t, l, fmt.Sprint("k", k), n)
		}
	}
	eventually(t, "all messages", func() bool { return all.count() >= keys*each })
	all.check(t, keys, each)
}
