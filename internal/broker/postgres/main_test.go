package postgres

import (
	"testing"

	"postbus/internal/pgtest"
)

// TestMain runs the tests on a server apart. A partition is closed when all transactions have ended that began before the next
// one was there, in whatever database.
func TestMain(m *testing.M) {
	pgtest.Apart("log")
	m.Run()
}
