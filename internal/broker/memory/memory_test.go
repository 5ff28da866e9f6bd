package memory_test

import (
	"testing"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/broker/memory"
)

func TestBroker(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, memory.Kind().Capabilities, func(*testing.T) func() broker.Broker {
		b := memory.New()
		return func() broker.Broker { return b }
	})
}
