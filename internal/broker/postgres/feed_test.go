package postgres

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"postbus/internal/servertest"
)

// fed reads a topic from a place until all of the payloads have come, in whatever company, and returns the place behind.
func fed(t *testing.T, l *Log, from string, want ...string) (place string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f, fits, err := l.Feed(ctx, "user", from, Beginning())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !fits {
		t.Error("the server has gone back behind the place")
	}
	missing := make(map[string]bool)
	for _, payload := range want {
		missing[payload] = true
	}
	for len(missing) > 0 {
		messages, next, err := f.Next(ctx)
		if err != nil {
			t.Fatalf("%d of %d events did not come: %v", len(missing), len(want), err)
		}
		for _, m := range messages {
			delete(missing, string(m.Payload))
		}
		place = next
	}
	return place
}

// TestFeedAfterFailover: a server that has lost commits and has gone past a place with others does not have them passed over.
func TestFeedAfterFailover(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, server := ownLog(t, Config{})
	withoutAutovacuum(t, l)
	publishes := func(from, n int) (payloads []string) {
		t.Helper()
		for i := range n {
			m := event("k", from+i)
			publish(t, l, m)
			payloads = append(payloads, string(m.Payload))
		}
		return payloads
	}
	publishes(0, 1)
	data, backup := filepath.Join(server.Dir(), "data"), filepath.Join(server.Dir(), "backup")
	server.Stop()
	command(t, "cp", "-a", data, backup)
	server.Start()
	eventuallyConnected(t, l)
	place := fed(t, l, "", publishes(100, 20)...)
	server.Stop()
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	command(t, "mv", backup, data)
	server.Start()
	eventuallyConnected(t, l)
	place = fed(t, l, place, publishes(200, 40)...)

	// On the same start it goes on from there.
	next := publishes(300, 1)
	f, _, err := l.Feed(t.Context(), "user", place, Beginning())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if messages, _, err := f.Next(t.Context()); err != nil || len(messages) != 1 || string(messages[0].Payload) != next[0] {
		t.Errorf("read %d messages, %v", len(messages), err)
	}
}
