package relay_test

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"postbus/internal/broker/kafka"
	"postbus/internal/kafkatest"
	"postbus/internal/natstest"
	"postbus/internal/servertest"
)

// kafkaProcess has three brokers, which tell of the ways that lead to them.
type kafkaProcess struct {
	*kafkatest.Cluster
	ways []*natstest.Proxy
}

func startKafka(t *testing.T) *kafkaProcess {
	t.Helper()
	k := &kafkaProcess{}
	k.Cluster = kafkatest.StartBehind(t, 3, func(address string) string {
		proxy := natstest.NewProxy(t, address)
		k.ways = append(k.ways, proxy)
		return proxy.Addr()
	})
	return k
}

func (k *kafkaProcess) Cut() {
	for _, way := range k.ways {
		way.Cut()
	}
}

func (k *kafkaProcess) Mend() {
	for _, way := range k.ways {
		way.Mend()
	}
}

func (k *kafkaProcess) Slow(roundTrip time.Duration, rate int) {
	for _, way := range k.ways {
		way.Slow(roundTrip, rate)
	}
}

// kafkaHere starts three brokers in this process.
func kafkaHere(t *testing.T) (cluster *kfake.Cluster, url string) {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster, "kafka://" + strings.Join(cluster.ListenAddrs(), ",")
}

// TestWatermillsSuiteOverKafka runs it as TestWatermillsSuite does.
func TestWatermillsSuiteOverKafka(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	_, url := kafkaHere(t)
	runSuite(t, kafka.Kind(), url+"?prefix=suite")
}

// TestRelayDiesBetweenAckAndNoteOverKafka, which recognises nothing that another process publishes again.
func TestRelayDiesBetweenAckAndNoteOverKafka(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	cluster, url := kafkaHere(t)
	relayDies(t, url, func() (stored int64, err error) {
		for _, p := range cluster.PartitionInfos("postbus-" + topic) {
			stored += p.HighWatermark
		}
		return stored, nil
	})
}

// TestKafkaBrokerIsLostWhilePublishing: of three brokers any one may go, and leaders move.
func TestKafkaBrokerIsLostWhilePublishing(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	cluster, url := kafkaHere(t)
	w := newWay(t)
	c := w.start(url, 0)
	w.write(10)
	w.awaitEffects(w.total())
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.write(60)
	}()
	w.awaitEffects(w.effects() + 20) // in the middle of it
	if err := cluster.RemoveNode(cluster.LeaderFor("postbus-"+topic, 0)); err != nil {
		t.Fatal(err)
	}
	w.awaitEffects(w.effects() + 20)
	cluster.ShufflePartitionLeaders()
	<-written
	w.verify()
	c.stop()
}
