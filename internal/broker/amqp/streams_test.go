package amqp_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	driver "github.com/rabbitmq/amqp091-go"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/rabbittest"
	"postbus/internal/servertest"
)

// TestStreamThatIsNotTheSame: a stream that was made anew, or one that has lost its end, is read again.
func TestStreamThatIsNotTheSame(t *testing.T) {
	t.Parallel()
	server := rabbittest.Shared(t)
	channel := connect(t, server)
	b := provisioned(t, server, "")
	publish(t, b, 1)
	publish(t, b, 2)
	_, places := brokertest.Read(t, b, "user", nil, 2)

	if _, err := channel.QueueDelete(prefix(t)+"-user", false, false, false); err != nil {
		t.Fatal(err)
	}
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	if r, err := b.Reader(t.Context(), "user", places); err == nil { // it may be about to have them: where to read on is not known yet
		_ = r.Close()
		t.Error("a stream without messages is read on behind one")
	}
	ids := []string{publish(t, b, 3)}
	if got, _ := brokertest.Read(t, b, "user", places, 1); got[0].UUID != ids[0] {
		t.Errorf("after the stream was made anew %s was read first, want %s", got[0].UUID, ids[0])
	}
	// The offset that was read is there again, with another message.
	ids = append(ids, publish(t, b, 4), publish(t, b, 5))
	got, _ := brokertest.Read(t, b, "user", places, 3)
	for i, m := range got {
		if m.UUID != ids[i] {
			t.Errorf("with another message in its place %s was read, want %s", m.UUID, ids[i])
		}
	}
}

// TestTwoReaders: who reads takes nothing from others.
func TestTwoReaders(t *testing.T) {
	t.Parallel()
	server := rabbittest.Shared(t)
	b := provisioned(t, server, "")
	other, err := provisioned(t, server, "").Reader(t.Context(), "user", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	const n = 20
	want := make([]string, n)
	for i := range want {
		want[i] = publish(t, b, i)
	}
	for range 2 {
		got, _ := brokertest.Read(t, b, "user", nil, n)
		if seen := ids(got); !slices.Equal(seen, want) {
			t.Errorf("read %q, want %q", seen, want)
		}
	}
	var seen []string
	for len(seen) < n {
		batch, err := other.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, ids(batch.Messages)...)
	}
	if !slices.Equal(seen, want) {
		t.Errorf("the other read %q, want %q", seen, want)
	}
}

// TestGapIsNotPassedOver: what the broker has dropped before it was read stops the reading, unless that is meant.
func TestGapIsNotPassedOver(t *testing.T) {
	t.Parallel()
	server := rabbittest.Shared(t)
	channel := connect(t, server)
	name := prefix(t) + "-user"
	if _, err := channel.QueueDeclare(name, true, false, false, false, driver.Table{
		"x-queue-type": "stream", "x-max-length-bytes": int64(2000), "x-stream-max-segment-size-bytes": int64(1000),
	}); err != nil {
		t.Fatal(err)
	}
	b := provisioned(t, server, "&provision=verify")
	publish(t, b, 0)
	_, places := brokertest.Read(t, b, "user", nil, 1)
	var begin int64
	for n := 1; begin < 2; n++ { // until the first ones have gone
		publish(t, b, n)
		probe := connect(t, server)
		begin, _ = receive(t, consume(t, probe, name, "first")).Headers["x-stream-offset"].(int64)
	}
	var gap *broker.GapError
	if _, err := b.Reader(t.Context(), "user", maps.Clone(places)); !errors.As(err, &gap) || gap.Events != uint64(begin-1) {
		t.Errorf("reading over a gap up to %d: %v", begin, err)
	}
	last := publish(t, b, 1000)
	readUntil(t, provisioned(t, server, "&provision=verify&gap=skip"), places, last)
}

// TestStreamsOfOthers: what would lose events that it acknowledges is refused with the difference.
func TestStreamsOfOthers(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := rabbittest.Shared(t)
	channel := connect(t, server)
	ours := driver.Table{
		"x-queue-type": "stream", "x-initial-cluster-size": int64(3), "x-stream-max-segment-size-bytes": int64(128 << 20),
	}
	with := func(name string, value any) driver.Table {
		all := maps.Clone(ours)
		all[name] = value
		return all
	}
	const verify = "&provision=verify"
	tests := map[string]struct {
		arguments driver.Table
		query     string
		want      string // part of the refusal, or "" for none
	}{
		"missing": {nil, verify, "there is no stream "},
		"right":   {ours, "", ""},
		"owned":   {driver.Table{"x-queue-type": "stream"}, verify, ""},
		"quorum":  {driver.Table{"x-queue-type": "quorum"}, verify, "is no stream, and drops events"},
		"classic": {driver.Table{}, verify, "is no stream, and drops events"},
		"queue":   {driver.Table{"x-queue-type": "quorum"}, "", "inequivalent arg 'x-queue-type'"},
		"old":     {driver.Table{}, "", "inequivalent arg "},
		"bounded": {with("x-max-length-bytes", int64(1<<30)), "", "inequivalent arg 'x-max-length-bytes'"},
		"brief":   {with("x-max-age", "1h"), "", "inequivalent arg 'x-max-age'"},
		"longer":  {with("x-max-age", "3600s"), "&retention=2h", "inequivalent arg 'x-max-age'"},
		"same":    {with("x-max-age", "3600s"), "&retention=1h", ""},
	}
	for topic, test := range tests {
		if test.arguments != nil {
			if _, err := channel.QueueDeclare(prefix(t)+"-"+topic, true, false, false, false, test.arguments); err != nil {
				t.Fatalf("%s: %v", topic, err)
			}
		}
		b := open(t, server.URL()+"?prefix="+prefix(t)+test.query)
		var refused *broker.RefusedError
		err := b.Provision(t.Context(), topic)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", topic, err)
		case test.want != "" && (!errors.As(err, &refused) || !strings.Contains(refused.Reason, test.want)):
			t.Errorf("%s: %v, want %q", topic, err, test.want)
		}
	}
}
