package nats_test

import (
	"errors"
	"testing"

	"postbus/internal/broker"
	"postbus/internal/broker/nats"
)

// TestPasswordOfNobody is refused rather than left out.
func TestPasswordOfNobody(t *testing.T) {
	t.Parallel()
	a, err := broker.Parse("nats://one?password_file=f")
	if err != nil {
		t.Fatal(err)
	}
	var refused *broker.URLError
	if err := nats.Kind().Check(a); !errors.As(err, &refused) {
		t.Errorf("a password and no user: %v", err)
	}
}
