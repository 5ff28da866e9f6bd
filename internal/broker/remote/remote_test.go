package remote_test

import (
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/broker/remote"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, address string) *remote.Broker {
	t.Helper()
	a, err := broker.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	b, err := remote.Open(a, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBroker(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, remote.Kind().Capabilities, func(t *testing.T) func() broker.Broker {
		t.Helper()
		address := unchecked(t, pgtest.URL(t))
		return func() broker.Broker { return open(t, address) }
	})
}

// TestAcknowledgedOutlivesTheServer: the server is killed right after the acknowledgement.
func TestAcknowledgedOutlivesTheServer(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := pgtest.Own(t)
	b := open(t, unchecked(t, server.URL()))
	defer b.Close()
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	m := brokertest.New("k", 1)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	server.Start()
	again := open(t, unchecked(t, server.URL()))
	defer again.Close()
	if got, _ := brokertest.Read(t, again, "user", nil, 1); got[0].UUID != m.UUID {
		t.Errorf("read %s, want %s", got[0].UUID, m.UUID)
	}
}

// TestPlaceOfAnotherServer: a place that the server has gone back behind is not gone on from.
func TestPlaceOfAnotherServer(t *testing.T) {
	t.Parallel()
	b := open(t, unchecked(t, pgtest.URL(t)))
	defer b.Close()
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	m := brokertest.New("k", 1)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	_, places := brokertest.Read(t, b, "user", nil, 1)
	for partition := range places {
		places[partition] = `{"snapshot": "4000000000:4000000000:", "floor": 900}`
	}
	if got, _ := brokertest.Read(t, b, "user", places, 1); got[0].UUID != m.UUID {
		t.Errorf("read %s, want %s", got[0].UUID, m.UUID)
	}
}

// unchecked says that a server may lose commits when its machine fails, as those of tests do.
func unchecked(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("durability", "unchecked")
	u.RawQuery = q.Encode()
	return u.String()
}

// TestServerThatLosesCommits when its machine fails is refused, unless that is meant.
func TestServerThatLosesCommits(t *testing.T) {
	t.Parallel()
	address := pgtest.URL(t)
	b := open(t, address)
	defer b.Close()
	var refused *broker.RefusedError
	if err := b.Provision(t.Context(), "user"); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "fsync=off") {
		t.Errorf("without fsync: %v", err)
	}
	meant := open(t, unchecked(t, address))
	defer meant.Close()
	if err := meant.Provision(t.Context(), "user"); err != nil {
		t.Errorf("without fsync, which is meant: %v", err)
	}
}

// TestRefusal: what no waiting will mend is told apart, without the password.
func TestRefusal(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/there_is_none"
	missing := open(t, u.String())
	defer missing.Close()
	var refused *broker.RefusedError
	if err := missing.Provision(t.Context(), "user"); !errors.As(err, &refused) {
		t.Errorf("a database that is missing: %v", err)
	}
	for _, parameter := range []string{"provision=verify", "prefix=a", "statement_timeout=long"} {
		refused = nil
		unknown := open(t, pgtest.URL(t)+"&"+parameter)
		if err := unknown.Provision(t.Context(), "user"); !errors.As(err, &refused) {
			t.Errorf("%s: %v", parameter, err)
		}
		_ = unknown.Close()
	}
	away := open(t, "postgres://u:secretword@127.0.0.1:1/db")
	defer away.Close()
	if err := away.Provision(t.Context(), "user"); err == nil ||
		strings.Contains(err.Error(), "secretword") {
		t.Errorf("a server that is away: %v", err)
	}
	m := brokertest.New("k", 1)
	m.SetContext(t.Context())
	began := time.Now()
	if err := away.Publisher().Publish("user", m); err == nil || time.Since(began) > time.Minute {
		t.Errorf("publishing to a server that is away: %v after %s", err, time.Since(began))
	}
}
