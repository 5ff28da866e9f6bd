package redis_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/redistest"
	"postbus/internal/servertest"
)

// TestFailover: a replica takes the server's place, told of by sentinels, and with replicas=1 nothing that was acknowledged is lost.
func TestFailover(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const timing = "repl-diskless-sync-delay 0\n"
	server := redistest.StartWith(t, redistest.Durable+timing)
	replica := redistest.StartWith(t, redistest.Durable+timing+fmt.Sprintf("replicaof 127.0.0.1 %d\n", server.Port()))
	sentinel := redistest.StartSentinel(t, server, "shop")
	url := fmt.Sprintf("redis://127.0.0.1:1,%s?master=shop&replicas=1", sentinel.Addr())
	b := provisioned(t, url)
	var sent []string
	send := func(n int) {
		t.Helper()
		m := brokertest.New("k", n)
		m.SetContext(t.Context())
		eventually(t, "an acknowledgement", func() bool { return b.Publisher().Publish("user", m) == nil })
		sent = append(sent, m.UUID)
	}
	send(0)
	eventually(t, "the sentinel to know the replica", func() bool {
		replicas, err := sentinel.Client().Do(t.Context(), "sentinel", "replicas", "shop").Slice()
		return err == nil && len(replicas) == 1
	})
	places := make(map[string]string)
	got := readUpTo(t, b, places, sent[0])
	send(1)
	server.Kill()
	eventually(t, "the replica to take its place", func() bool {
		role, err := replica.Client().Do(t.Context(), "role").Slice()
		return err == nil && role[0] == "master"
	})
	server.Start() // the sentinel makes it a replica
	send(2)
	if got = append(got, readUpTo(t, b, places, sent[2])...); !slices.Equal(got, sent) {
		t.Errorf("read %v, want %v", got, sent)
	}
	refuses(t, fmt.Sprintf("redis://%s?master=another", sentinel.Addr()), "the sentinels know no server by the name")
}

// readUpTo reads a topic until the message has come, and returns which have, each once. It keeps the places.
func readUpTo(t *testing.T, b broker.Broker, places map[string]string, id string) (got []string) {
	t.Helper()
	r, err := b.Reader(t.Context(), "user", places)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), readerPatience)
	defer cancel()
	for !slices.Contains(got, id) {
		batch, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("read only %v: %v", got, err)
		}
		for _, m := range batch.Messages {
			if !slices.Contains(got, m.UUID) {
				got = append(got, m.UUID)
			}
		}
		places[batch.Partition] = batch.Place
	}
	return got
}
