package kafka_test

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestPartitionThatFails, as with a disk that is broken, ends each reader, but what the other partitions have arrives.
func TestPartitionThatFails(t *testing.T) {
	t.Parallel()
	c := cluster(t, 1)
	b := provisioned(t, urlOf(c)+"?partitions=2")
	client := plain(t, urlOf(c))
	produce(t, client, 0, "bad")
	produce(t, client, 1, "good")
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Partitions: []int32{0}, Err: kerr.UnknownServerError, Count: -1})
	deadline := time.Now().Add(20 * time.Second)
	for {
		r, err := b.Reader(t.Context(), "user", nil)
		if err != nil {
			t.Fatal(err)
		}
		batch, err := r.Next(t.Context())
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			if batch.Messages[0].UUID != "good" {
				t.Errorf("read %s", batch.Messages[0].UUID)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing arrives: %v", err)
		}
	}
}
