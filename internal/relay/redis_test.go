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
	w := newWay(t)
	w.write(20)
	for _, after := range []int64{1, 7, 30} {
		w.start(server.URL(), after).dies()
		w.expire()
		w.write(2)
	}
	c := w.start(server.URL(), 0)
	w.verify()
	n, err := server.Client().XLen(t.Context(), "postbus:"+topic).Result()
	if err != nil {
		t.Fatal(err)
	}
	if int(n) <= w.total() {
		t.Errorf("the broker has %d messages of %d events: none was published twice", n, w.total())
	}
	c.stop()
}

// TestWatermillsSuiteOverRedis is the same over Redis. It runs by itself: beside three other suites on two cores, under -race, its
// leases of a second and the suite's limits of 15 s measure the machine.
func TestWatermillsSuiteOverRedis(t *testing.T) {
	servertest.Thorough(t)
	runSuite(t, redis.Kind(), redistest.Start(t).URL()+"?prefix=suite")
}
