package amqp_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	driver "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"postbus/internal/broker"
	"postbus/internal/broker/amqp"
	"postbus/internal/broker/brokertest"
	"postbus/internal/natstest"
	"postbus/internal/rabbittest"
	"postbus/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

var quiet = slog.New(slog.DiscardHandler)

// prefix is the test's own: the tests share a server.
func prefix(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return -1
	}, t.Name()))
	return name[max(len(name)-30, 0):]
}

func open(t *testing.T, url string) *amqp.Broker {
	t.Helper()
	a, err := broker.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	b, err := amqp.Open(a, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// provisioned returns a broker that has the topic "user", with more parameters.
func provisioned(t *testing.T, s *rabbittest.Server, parameters string) *amqp.Broker {
	t.Helper()
	b := open(t, s.URL()+"?prefix="+prefix(t)+parameters)
	eventually(t, "a stream", func() bool { return b.Provision(t.Context(), "user") == nil })
	return b
}

// connect is RabbitMQ without postbus.
func connect(t *testing.T, s *rabbittest.Server) *driver.Channel {
	t.Helper()
	conn, err := driver.Dial(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return channel
}

// consume reads a stream with the plain driver.
func consume(t *testing.T, channel *driver.Channel, stream string, from any) <-chan driver.Delivery {
	t.Helper()
	if err := channel.Qos(100, 0, false); err != nil {
		t.Fatal(err)
	}
	deliveries, err := channel.Consume(stream, "", false, false, false, false, driver.Table{"x-stream-offset": from})
	if err != nil {
		t.Fatal(err)
	}
	return deliveries
}

func receive(t *testing.T, deliveries <-chan driver.Delivery) driver.Delivery {
	t.Helper()
	select {
	case d, ok := <-deliveries:
		if !ok {
			t.Fatal("the stream has ended")
		}
		return d
	case <-time.After(patience):
		t.Fatal("nothing arrives")
		return driver.Delivery{}
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for ; !condition(); <-time.After(20 * time.Millisecond) { // polls what has no signal
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

func publish(t *testing.T, b broker.Broker, n int) string {
	t.Helper()
	m := brokertest.New("k", n)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	return m.UUID
}

// TestAcknowledgedOutlivesTheServer: the server is killed right after the acknowledgement. What publishes finds it again by itself;
// while the server has too little space on its disk, it is told so at once; and a server that does not take the largest event
// is refused. The test has the server to itself, since it
// comes before those that run at the same time.
func TestAcknowledgedOutlivesTheServer(t *testing.T) {
	servertest.Thorough(t)
	server := rabbittest.Shared(t)
	b := provisioned(t, server, "")
	sent := []string{publish(t, b, 1)}
	server.Kill()
	server.Start()
	m := brokertest.New("k", 2)
	m.SetContext(t.Context())
	eventually(t, "the server to take messages again", func() bool { return b.Publisher().Publish("user", m) == nil })
	sent = append(sent, m.UUID)

	server.Control("set_disk_free_limit", "1000000000000000")
	m = brokertest.New("k", 3)
	m.SetContext(t.Context())
	eventually(t, "a word that the server takes nothing", func() bool {
		err := b.Publisher().Publish("user", m)
		return err != nil && strings.Contains(err.Error(), "the server takes nothing: low on disk")
	})
	began := time.Now()
	if err := b.Publisher().Publish("user", m); err == nil || time.Since(began) > time.Second {
		t.Errorf("publishing while the server takes nothing: %v after %s", err, time.Since(began))
	}
	server.Control("set_disk_free_limit", "50000000")
	eventually(t, "the server to take messages again", func() bool { return b.Publisher().Publish("user", m) == nil })
	sent = append(sent, m.UUID)

	server.Control("eval", "application:set_env(rabbit, max_message_size, 100000).")
	if got, want := provisions(t, server.URL()+"?prefix="+prefix(t)), "the server takes no messages as large"; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	server.Control("eval", "application:set_env(rabbit, max_message_size, 134217728).")

	// What was not known to be stored was sent again, and may be there twice.
	if got := slices.Compact(readUntil(t, provisioned(t, server, ""), nil, m.UUID)); !slices.Equal(got, sent) {
		t.Errorf("read %q, want %q", got, sent)
	}
}

// readUntil reads the topic until the event has come, and returns the ids.
func readUntil(t *testing.T, b broker.Broker, places map[string]string, last string) (got []string) {
	t.Helper()
	r, err := b.Reader(t.Context(), "user", places)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !slices.Contains(got, last) {
		batch, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got = append(got, ids(batch.Messages)...)
	}
	return got
}

func TestBroker(t *testing.T) {
	t.Parallel()
	server := rabbittest.Shared(t)
	brokertest.Run(t, amqp.Kind().Capabilities, func(t *testing.T) func() broker.Broker {
		t.Helper()
		url := server.URL() + "?prefix=" + prefix(t)
		return func() broker.Broker {
			a, err := broker.Parse(url)
			if err != nil {
				t.Fatal(err)
			}
			b, err := amqp.Open(a, quiet)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	})
}

// TestServerThatIsAway: nothing waits for a server for long, and a password is in no error.
func TestServerThatIsAway(t *testing.T) {
	t.Parallel()
	b := open(t, "amqp://user:secretword@127.0.0.1:1")
	m := brokertest.New("k", 1)
	m.SetContext(t.Context())
	_, reading := b.Reader(t.Context(), "user", nil)
	for name, err := range map[string]error{
		"provision": b.Provision(t.Context(), "user"), "publish": b.Publisher().Publish("user", m), "read": reading,
	} {
		var refused *broker.RefusedError
		if err == nil || errors.As(err, &refused) || strings.Contains(err.Error(), "secretword") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestConnectionIsLost: what publishes makes another, to another host where there are several.
func TestConnectionIsLost(t *testing.T) {
	t.Parallel()
	server := rabbittest.Shared(t)
	one, two := natstest.NewProxy(t, server.Addr()), natstest.NewProxy(t, server.Addr())
	url := rabbittest.URL(one.Addr() + "," + two.Addr())
	b := open(t, url+"?prefix="+prefix(t))
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	publish(t, b, 1)
	for n, way := range []*natstest.Proxy{one, two} {
		way.Cut()
		m := brokertest.New("k", n+2)
		m.SetContext(t.Context())
		eventually(t, "the other way", func() bool { return b.Publisher().Publish("user", m) == nil })
		way.Mend()
	}
}

// TestStreamIsDeleted: what is published to no stream is not taken for stored, and a reader of it ends.
func TestStreamIsDeleted(t *testing.T) {
	t.Parallel()
	server := rabbittest.Shared(t)
	b := provisioned(t, server, "")
	publish(t, b, 1)
	r, err := b.Reader(t.Context(), "user", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(t, server).QueueDelete(prefix(t)+"-user", false, false, false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(t.Context()); err == nil {
		t.Error("reading goes on without the stream")
	}
	for n := range 100 { // each is confirmed by the server, after it has come back
		m := brokertest.New("k", n)
		m.SetContext(t.Context())
		if err := b.Publisher().Publish("user", m); err == nil {
			t.Fatal("a message that went nowhere was taken for stored")
		}
	}
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	m := brokertest.New("k", 2)
	m.SetContext(t.Context())
	eventually(t, "the stream to take messages again", func() bool { return b.Publisher().Publish("user", m) == nil })
}

// provisions returns why the topic is refused, or "".
func provisions(t *testing.T, url string) (refusal string) {
	t.Helper()
	b := open(t, url)
	eventually(t, "an answer", func() bool {
		var refused *broker.RefusedError
		err := b.Provision(t.Context(), "user")
		if errors.As(err, &refused) {
			refusal = refused.Reason
		}
		return err == nil || refused != nil
	})
	return refusal
}

// TestRefusals: what no waiting will mend is told in a sentence without a password.
func TestRefusals(t *testing.T) {
	t.Parallel()
	server := rabbittest.Shared(t)
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(rabbittest.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secured := strings.Replace(server.URL(), server.Addr(), server.AddrTLS(), 1)
	for url, want := range map[string]string{
		server.URL() + "?": "",
		"amqp://ann@" + server.Addr() + "/shop?password_file=" + file + "&":                                "",
		"amqp://ann:wrong@" + server.Addr() + "/shop?":                                                     "the server refuses: ACCESS_REFUSED",
		"amqp://" + server.Addr() + "/shop?":                                                               "the server refuses: ACCESS_REFUSED",
		strings.TrimSuffix(server.URL(), "shop") + "none?":                                                 "the server does not allow it: NOT_ALLOWED - vhost none not found",
		strings.TrimSuffix(server.URL(), "shop") + "?":                                                     "the server does not allow it: NOT_ALLOWED - ",
		server.URL() + "?tls=on&":                                                                          "the server does not speak TLS",
		secured + "?tls=on&":                                                                               "the server has a certificate that is not trusted",
		secured + "?tls=on&ca=" + server.Certificate() + "&":                                               "",
		strings.Replace(secured, "127.0.0.1", "localhost", 1) + "?ca=" + server.Certificate() + "&tls=on&": "the server has a certificate that is not trusted",
	} {
		got := provisions(t, url+"prefix="+prefix(t))
		if !strings.HasPrefix(got, want) || (want == "") != (got == "") || strings.Contains(got, "cr@t") || strings.Contains(got, "wrong") {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}

func TestURLs(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"amqp://one:5672,two/shop?replicas=3": "amqp, virtual host shop, prefix postbus",
		"amqp://one/a%2Fb?prefix=shop":        "amqp, virtual host a/b, prefix shop",
		"amqp://one":                          "amqp, virtual host /, prefix postbus",
		"amqp://":                             "must name one HOST:PORT",
		"amqp://one/%zz":                      "has a virtual host",
		"amqp://one?password_file=f":          "has a parameter password_file and no user",
		"amqp://one?heartbeat=1":              "has an unknown parameter",
		"amqp://one?replicas=0":               "has a parameter replicas",
		"amqp://one?retention=1s":             "has a parameter retention of less than 1m0s",
		"amqp://one?provision=no":             "has a parameter provision",
	} {
		a, err := broker.Parse(url)
		if err != nil {
			t.Fatalf("%s: %v", url, err)
		}
		got := amqp.Kind().Identity(a)
		if err := amqp.Kind().Check(a); err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}
