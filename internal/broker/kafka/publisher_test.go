package kafka_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/kafkatest"
	"postbus/internal/servertest"
)

// TestAcknowledgedOutlivesTheServer: the brokers are killed right after the acknowledgement.
func TestAcknowledgedOutlivesTheServer(t *testing.T) {
	t.Parallel()
	server := kafkatest.Start(t, 1)
	b := provisioned(t, server.URL())
	id := publish(t, b, "k", 1)
	server.Kill()
	server.Start()
	again := provisioned(t, server.URL())
	if got, _ := brokertest.Read(t, again, "user", nil, 1); got[0].UUID != id {
		t.Errorf("read %s, want %s", got[0].UUID, id)
	}
}

// TestAllReplicasAreAsked: a request wants the acknowledgement of all replicas in sync, and is numbered, so that what the driver
// sends again by itself is stored once.
func TestAllReplicasAreAsked(t *testing.T) {
	t.Parallel()
	c := cluster(t, 3)
	b := provisioned(t, urlOf(c))
	var acks []int16
	var numbered bool
	c.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		produce := request.(*kmsg.ProduceRequest) //nolint:forcetypeassert // by its key
		acks = append(acks, produce.Acks)
		var batch kmsg.RecordBatch
		if err := batch.ReadFrom(produce.Topics[0].Partitions[0].Records); err == nil {
			numbered = batch.ProducerID >= 0 && batch.FirstSequence >= 0
		}
		return nil, nil, false
	})
	publish(t, b, "k", 1)
	if len(acks) != 1 || acks[0] != -1 || !numbered {
		t.Errorf("acks are %v, numbered: %t", acks, numbered)
	}
}

// TestLostAnswerIsNoRepeat: an answer that is lost has the driver send again, and the message is stored once.
func TestLostAnswerIsNoRepeat(t *testing.T) {
	t.Parallel()
	c := cluster(t, 1)
	b := provisioned(t, urlOf(c))
	fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 2}) // stored, and not said so
	first, second := publish(t, b, "k", 1), publish(t, b, "k", 2)
	if fault.Hits() != 2 {
		t.Errorf("%d answers were lost", fault.Hits())
	}
	got, places := brokertest.Read(t, b, "user", nil, 2)
	if got[0].UUID != first || got[1].UUID != second {
		t.Errorf("read %s, %s", got[0].UUID, got[1].UUID)
	}
	last := publish(t, b, "k", 3)
	if got, _ := brokertest.Read(t, b, "user", places, 1); got[0].UUID != last {
		t.Errorf("read %s, want %s", got[0].UUID, last)
	}
}

// TestTooFewReplicasInSync: what the replicas do not have is not acknowledged, and comes in its order when they are back.
func TestTooFewReplicasInSync(t *testing.T) {
	t.Parallel()
	c := cluster(t, 3)
	b := provisioned(t, urlOf(c))
	fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	m := brokertest.New("k", 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	m.SetContext(ctx)
	if err := b.Publisher().Publish("user", m); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("published to too few replicas: %v", err)
	}
	fault.Remove()
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Error(err)
	}
	publish(t, b, "k", 2)
	r := reader(t, b, nil)
	var ids []string
	for len(ids) == 0 || ids[len(ids)-1] != `{"n":2}` {
		for _, m := range next(t, r).Messages {
			ids = append(ids, string(m.Payload))
		}
	}
	if got := strings.Join(ids, " "); got != `{"n":1} {"n":2}` && got != `{"n":1} {"n":1} {"n":2}` {
		t.Errorf("read %s", got)
	}
}

// TestServerThatIsAway: nothing waits for a server for long, and a password is in no error.
func TestServerThatIsAway(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	b := open(t, "kafka://user:secretword@127.0.0.1:1")
	defer b.Close()
	m := brokertest.New("k", 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m.SetContext(ctx)
	for name, err := range map[string]error{
		"provision": b.Provision(ctx, "user"), "publish": b.Publisher().Publish("user", m),
	} {
		var refused *broker.RefusedError
		if err == nil || ctx.Err() != nil || errors.As(err, &refused) || strings.Contains(err.Error(), "secretword") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
