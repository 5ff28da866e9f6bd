package nats_test

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	driver "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/broker/nats"
	"postbus/internal/natstest"
	"postbus/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

var quiet = slog.New(slog.DiscardHandler)

func open(t *testing.T, url string) *nats.Broker {
	t.Helper()
	a, err := broker.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	b, err := nats.Open(a, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// provisioned returns a broker that has the topic "user".
func provisioned(t *testing.T, url string) *nats.Broker {
	t.Helper()
	b := open(t, url)
	t.Cleanup(func() { _ = b.Close() })
	eventually(t, "a stream", func() bool { return b.Provision(t.Context(), "user") == nil })
	return b
}

// connect is JetStream without postbus.
func connect(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	conn, err := driver.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
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

func publish(t *testing.T, b broker.Broker, n int) string {
	t.Helper()
	m := brokertest.New("k", n)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	return m.UUID
}

func TestBroker(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	brokertest.Run(t, nats.Kind().Capabilities, func(t *testing.T) func() broker.Broker {
		t.Helper()
		prefix := strings.ToLower(strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, t.Name()))
		url := server.URL() + "?prefix=" + prefix[max(len(prefix)-30, 0):]
		return func() broker.Broker { return open(t, url) }
	})
}

// TestAcknowledgedOutlivesTheServer: the server is killed right after the acknowledgement.
func TestAcknowledgedOutlivesTheServer(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	b := provisioned(t, server.URL())
	id := publish(t, b, 1)
	server.Kill()
	server.Start()
	again := provisioned(t, server.URL())
	if got, _ := brokertest.Read(t, again, "user", nil, 1); got[0].UUID != id {
		t.Errorf("read %s, want %s", got[0].UUID, id)
	}
}

// TestStreamThatIsNotTheSame: a stream that was made anew, or one that has lost its end, is read from its beginning.
func TestStreamThatIsNotTheSame(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := connect(t, server.URL())
	b := provisioned(t, server.URL())
	publish(t, b, 1)
	publish(t, b, 2)
	_, places := brokertest.Read(t, b, "user", nil, 2)

	if err := js.DeleteStream(t.Context(), "postbus-user"); err != nil {
		t.Fatal(err)
	}
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	first := publish(t, b, 3)
	got, fresh := brokertest.Read(t, b, "user", places, 1)
	if got[0].UUID != first {
		t.Errorf("after the stream was made anew %s was read first, want %s", got[0].UUID, first)
	}

	// As after a power failure: another message has the sequence number that was read.
	for partition, place := range fresh {
		fresh[partition] = place[:strings.LastIndex(place, "/")+1] + "another"
	}
	if got, _ := brokertest.Read(t, b, "user", fresh, 1); got[0].UUID != first {
		t.Errorf("with another message in its place %s was read first, want %s", got[0].UUID, first)
	}
}

// TestGapIsNotPassedOver: what the broker has dropped before it was read stops the reading, unless that is meant.
func TestGapIsNotPassedOver(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	b := provisioned(t, server.URL())
	publish(t, b, 1)
	_, places := brokertest.Read(t, b, "user", nil, 1)
	publish(t, b, 2)
	last := publish(t, b, 3)
	js := connect(t, server.URL())
	stream, err := js.Stream(t.Context(), "postbus-user")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeKeep(1)); err != nil {
		t.Fatal(err)
	}
	var gap *broker.GapError
	if _, err := b.Reader(t.Context(), "user", maps.Clone(places)); !errors.As(err, &gap) || gap.Events != 1 {
		t.Errorf("reading over a gap: %v", err)
	}
	skipping := provisioned(t, server.URL()+"?gap=skip")
	if got, _ := brokertest.Read(t, skipping, "user", places, 1); got[0].UUID != last {
		t.Errorf("read %s, want %s", got[0].UUID, last)
	}
}

// TestStreamsOfOthers: a stream that would lose what it acknowledges is refused with the difference.
func TestStreamsOfOthers(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := connect(t, server.URL())
	subjects := func(topic string) []string { return []string{"postbus." + topic + ".*"} }
	tests := map[string]struct {
		stream *jetstream.StreamConfig
		query  string
		want   string // part of the refusal, or "" for none
	}{
		"missing": {nil, "?provision=verify", "there is no stream postbus-missing"},
		"memory": {&jetstream.StreamConfig{Storage: jetstream.MemoryStorage}, "",
			"keeps its messages in memory"},
		"noack": {&jetstream.StreamConfig{NoAck: true}, "", "acknowledges nothing"},
		"queue": {&jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy}, "", "drops messages when somebody has read them"},
		"full":  {&jetstream.StreamConfig{MaxMsgs: 10}, "", "drops old messages when it is full"},
		"small": {&jetstream.StreamConfig{MaxMsgSize: 1000}, "", "takes no large messages"},
		"other": {&jetstream.StreamConfig{Subjects: []string{"elsewhere.>"}}, "", "has the subjects"},
		"fewer": {&jetstream.StreamConfig{}, "?provision=verify&replicas=3", "has 1 replicas, not 3"},
		"young": {&jetstream.StreamConfig{MaxAge: time.Hour}, "?provision=verify&retention=48h", "keeps messages for 1h0m0s, not 48h0m0s"},
		"brief": {&jetstream.StreamConfig{MaxAge: time.Hour}, "?provision=verify",
			"keeps messages for 1h0m0s, not for ever; say retention=1h0m0s"},
		"meant": {&jetstream.StreamConfig{MaxAge: time.Hour}, "?provision=verify&retention=1h0m0s", ""},
		"right": {&jetstream.StreamConfig{}, "?provision=verify", ""},
	}
	for topic, test := range tests {
		if test.stream != nil {
			test.stream.Name = "postbus-" + topic
			if test.stream.Subjects == nil {
				test.stream.Subjects = subjects(topic)
			}
			if _, err := js.CreateStream(t.Context(), *test.stream); err != nil {
				t.Fatalf("%s: %v", topic, err)
			}
		}
		b := open(t, server.URL()+test.query)
		var refused *broker.RefusedError
		var err error
		eventually(t, "an answer", func() bool {
			err = b.Provision(t.Context(), topic)
			return err == nil || errors.As(err, &refused)
		})
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", topic, err)
		case test.want != "" && (refused == nil || !strings.Contains(refused.Reason, test.want)):
			t.Errorf("%s: %v, want %q", topic, err, test.want)
		}
		_ = b.Close()
	}
}

// TestStreamIsBroughtToItsSettings: a stream of ours follows the URL.
func TestStreamIsBroughtToItsSettings(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	provisioned(t, server.URL())
	provisioned(t, server.URL()+"?retention=48h")
	stream, err := connect(t, server.URL()).Stream(t.Context(), "postbus-user")
	if err != nil {
		t.Fatal(err)
	}
	c := stream.CachedInfo().Config
	if c.MaxAge != 48*time.Hour || c.Storage != jetstream.FileStorage || c.Replicas != 1 || c.Discard != jetstream.DiscardNew ||
		c.Duplicates != nats.Kind().Capabilities.Repeats {
		t.Errorf("the stream is %+v", c)
	}
}

// TestPlainDriverReadsCloudEvents: an event is a CloudEvent in binary mode to who knows nothing of postbus, and the other way
// round.
func TestPlainDriverReadsCloudEvents(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	b := provisioned(t, server.URL())
	m := brokertest.New("ключ 1", 1)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	js := connect(t, server.URL())
	stream, err := js.Stream(t.Context(), "postbus-user")
	if err != nil {
		t.Fatal(err)
	}
	got, err := stream.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"ce-specversion": "1.0", "ce-id": m.UUID, "ce-source": "/test", "ce-type": "user.tested",
		"ce-datacontenttype": "application/json", "ce-partitionkey": "%D0%BA%D0%BB%D1%8E%D1%87%201", "Nats-Msg-Id": m.UUID,
	} {
		if values := got.Header[name]; len(values) != 1 || values[0] != want {
			t.Errorf("header %s is %q, want %q", name, got.Header[name], want)
		}
	}
	if string(got.Data) != `{"n":1}` || !strings.HasPrefix(got.Subject, "postbus.user.") {
		t.Errorf("%s has %s", got.Subject, got.Data)
	}
	e, err := binding.ToEvent(t.Context(), stored{got})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	if e.ID() != m.UUID || e.Source() != "/test" || e.Type() != "user.tested" || e.DataContentType() != "application/json" ||
		e.Extensions()["partitionkey"] != "ключ 1" || string(e.Data()) != `{"n":1}` {
		t.Errorf("the SDK has %s", e)
	}

	foreign := driver.NewMsg("postbus.user.foreign")
	foreign.Header = driver.Header{"ce-id": {"42"}, "Ce-Type": {"user.tested"}, "ce-source": {"/elsewhere"}, "ce-partitionkey": {"100%"}}
	if _, err := js.PublishMsg(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	read, _ := brokertest.Read(t, b, "user", nil, 2)
	f := read[1]
	if f.UUID != "42" || f.Metadata["type"] != "user.tested" || f.Metadata["partitionkey"] != "100%" {
		t.Errorf("read %s with %q", f.UUID, f.Metadata)
	}
}

// TestServerThatIsAway: nothing waits for a server for long, and a password is in no error.
func TestServerThatIsAway(t *testing.T) {
	t.Parallel()
	b := open(t, "nats://user:secretword@127.0.0.1:1")
	defer b.Close()
	m := brokertest.New("k", 1)
	m.SetContext(t.Context())
	for name, err := range map[string]error{
		"provision": b.Provision(t.Context(), "user"), "publish": b.Publisher().Publish("user", m),
	} {
		var refused *broker.RefusedError
		if err == nil || errors.As(err, &refused) || strings.Contains(err.Error(), "secretword") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestClusterKeepsThree: in a cluster of three a topic has three replicas, and goes on when any one server is lost.
func TestClusterKeepsThree(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	servers := natstest.Cluster(t, 3)
	var hosts []string
	for _, s := range servers {
		hosts = append(hosts, s.Addr())
	}
	b := provisioned(t, "nats://"+strings.Join(hosts, ","))
	stream, err := connect(t, strings.Join(hosts, ",")).Stream(t.Context(), "postbus-user")
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().Config.Replicas; n != 3 {
		t.Fatalf("%d replicas", n)
	}
	sent := []string{publish(t, b, 0)}
	for i, s := range servers {
		s.Kill()
		m := brokertest.New("k", i+1) // the same each time, as the relay has it
		m.SetContext(t.Context())
		eventually(t, "the others to go on", func() bool { return b.Publisher().Publish("user", m) == nil })
		sent = append(sent, m.UUID)
		s.Start()
	}
	got, _ := brokertest.Read(t, b, "user", nil, len(sent))
	for i, m := range got {
		if i < len(sent) && m.UUID != sent[i] {
			t.Errorf("message %d is %s, want %s", i, m.UUID, sent[i])
		}
	}
}

// provisions waits for what the broker has to say about a topic: nil, or why it is refused.
func provisions(t *testing.T, url string) (refusal string) {
	t.Helper()
	b := open(t, url)
	defer b.Close()
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

func TestPasswords(t *testing.T) {
	t.Parallel()
	server := natstest.StartWith(t, `authorization { user: ann, password: "se:cr@t word" }`, driver.UserInfo("ann", "se:cr@t word"))
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("se:cr@t word\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"nats://ann:se%3Acr%40t%20word@" + server.Addr():           "",
		"nats://ann@" + server.Addr() + "?password_file=" + file:   "",
		"nats://ann:wrong@" + server.Addr():                        "the server refuses user and password",
		server.URL():                                               "the server refuses user and password",
		"nats://ann:wrong@" + server.Addr() + "?tls=on&replicas=1": "the server does not speak TLS",
	} {
		if got := provisions(t, url); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}

// TestServerThatTakesNoLargeMessages would hold up the key of the first large event for ever.
func TestServerThatTakesNoLargeMessages(t *testing.T) {
	t.Parallel()
	server := natstest.StartWith(t, "max_payload: 100000")
	if got, want := provisions(t, server.URL()), "the server takes messages of 100000 bytes at most"; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	certificate, key := brokertest.SelfSigned(t)
	server := natstest.StartWith(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q }", certificate, key), driver.RootCAs(certificate))
	for url, want := range map[string]string{
		server.URL() + "?tls=on&ca=" + certificate: "",
		server.URL() + "?tls=on":                   "the server has a certificate that is not trusted",
	} {
		if got := provisions(t, url); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}
