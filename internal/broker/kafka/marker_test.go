package kafka_test

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestMarkInTheLastMessagesPlace: where the end was lost and the end of somebody's transaction has come to the offset that was read
// last, which is no message, the partition is read again all the same.
func TestMarkInTheLastMessagesPlace(t *testing.T) {
	t.Parallel()
	url := urlOf(cluster(t, 1))
	b := provisioned(t, url+"?partitions=1")
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.TrimPrefix(url, "kafka://")), kgo.TransactionalID("other"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "postbus-user", Value: []byte("first")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := client.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	publish(t, b, "k", 2)
	r := reader(t, b, nil)
	var batch = next(t, r)
	for string(batch.Messages[len(batch.Messages)-1].Payload) != `{"n":2}` {
		batch = next(t, r)
	}
	parts := strings.Split(batch.Place, "/")
	if parts[1] != "2" {
		t.Fatalf("the message behind a transaction has the place %s", batch.Place)
	}
	parts[1] = "1"
	again := reader(t, b, map[string]string{batch.Partition: strings.Join(parts, "/")})
	if got := string(next(t, again).Messages[0].Payload); got != "first" {
		t.Errorf("read %s, want what was there before", got)
	}
}
