package kafka_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kversion"
	"go.uber.org/goleak"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/broker/kafka"
	"postbus/internal/kafkatest"
)

func TestMain(m *testing.M) {
	if kafkatest.Main() {
		return
	}
	goleak.VerifyTestMain(m)
}

const patience = time.Minute

var quiet = slog.New(slog.DiscardHandler)

// cluster starts so many brokers in this process.
func cluster(t *testing.T, brokers int, options ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(brokers)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func urlOf(c *kfake.Cluster) string { return "kafka://" + strings.Join(c.ListenAddrs(), ",") }

func open(t *testing.T, url string) *kafka.Broker {
	t.Helper()
	a, err := broker.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	b, err := kafka.Open(a, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// provisioned returns a broker that has the topic "user".
func provisioned(t *testing.T, url string) *kafka.Broker {
	t.Helper()
	b := open(t, url)
	t.Cleanup(func() { _ = b.Close() })
	eventually(t, "a topic", func() bool { return b.Provision(t.Context(), "user") == nil })
	return b
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for ; !condition(); <-time.After(10 * time.Millisecond) { // polls what has no signal
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

func publish(t *testing.T, b broker.Broker, key string, n int) string {
	t.Helper()
	m := brokertest.New(key, n)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	return m.UUID
}

func TestBroker(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		brokers  int
		versions *kversion.Versions
	}{"one": {1, kversion.Stable()}, "three": {3, kversion.Stable()}, "old": {1, kversion.V2_8_0()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := cluster(t, test.brokers, kfake.MaxVersions(test.versions))
			brokertest.Run(t, kafka.Kind().Capabilities, func(t *testing.T) func() broker.Broker {
				t.Helper()
				prefix := strings.ToLower(strings.Map(func(r rune) rune {
					if r >= 'a' && r <= 'z' {
						return r
					}
					return -1
				}, t.Name()))
				url := urlOf(c) + "?prefix=" + prefix[max(len(prefix)-30, 0):]
				return func() broker.Broker { return open(t, url) }
			})
		})
	}
}
