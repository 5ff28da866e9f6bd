// Package proof_test judges the SQL log from outside: by Watermill's own suite for Pub/Subs, and by a soak in which
// reader processes, sessions and Postgres itself are made to fail while a checker knows what was written. It uses
// nothing of the log but what programs use.
package proof_test

import (
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"
)

var quiet = slog.New(slog.DiscardHandler)

// TestMain is also the main function of the reader processes, which are this binary with a variable set.
func TestMain(m *testing.M) {
	if os.Getenv(readerVariable) != "" {
		if err := readerMain(); err != nil {
			panic(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}
