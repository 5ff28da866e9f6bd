package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/kafkatest"
	"postbus/internal/servertest"
)

// next reads a batch, or fails.
func next(t *testing.T, r broker.Reader) broker.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	batch, err := r.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

func reader(t *testing.T, b broker.Broker, places map[string]string) broker.Reader {
	t.Helper()
	r, err := b.Reader(t.Context(), "user", places)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestTopicThatIsNotTheSame: a topic that was made anew, or one that has lost its end, is read from its beginning.
func TestTopicThatIsNotTheSame(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	c := cluster(t, 3)
	b := provisioned(t, urlOf(c))
	publish(t, b, "k", 1)
	publish(t, b, "k", 2)
	_, places := brokertest.Read(t, b, "user", nil, 2)

	if err := c.DeleteTopic("postbus-user"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a topic", func() bool { return b.Provision(t.Context(), "user") == nil })
	var first string
	eventually(t, "the publisher to know the topic that was made anew", func() bool {
		m := brokertest.New("k", 3)
		m.SetContext(t.Context())
		first = m.UUID
		return b.Publisher().Publish("user", m) == nil
	})
	got, fresh := brokertest.Read(t, b, "user", maps.Clone(places), 1)
	if got[0].UUID != first {
		t.Errorf("after the topic was made anew %s was read first, want %s", got[0].UUID, first)
	}

	// As after a power failure: the end is gone, or another message has the offset that was read last.
	for what, change := range map[string]func(parts []string){
		"another message in its place": func(parts []string) { parts[2] = "1" },
		"its end gone":                 func(parts []string) { parts[1] = "7" },
		"another topic of its name":    func(parts []string) { parts[0] = strings.Repeat("0", 32) },
	} {
		lost := maps.Clone(fresh)
		for partition, place := range lost {
			parts := strings.Split(place, "/")
			change(parts)
			lost[partition] = strings.Join(parts, "/")
		}
		if got, _ := brokertest.Read(t, b, "user", lost, 1); got[0].UUID != first {
			t.Errorf("with %s %s was read first, want %s", what, got[0].UUID, first)
		}
	}
}

// TestTopicIsMadeAnewWhileRead: the reader ends, and the next one reads what has come since.
func TestTopicIsMadeAnewWhileRead(t *testing.T) {
	t.Parallel()
	for name, versions := range map[string]*kversion.Versions{"2.8": kversion.V2_8_0(), "now": kversion.Stable()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			madeAnewWhileRead(t, cluster(t, 1, kfake.MaxVersions(versions)))
		})
	}
}

func madeAnewWhileRead(t *testing.T, c *kfake.Cluster) {
	t.Helper()
	b := provisioned(t, urlOf(c))
	publish(t, b, "k", 1)
	r := reader(t, b, nil)
	places := make(map[string]string)
	batch := next(t, r)
	places[batch.Partition] = batch.Place
	if err := c.DeleteTopic("postbus-user"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a topic", func() bool { return b.Provision(t.Context(), "user") == nil })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if batch, err := r.Next(ctx); err == nil || ctx.Err() != nil {
		t.Fatalf("a topic that was made anew was read on: %v, %v", batch, err)
	}
	eventually(t, "the publisher to know the topic that was made anew", func() bool {
		m := brokertest.New("k", 2)
		m.SetContext(t.Context())
		return b.Publisher().Publish("user", m) == nil
	})
	if got, _ := brokertest.Read(t, b, "user", places, 1); string(got[0].Payload) != `{"n":2}` {
		t.Errorf("read %s", got[0].Payload)
	}
}

// drop has the brokers drop what is before an offset.
func drop(t *testing.T, c *kfake.Cluster, partition string, before int64) {
	t.Helper()
	var number int32
	if _, err := fmt.Sscanf(partition, "kafka:postbus-user/%d", &number); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteRecords("postbus-user", number, before); err != nil {
		t.Fatal(err)
	}
}

// TestGapIsNotPassedOver: what the broker has dropped before it was read stops the reading, unless that is meant. What was read
// may go.
func TestGapIsNotPassedOver(t *testing.T) {
	t.Parallel()
	c := cluster(t, 3)
	b := provisioned(t, urlOf(c))
	publish(t, b, "k", 1)
	_, places := brokertest.Read(t, b, "user", nil, 1)
	second := publish(t, b, "k", 2)
	last := publish(t, b, "k", 3)
	for partition := range places {
		drop(t, c, partition, 1)
		if got, _ := brokertest.Read(t, b, "user", maps.Clone(places), 2); got[0].UUID != second {
			t.Errorf("read %s behind what was read and is gone, want %s", got[0].UUID, second)
		}
		drop(t, c, partition, 2)
	}
	var gap *broker.GapError
	if _, err := b.Reader(t.Context(), "user", maps.Clone(places)); !errors.As(err, &gap) || gap.Events != 1 {
		t.Errorf("reading over a gap: %v", err)
	}
	skipping := provisioned(t, urlOf(c)+"?gap=skip")
	if got, _ := brokertest.Read(t, skipping, "user", places, 1); got[0].UUID != last {
		t.Errorf("read %s, want %s", got[0].UUID, last)
	}
}

// TestGapWhileReading: what goes while a reader is on its way is not passed over either.
func TestGapWhileReading(t *testing.T) {
	t.Parallel()
	c := cluster(t, 1)
	b := provisioned(t, urlOf(c))
	publish(t, b, "k", 1)
	_, places := brokertest.Read(t, b, "user", nil, 1)
	publish(t, b, "k", 2)
	publish(t, b, "k", 3)
	dropped := make(chan struct{})
	c.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.SleepControl(func() { <-dropped }) // the first request waits
		return nil, nil, false
	})
	r := reader(t, b, places)
	for partition := range places {
		drop(t, c, partition, 2)
	}
	close(dropped)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	batch, err := r.Next(ctx)
	if err == nil || ctx.Err() != nil {
		t.Fatalf("read %d messages over a gap: %v", len(batch.Messages), err)
	}
	var gap *broker.GapError
	if _, err := b.Reader(t.Context(), "user", places); !errors.As(err, &gap) || gap.Events != 1 {
		t.Errorf("reading over a gap: %v", err)
	}
}

// TestPartitionsThatCome while a topic is read are read too, and no key moves to them.
func TestPartitionsThatCome(t *testing.T) {
	t.Parallel()
	c := cluster(t, 3)
	url := urlOf(c)
	b := provisioned(t, url)
	r := reader(t, b, nil)
	var want []string
	for k := range 40 {
		want = append(want, publish(t, b, fmt.Sprint("key-", k), 0))
	}
	client := plain(t, url)
	if _, err := kadm.NewClient(client).CreatePartitions(t.Context(), 8, "postbus-user"); err != nil {
		t.Fatal(err)
	}
	late := provisioned(t, url)
	where := make(map[string]string)
	var got []string
	count := func(n int) {
		for len(got) < n {
			batch := next(t, r)
			for _, m := range batch.Messages {
				got = append(got, m.UUID)
				key := m.Metadata["partitionkey"]
				if before, ok := where[key]; ok && before != batch.Partition {
					t.Errorf("%s was in %s and is in %s", key, before, batch.Partition)
				}
				where[key] = batch.Partition
			}
		}
	}
	count(40)
	for k := range 40 {
		want = append(want, publish(t, late, fmt.Sprint("key-", k), 1))
	}
	count(80)
	foreign := brokertest.New("", 1)
	produce(t, client, 19, foreign.UUID)
	count(81)
	if want = append(want, foreign.UUID); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("read %d messages that are not those %d", len(got), len(want))
	}
}

// TestLeadersMove while events are published and read: each arrives, in its key's order.
func TestLeadersMove(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const keys, each, moves = 16, 60, 100
	c := cluster(t, 3)
	b := provisioned(t, urlOf(c))
	moving, stop := context.WithCancel(t.Context())
	var running, publishing sync.WaitGroup
	running.Go(func() {
		// So many, since on a busy machine they may move before anybody has followed them.
		for n := 0; n < moves && moving.Err() == nil; n++ {
			c.ShufflePartitionLeaders()
			select {
			case <-moving.Done():
			case <-time.After(30 * time.Millisecond): // how often is up to the test
			}
		}
	})
	for k := range keys {
		publishing.Go(func() {
			for n := range each {
				m := brokertest.New(fmt.Sprint("key-", k), n)
				m.SetContext(t.Context())
				for b.Publisher().Publish("user", m) != nil { // the same again, as the relay has it
					if t.Context().Err() != nil {
						return
					}
				}
			}
		})
	}
	got := readInOrder(t, b, keys*each)
	publishing.Wait()
	stop()
	running.Wait()
	for key, n := range got {
		if n != each {
			t.Errorf("%s: %d of %d", key, n, each)
		}
	}
}

// readInOrder reads until so many messages have come for the first time, and checks that those of a key count up. It returns how
// many each key has.
func readInOrder(t *testing.T, b broker.Broker, n int) map[string]int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	seen := make(map[string]bool)
	counts := make(map[string]int)
	places := make(map[string]string)
	for len(seen) < n && ctx.Err() == nil {
		r, err := b.Reader(ctx, "user", places)
		if err != nil {
			continue
		}
		for len(seen) < n {
			batch, err := r.Next(ctx)
			if err != nil {
				break
			}
			places[batch.Partition] = batch.Place
			for _, m := range batch.Messages {
				if seen[m.UUID] {
					continue
				}
				seen[m.UUID] = true
				key := m.Metadata["partitionkey"]
				if want := fmt.Sprintf(`{"n":%d}`, counts[key]); string(m.Payload) != want {
					t.Errorf("%s: %s comes where %s should", key, m.Payload, want)
				}
				counts[key]++
			}
		}
		_ = r.Close()
	}
	if len(seen) < n {
		t.Fatalf("read only %d of %d messages", len(seen), n)
	}
	return counts
}

// TestServerThatHangs: a reader that gets no answer says so after a while, and whoever stops does not wait for the brokers.
func TestServerThatHangs(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := kafkatest.Start(t, 2)
	b := open(t, server.URL())
	eventually(t, "a topic", func() bool { return b.Provision(t.Context(), "user") == nil })
	publish(t, b, "k", 1)
	r, err := b.Reader(t.Context(), "user", nil)
	if err != nil {
		t.Fatal(err)
	}
	next(t, r)
	server.Signal(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := r.Next(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("reading from brokers that hang: %v", err)
	}
	m := brokertest.New("k", 2)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err == nil {
		t.Error("published to brokers that hang")
	}
	began := time.Now()
	if err := errors.Join(r.Close(), b.Close()); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("closing took %s: %v", time.Since(began), err)
	}
}
