package redis_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	driver "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/broker/redis"
	"postbus/internal/redistest"
	"postbus/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = time.Minute
	stream   = "postbus:user"
)

var quiet = slog.New(slog.DiscardHandler)

func open(t *testing.T, url string) *redis.Broker {
	t.Helper()
	return openWith(t, url, quiet)
}

func openWith(t *testing.T, url string, logger *slog.Logger) *redis.Broker {
	t.Helper()
	a, err := broker.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	b, err := redis.Open(a, logger)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// provisioned returns a broker that has the topic "user".
func provisioned(t *testing.T, url string) *redis.Broker {
	t.Helper()
	b := open(t, url)
	t.Cleanup(func() { _ = b.Close() })
	eventually(t, "a stream", func() bool { return b.Provision(t.Context(), "user") == nil })
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

func publish(t *testing.T, b broker.Broker, n int) string {
	t.Helper()
	m := brokertest.New("k", n)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	return m.UUID
}

// refusal waits for what the broker has to say about a topic: nothing, or why it is refused.
func refusal(t *testing.T, url string) string {
	t.Helper()
	b := open(t, url)
	defer b.Close()
	for deadline := time.Now().Add(patience); ; <-time.After(10 * time.Millisecond) { // until it is connected
		var refused *broker.RefusedError
		err := b.Provision(t.Context(), "user")
		switch {
		case err == nil:
			return ""
		case errors.As(err, &refused):
			return refused.Reason
		case time.Now().After(deadline):
			t.Fatalf("%s: %v", url, err)
		}
	}
}

// refuses checks that a refusal begins as it is wanted; "" is for none.
func refuses(t *testing.T, url, want string) {
	t.Helper()
	if got := refusal(t, url); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
		t.Errorf("%s: %q, want %q", url, got, want)
	}
}

func TestBroker(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	brokertest.Run(t, redis.Kind().Capabilities, func(t *testing.T) func() broker.Broker {
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
	server := redistest.Start(t)
	b := provisioned(t, server.URL())
	id := publish(t, b, 1)
	server.Kill()
	server.Start()
	again := provisioned(t, server.URL())
	if got, _ := brokertest.Read(t, again, "user", nil, 1); got[0].UUID != id {
		t.Errorf("read %s, want %s", got[0].UUID, id)
	}
}

// TestServersThatLose: a server that would lose what it acknowledges is refused, unless the URL names that.
func TestServersThatLose(t *testing.T) {
	t.Parallel()
	for configuration, tests := range map[string]map[string]string{
		redistest.Durable: {"": "", "?durability=memory": ""},
		"appendonly yes\nappendfsync everysec": {
			"": "the server acknowledges what it has not synchronised (appendfsync everysec), and can lose it; let it have appendonly yes " +
				"and appendfsync always, or say durability=everysec in the URL if that is meant",
			"?durability=everysec": "", "?durability=memory": "",
		},
		"appendonly yes\nappendfsync always\nno-appendfsync-on-rewrite yes": {
			"?durability=everysec": "the server acknowledges what it has not synchronised (no-appendfsync-on-rewrite yes)",
		},
		"appendonly yes\nappendfsync no": {"": "the server acknowledges what it has not synchronised (appendfsync no)"},
		"appendonly no": {
			"?durability=everysec": "the server acknowledges what it has not synchronised (appendonly no)", "?durability=memory": "",
		},
		redistest.Durable + "maxmemory 100mb\nmaxmemory-policy allkeys-lru": {
			"": "the server drops streams when its memory is full (maxmemory-policy allkeys-lru)", "?durability=unchecked": "the server drops",
		},
		redistest.Durable + "maxmemory 100mb\nmaxmemory-policy volatile-lru": {"": ""},
		redistest.Durable + "rename-command CONFIG \"\"": {
			"": "the server does not tell its settings (CONFIG GET)", "?durability=memory": "the server does not tell",
			"?durability=unchecked": "",
		},
		redistest.Durable + "cluster-enabled yes":   {"": "the server is a node of a Redis Cluster"},
		redistest.Durable + "replicaof 127.0.0.1 1": {"": "the server is a replica"},
	} {
		server := redistest.StartWith(t, configuration)
		for query, want := range tests {
			refuses(t, server.URL()+query, want)
		}
	}
}

// TestUserWithoutRights: what the user may not do is told at the start, and little has to be allowed.
func TestUserWithoutRights(t *testing.T) {
	t.Parallel()
	server := redistest.StartWith(t, redistest.Durable+
		"user ann on >secretword ~postbus:* +info +config|get +multi +exec +xadd +xread +xrange +xinfo +xgroup|create +wait\n"+
		"user bob on >secretword ~postbus:* +@connection\n"+
		"user eve on >secretword ~postbus:* +@all -config\n"+
		"user default off\n")
	refuses(t, "redis://bob:secretword@"+server.Addr(), "the server refuses what has to be done: NOPERM")
	refuses(t, "redis://eve:secretword@"+server.Addr(), "the server does not tell its settings (CONFIG GET)")
	b := provisioned(t, "redis://ann:secretword@"+server.Addr())
	id := publish(t, b, 1)
	if got, _ := brokertest.Read(t, b, "user", nil, 1); got[0].UUID != id {
		t.Errorf("read %s, want %s", got[0].UUID, id)
	}
}

// TestStreamsOfOthers: with provision=verify a stream has to be there, and how to make it is told.
func TestStreamsOfOthers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	got := refusal(t, server.URL()+"?provision=verify")
	_, command, ok := strings.Cut(got, "make it with: ")
	if !ok || !strings.HasPrefix(got, "there is no stream "+stream+" with a group postbus") {
		t.Fatalf("a stream that is missing: %q", got)
	}
	var words []any
	for _, word := range strings.Fields(command) {
		words = append(words, word)
	}
	if err := client.Do(t.Context(), words...).Err(); err != nil {
		t.Fatal(err)
	}
	refuses(t, server.URL()+"?provision=verify", "")
	client.Set(t.Context(), "other:user", "text", 0)
	refuses(t, server.URL()+"?prefix=other", "other:user is not a stream")
	refuses(t, server.URL()+"/999999?prefix=other", "the server refuses what has to be done: ERR DB index is out of range")
}

// TestRetention: events that are older are dropped when others come, by whole nodes of the stream.
func TestRetention(t *testing.T) {
	t.Parallel()
	server := redistest.StartWith(t, redistest.Durable+"stream-node-max-entries 10\n")
	client := server.Client()
	b := provisioned(t, server.URL()+"?retention=1h")
	old := time.Now().Add(-2 * time.Hour).UnixMilli()
	for n := range 30 {
		if err := client.XAdd(t.Context(), &driver.XAddArgs{Stream: stream, ID: fmt.Sprintf("%d-%d", old, n), Values: []string{"id", "x"}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, b, 1)
	if n := client.XLen(t.Context(), stream).Val(); n > 11 {
		t.Errorf("%d events are there", n)
	}
}

// TestReplicas: with replicas=1 a message is acknowledged when a replica has it too; while there is none it is sent once.
func TestReplicas(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := redistest.Start(t)
	replica := redistest.StartWith(t, redistest.Durable+fmt.Sprintf("replicaof 127.0.0.1 %d\n", server.Port()))
	b := provisioned(t, server.URL()+"?replicas=1")
	m := brokertest.New("k", 1)
	m.SetContext(t.Context())
	eventually(t, "the replica", func() bool { return b.Publisher().Publish("user", m) == nil })
	replica.Kill()
	client := server.Client()
	before := client.XLen(t.Context(), stream).Val()
	another := brokertest.New("k", 2)
	another.SetContext(t.Context())
	for range 3 {
		if err := b.Publisher().Publish("user", another); err == nil {
			t.Fatal("acknowledged without a replica")
		}
	}
	if after := client.XLen(t.Context(), stream).Val(); after > before+1 {
		t.Errorf("the stream has grown from %d to %d", before, after)
	}
	replica.Start()
	eventually(t, "the replica again", func() bool { return b.Publisher().Publish("user", another) == nil })
}

// TestServerThatIsAway: nothing waits for a server for long, and a password is in no error.
func TestServerThatIsAway(t *testing.T) {
	t.Parallel()
	b := open(t, "redis://user:secretword@127.0.0.1:1")
	defer b.Close()
	m := brokertest.New("k", 1)
	m.SetContext(t.Context())
	_, err := b.Reader(t.Context(), "user", nil)
	for name, err := range map[string]error{
		"provision": b.Provision(t.Context(), "user"), "publish": b.Publisher().Publish("user", m), "read": err,
	} {
		var refused *broker.RefusedError
		if err == nil || errors.As(err, &refused) || strings.Contains(err.Error(), "secretword") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStreamThatIsMissing: publishing does not make a stream that has no mark.
func TestStreamThatIsMissing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := provisioned(t, server.URL())
	client := server.Client()
	client.Del(t.Context(), stream)
	m := brokertest.New("k", 1)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err == nil || client.Exists(t.Context(), stream).Val() != 0 {
		t.Errorf("published to a stream that is missing: %v", err)
	}
}

func TestPasswords(t *testing.T) {
	t.Parallel()
	server := redistest.StartWith(t, redistest.Durable+"user ann on \">se:cr@t/w\" ~* +@all\nrequirepass alone\n")
	dir := t.TempDir()
	file, alone := filepath.Join(dir, "password"), filepath.Join(dir, "alone")
	if err := errors.Join(os.WriteFile(file, []byte("se:cr@t/w\n"), 0o600), os.WriteFile(alone, []byte("alone\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"redis://ann:se%3Acr%40t%2Fw@" + server.Addr():            "",
		"redis://ann@" + server.Addr() + "?password_file=" + file: "",
		"redis://default:alone@" + server.Addr():                  "",
		"redis://" + server.Addr() + "?password_file=" + alone:    "",
		"redis://ann:wrong@" + server.Addr():                      "the server refuses user and password",
		server.URL():                                              "the server refuses user and password",
	} {
		refuses(t, url, want)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	certificate, key := brokertest.SelfSigned(t)
	server := redistest.StartTLS(t, certificate, key)
	refuses(t, server.URL()+"?tls=on&ca="+certificate, "")
	refuses(t, server.URL()+"?tls=on", "the server has a certificate that is not trusted")
	plain := open(t, redistest.Start(t).URL()+"?tls=on")
	defer plain.Close()
	if err := plain.Provision(t.Context(), "user"); err == nil || !strings.Contains(err.Error(), "speak TLS with the server") {
		t.Errorf("a server without TLS: %v", err)
	}
	b := provisioned(t, server.URL()+"?tls=on&ca="+certificate)
	id := publish(t, b, 1)
	if got, _ := brokertest.Read(t, b, "user", nil, 1); got[0].UUID != id {
		t.Errorf("read %s, want %s", got[0].UUID, id)
	}
}

// TestClosingIsBounded: a server that answers nothing holds up the end of neither a reader nor the broker, nor a message for
// longer than its context.
func TestClosingIsBounded(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := open(t, server.URL())
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	publish(t, b, 1)
	r, err := b.Reader(t.Context(), "user", nil)
	if err != nil {
		t.Fatal(err)
	}
	server.Signal(syscall.SIGSTOP)
	defer server.Signal(syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	m := brokertest.New("k", 2)
	m.SetContext(ctx)
	if err := b.Publisher().Publish("user", m); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("publishing ended with %v", err)
	}
	if err := errors.Join(r.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
}
