package kafka_test

import (
	"cmp"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/broker/kafka"
)

// TestURLs are checked before anything is touched.
func TestURLs(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"kafka://one:9092,two":                           "",
		"kafka://ann:pw@one?sasl=plain":                  "",
		"kafka://ann:pw@127.0.0.1?sasl=plain":            "",
		"kafka://ann:pw@one?sasl=plain&tls=off":          "would send the password in clear text",
		"kafka://ann:pw@one?tls=off":                     "",
		"kafka://ann:pw@one?sasl=gssapi":                 "has a parameter sasl that is none of",
		"kafka://one?sasl=plain":                         "has a parameter sasl and no user",
		"kafka://one?password_file=f":                    "has a parameter password_file and no user",
		"kafka://":                                       "must name one HOST:PORT of Kafka",
		"kafka://one/path":                               "must name one HOST:PORT of Kafka",
		"kafka://one?acks=1":                             "has an unknown parameter",
		"kafka://one?partitions=0":                       "has a parameter partitions that is not 1 to 1000",
		"kafka://one?replicas=9":                         "has a parameter replicas that is not 1 to 5",
		"kafka://one?retention=1s":                       "has a parameter retention of less than 1m0s",
		"kafka://one?provision=no":                       "has a parameter provision that is none of its values",
		"kafka://one?gap=jump":                           "has a parameter gap that is none of its values",
		"kafka://one?prefix=a-b":                         "has a prefix",
		"kafka://127.0.0.1?ca=file":                      "has a certificate for a connection without TLS",
		"kafka://one?retention=720h&replicas=3&gap=skip": "",
	} {
		a, err := broker.Parse(url)
		if err == nil {
			err = kafka.Kind().Check(a)
		}
		var refused *broker.URLError
		if want == "" && err != nil || want != "" && (!errors.As(err, &refused) || !strings.HasPrefix(refused.Problem, want)) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}

// TestIdentity: what would put a key's events into two partitions is another broker.
func TestIdentity(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"kafka://one":                          "kafka, prefix postbus, 12 partitions",
		"kafka://two,three?retention=720h":     "kafka, prefix postbus, 12 partitions",
		"kafka://one?prefix=shop&partitions=6": "kafka, prefix shop, 6 partitions",
	} {
		a, err := broker.Parse(url)
		if err != nil {
			t.Fatal(err)
		}
		if got := kafka.Kind().Identity(a); got != want {
			t.Errorf("%s: %s, want %s", url, got, want)
		}
	}
}

// provisions waits for what the broker has to say about a topic: nil, or why it is refused.
func provisions(t *testing.T, url, topic string) (refusal string) {
	t.Helper()
	b := open(t, url)
	defer b.Close()
	eventually(t, "an answer", func() bool {
		var refused *broker.RefusedError
		err := b.Provision(t.Context(), topic)
		if errors.As(err, &refused) {
			refusal = refused.Reason
		}
		return err == nil || refused != nil
	})
	return refusal
}

// TestTopicsOfOthers: a topic that would lose what it acknowledges is refused with the difference.
func TestTopicsOfOthers(t *testing.T) {
	t.Parallel()
	c := cluster(t, 3)
	for topic, test := range map[string]struct {
		settings   map[string]string // nil for no topic
		partitions int32             // 0 for 12
		query      string
		want       string // part of the refusal, or "" for none
	}{
		"missing":   {query: "?provision=verify", want: "there is no topic postbus-missing"},
		"right":     {settings: map[string]string{"min.insync.replicas": "2", "retention.ms": "-1"}, query: "?provision=verify"},
		"acks":      {settings: map[string]string{"retention.ms": "-1"}, query: "?provision=verify", want: "acknowledges what 1 of 3 replicas have"},
		"compacted": {settings: map[string]string{"cleanup.policy": "compact"}, want: "drops messages when others of their key have come"},
		"both":      {settings: map[string]string{"cleanup.policy": "compact,delete"}, want: "drops messages when others of their key have come"},
		"unclean": {
			settings: map[string]string{"min.insync.replicas": "2", "retention.ms": "-1", "unclean.leader.election.enable": "true"},
			query:    "?provision=verify", want: "may be led by a broker that lacks what was acknowledged",
		},
		"small": {
			settings: map[string]string{"min.insync.replicas": "2", "retention.ms": "-1", "max.message.bytes": "1000"},
			query:    "?provision=verify", want: "takes no messages of more than 1000 bytes",
		},
		"full": {
			settings: map[string]string{"min.insync.replicas": "2", "retention.ms": "-1", "retention.bytes": "1000"},
			query:    "?provision=verify", want: "keeps 1000 bytes of a partition",
		},
		"brief": {
			settings: map[string]string{"min.insync.replicas": "2", "retention.ms": "3600000"},
			query:    "?provision=verify", want: "keeps messages for 1h0m0s, not for ever; say retention=1h0m0s",
		},
		"young": {
			settings: map[string]string{"min.insync.replicas": "2", "retention.ms": "3600000"},
			query:    "?provision=verify&retention=48h", want: "keeps messages for 1h0m0s, not 48h0m0s",
		},
		"meant": {settings: map[string]string{"min.insync.replicas": "2", "retention.ms": "3600000"}, query: "?provision=verify&retention=1h"},
		"few":   {settings: map[string]string{}, partitions: 3, want: "has 3 partitions, not 12; say partitions=3"},
		"fewer": {settings: map[string]string{}, partitions: 3, query: "?partitions=3"},
		"more":  {settings: map[string]string{}, partitions: 20},
		"lone":  {settings: map[string]string{}, query: "?replicas=5", want: "has 3 replicas, not 5; say replicas=3"},
	} {
		t.Run(topic, func(t *testing.T) {
			t.Parallel()
			if test.settings != nil {
				if err := c.CreateTopic("postbus-"+topic, cmp.Or(test.partitions, 12), test.settings); err != nil {
					t.Fatal(err)
				}
			}
			got := provisions(t, urlOf(c)+test.query, topic)
			if test.want == "" && got != "" || !strings.Contains(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// settingsOf are what a topic has.
func settingsOf(t *testing.T, url, topic string) (partitions, replicas int, settings map[string]string) {
	t.Helper()
	admin := kadm.NewClient(plain(t, url))
	details, err := admin.ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	described, err := admin.DescribeTopicConfigs(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	settings = make(map[string]string)
	for _, c := range described[0].Configs {
		settings[c.Key] = c.MaybeValue()
	}
	return len(details[topic].Partitions), len(details[topic].Partitions[0].Replicas), settings
}

// TestTopicIsBroughtToItsSettings: a topic of ours is safe, and follows the URL.
func TestTopicIsBroughtToItsSettings(t *testing.T) {
	t.Parallel()
	for brokers, want := range map[int]struct {
		replicas int
		most     string
	}{1: {1, "1"}, 2: {2, "2"}, 3: {3, "2"}, 4: {3, "2"}} {
		url := urlOf(cluster(t, brokers))
		provisioned(t, url)
		partitions, replicas, settings := settingsOf(t, url, "postbus-user")
		if partitions != 12 || replicas != want.replicas || settings["min.insync.replicas"] != want.most || settings["retention.ms"] != "-1" ||
			settings["cleanup.policy"] != "delete" || settings["unclean.leader.election.enable"] != "false" {
			t.Errorf("%d brokers: %d partitions, %d replicas, %v", brokers, partitions, replicas, settings)
		}
		provisioned(t, url+"?retention=48h")
		if _, _, settings := settingsOf(t, url, "postbus-user"); settings["retention.ms"] != "172800000" {
			t.Errorf("retention.ms is %s", settings["retention.ms"])
		}
	}
	c := cluster(t, 3)
	if err := c.CreateTopic("postbus-user", 12, map[string]string{"retention.bytes": "1000", "max.message.bytes": "1000"}); err != nil {
		t.Fatal(err)
	}
	provisioned(t, urlOf(c))
	_, _, settings := settingsOf(t, urlOf(c), "postbus-user")
	if settings["min.insync.replicas"] != "2" || settings["retention.bytes"] != "-1" || settings["max.message.bytes"] != "1048588" {
		t.Errorf("a topic that was there has %v", settings)
	}
}

// TestTooFewBrokers for the replicas that the URL wants.
func TestTooFewBrokers(t *testing.T) {
	t.Parallel()
	if got, want := provisions(t, urlOf(cluster(t, 1))+"?replicas=3", "user"), "the cluster has too few brokers"; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPasswords(t *testing.T) {
	t.Parallel()
	const password = "se:cr@t word"
	c := cluster(t, 2, kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "ann", password),
		kfake.Superuser("SCRAM-SHA-256", "bea", password), kfake.Superuser("PLAIN", "cid", password))
	// Kafka has a word for it; kfake hangs up.
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.SASLAuthenticate}, Err: kerr.SaslAuthenticationFailed, Count: -1, When: func(r kmsg.Request) bool {
		said := string(r.(*kmsg.SASLAuthenticateRequest).SASLAuthBytes) //nolint:forcetypeassert // by its key
		return strings.Contains(said, "\x00wrong") || strings.Contains(said, "n=dan")
	}})
	hosts := strings.Join(c.ListenAddrs(), ",")
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"kafka://ann:se%3Acr%40t%20word@" + hosts:                         "",
		"kafka://ann@" + hosts + "?password_file=" + file:                 "",
		"kafka://bea:se%3Acr%40t%20word@" + hosts + "?sasl=scram-sha-256": "",
		"kafka://cid:se%3Acr%40t%20word@" + hosts + "?sasl=plain":         "",
		"kafka://dan:wrong@" + hosts:                                      "the brokers refuse user and password",
		"kafka://cid:wrong@" + hosts + "?sasl=plain":                      "the brokers refuse user and password",
	} {
		if got := provisions(t, url, "user"); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	certificate, key := brokertest.SelfSigned(t)
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	c := cluster(t, 2, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}}))
	for url, want := range map[string]string{
		urlOf(c) + "?tls=on&ca=" + certificate: "",
		urlOf(c) + "?tls=on":                   "a broker has a certificate that is not trusted",
	} {
		if got := provisions(t, url, "user"); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
	b := provisioned(t, urlOf(c)+"?tls=on&ca="+certificate)
	id := publish(t, b, "k", 1)
	if got, _ := brokertest.Read(t, b, "user", nil, 1); got[0].UUID != id {
		t.Errorf("read %s, want %s", got[0].UUID, id)
	}
}

// elsewhere says that a broker is on another machine.
type elsewhere struct{ net.Listener }

func (elsewhere) Addr() net.Addr { return address("192.0.2.1:9092") }

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// TestClearTextStaysHere: a broker that is asked on this machine and tells of another one gets no clear text there, unless the
// URL says so.
func TestClearTextStaysHere(t *testing.T) {
	t.Parallel()
	var seed string
	cluster(t, 1, kfake.ListenFn(func(network, at string) (net.Listener, error) {
		l, err := net.Listen(network, at)
		if err == nil {
			seed = l.Addr().String()
		}
		return elsewhere{l}, err
	}))
	if got, want := provisions(t, "kafka://"+seed, "user"), "a broker says that it is elsewhere than on this machine"; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
