package kafka

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
)

// TestForgettingLosesNothing: what looks at its topics anew numbers messages anew; the brokers must not take the next one for a
// repeat of an earlier one, and acknowledge what they do not store.
func TestForgettingLosesNothing(t *testing.T) {
	t.Parallel()
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := broker.Parse("kafka://" + strings.Join(c.ListenAddrs(), ","))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(a, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	var sent []string
	for n := range 2 {
		m := brokertest.New("k", n)
		m.SetContext(t.Context())
		if err := b.Publisher().Publish("user", m); err != nil {
			t.Fatal(err)
		}
		sent = append(sent, m.UUID)
		b.forget()
	}
	got, _ := brokertest.Read(t, b, "user", nil, len(sent))
	for n, m := range got {
		if m.UUID != sent[n] {
			t.Errorf("read %s, want %s", m.UUID, sent[n])
		}
	}
}
