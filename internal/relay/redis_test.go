package relay_test

import (
	"testing"

	"postbus/internal/broker/redis"
	"postbus/internal/redistest"
	"postbus/internal/servertest"
)

// TestRelayDiesBetweenAckAndNoteOverRedis, which recognises nothing that is published again.
func TestRelayDiesBetweenAckAndNoteOverRedis(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := redistest.Start(t)
	relayDies(t, server.URL(), func() (int64, error) { return server.Client().XLen(t.Context(), "postbus:"+topic).Result() })
}

// TestWatermillsSuiteOverRedis is the same over Redis. It runs by itself: beside three other suites on two cores, under -race, its
// leases of a second and the suite's limits of 15 s measure the machine.
func TestWatermillsSuiteOverRedis(t *testing.T) {
	servertest.Thorough(t)
	runSuite(t, redis.Kind(), redistest.Start(t).URL()+"?prefix=suite")
}
