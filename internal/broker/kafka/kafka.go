package kafka

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"postbus/internal/broker"
)

const (
	scheme = "kafka"
	// partitionsDefault is a part of a broker's identity and stays what it is.
	partitionsDefault = 12
	partitionsMax     = 1000
	replicasMax       = 5
	retentionLeast    = time.Minute
	requestTimeout    = 10 * time.Second
	dialTimeout       = 5 * time.Second
	retryFirst        = 50 * time.Millisecond
	retryLast         = time.Second
	retryDoublings    = 5 // from the first to the last
	// metadataMinAge is how soon the driver asks again who leads a partition.
	metadataMinAge = 250 * time.Millisecond
	// metadataNoAge is the least that the driver takes for how long it remembers which topics there are.
	metadataNoAge = 10 * time.Millisecond
)

const (
	mechanism512   = "scram-sha-512"
	mechanism256   = "scram-sha-256"
	mechanismPlain = "plain"
)

// settings are the parameters of the URL.
type settings struct {
	address    broker.Address
	prefix     string        // begins the names of topics
	verify     bool          // somebody else makes the topics
	partitions int           // over which keys are spread
	replicas   int           // 0: three, or as many as there are brokers
	retention  time.Duration // 0: nothing goes
	skipGap    bool
	mechanism  string
	security   broker.Security
	localOnly  bool // clear text stays on this machine, whatever addresses the brokers tell
}

// Kind is kafka://.
func Kind() broker.Kind {
	return broker.Kind{
		Scheme: scheme, Name: "Kafka",
		Capabilities: broker.Capabilities{
			Crash: true,
			Loss: "two of three brokers lose their disks, or their machines fail within the same seconds; of a broker alone: its " +
				"machine fails, within seconds",
			Replay: true, Age: true,
		},
		Check: func(a broker.Address) error { _, err := read(a); return err },
		// Brokers come and go; topics go by the prefix. With another number of partitions a key's events would be in two of them.
		Identity: func(a broker.Address) string {
			s, _ := read(a) // Check has refused a wrong one
			return fmt.Sprintf("%s, prefix %s, %d partitions", scheme, s.prefix, s.partitions)
		},
		Open: func(a broker.Address, logger *slog.Logger) (broker.Broker, error) { return Open(a, logger) },
	}
}

func read(a broker.Address) (s settings, err error) {
	if len(a.Hosts) == 0 || a.Path != "" {
		return s, &broker.URLError{Problem: "must name one HOST:PORT of Kafka or several, and no path"}
	}
	if err := a.Known("prefix", "provision", "partitions", "replicas", "retention", "gap", "sasl", "tls", "ca", "cert", "key",
		"password_file"); err != nil {
		return s, err
	}
	s = settings{address: a}
	var errs [8]error
	s.prefix, errs[0] = a.Prefix()
	s.partitions, errs[1] = a.Number("partitions", partitionsMax)
	s.partitions = cmp.Or(s.partitions, partitionsDefault)
	s.replicas, errs[2] = a.Number("replicas", replicasMax)
	s.retention, errs[3] = a.Retention(retentionLeast)
	s.security, errs[4] = a.Security()
	errs[5] = a.Choice("provision", "create", map[string]bool{"create": false, "verify": true}, &s.verify)
	errs[6] = a.Choice("gap", "stop", map[string]bool{"stop": false, "skip": true}, &s.skipGap)
	errs[7] = s.readMechanism()
	return s, cmp.Or(errs[:]...)
}

func (s *settings) readMechanism() error {
	a := s.address
	s.mechanism = a.Parameter("sasl", "")
	if a.User == "" {
		if s.mechanism != "" {
			return &broker.URLError{Problem: "has a parameter sasl and no user"}
		}
		if a.Parameter("password_file", "") != "" {
			return &broker.URLError{Problem: "has a parameter password_file and no user"}
		}
		s.localOnly = a.Parameter("tls", "") == ""
		return nil
	}
	s.mechanism = cmp.Or(s.mechanism, mechanism512)
	if !slices.Contains([]string{mechanism512, mechanism256, mechanismPlain}, s.mechanism) {
		return &broker.URLError{Problem: fmt.Sprintf("has a parameter sasl that is none of %s, %s and %s",
			mechanism512, mechanism256, mechanismPlain)}
	}
	if s.mechanism == mechanismPlain && !s.security.TLS && !a.Local() {
		return &broker.URLError{Problem: "would send the password in clear text; say tls=on, or sasl=" + mechanism512}
	}
	s.localOnly = a.Parameter("tls", "") == "" || s.mechanism == mechanismPlain
	return nil
}

// Broker is a Kafka cluster.
type Broker struct {
	settings
	admin  *kadm.Client // remembers nothing, unlike the client that publishes
	logger *slog.Logger
	ctx    context.Context //nolint:containedctx // of what was published and has no answer yet
	stop   context.CancelFunc

	mu      sync.Mutex
	client  *kgo.Client // that publishes
	renewed time.Time   // when it took the place of another
}

// Open returns the broker. It does not wait for a server: whatever is asked of it before there is one fails, and is to be
// tried again. It returns an error for files that cannot be read.
func Open(a broker.Address, logger *slog.Logger) (*Broker, error) {
	s, err := read(a)
	if err != nil {
		return nil, err
	}
	_, err1 := s.security.Config()
	_, err2 := a.Password()
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("open Kafka: %w", err)
	}
	b := &Broker{settings: s, logger: logger.With(slog.String("broker", scheme))}
	if b.client, err = b.producer(); err != nil {
		return nil, fmt.Errorf("open Kafka: %w", err)
	}
	admin, err := kgo.NewClient(append(b.options(), kgo.MetadataMinAge(metadataNoAge))...)
	if err != nil {
		b.client.Close()
		return nil, fmt.Errorf("open Kafka: %w", err)
	}
	b.admin = kadm.NewClient(admin)
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b, nil
}

// producer makes a client that publishes. To the brokers it is none that there was before.
func (b *Broker) producer() (*kgo.Client, error) {
	return kgo.NewClient(append(b.options(),
		kgo.RequiredAcks(kgo.AllISRAcks()), // and idempotent, which is the driver's default
		// An outcome that is not known in time counts as none: the relay sends again, in order, and a repeat is known by its id.
		kgo.AllowIdempotentProduceCancellation(),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(batchBytesMax),
		kgo.ProducerLinger(0), // what is published while a request is under way makes up the next one
		kgo.ProduceRequestTimeout(requestTimeout/2),
	)...)
}

// options are those of all clients.
func (b *Broker) options() []kgo.Opt {
	options := []kgo.Opt{
		kgo.ClientID("postbus"), kgo.SeedBrokers(b.address.Hosts...), kgo.Dialer(b.dial),
		kgo.RequestTimeoutOverhead(requestTimeout / 2), kgo.RetryTimeout(requestTimeout),
		kgo.RetryBackoffFn(backoff), kgo.MetadataMinAge(metadataMinAge), kgo.DisableClientMetrics(),
	}
	if b.address.User != "" {
		options = append(options, kgo.SASL(b.sasl()))
	}
	return options
}

// backoff is how long the driver waits before it tries again.
func backoff(failures int) time.Duration {
	return min(retryFirst<<min(max(failures-1, 0), retryDoublings), retryLast)
}

// sasl reads the password anew for each connection.
func (b *Broker) sasl() sasl.Mechanism {
	user := b.address.User
	if b.mechanism == mechanismPlain {
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			password, err := b.address.Password()
			return plain.Auth{User: user, Pass: password}, err
		})
	}
	auth := func(context.Context) (scram.Auth, error) {
		password, err := b.address.Password()
		return scram.Auth{User: user, Pass: password}, err
	}
	if b.mechanism == mechanism256 {
		return scram.Sha256(auth)
	}
	return scram.Sha512(auth)
}

var errClearText = errors.New("a broker is elsewhere than on this machine, and the connection has no TLS")

// dial connects to a broker, at an address of the URL or at one that a broker has told.
func (b *Broker) dial(ctx context.Context, network, host string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	config, err := b.security.Config()
	if err != nil {
		return nil, err
	}
	if config != nil {
		return (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, network, host)
	}
	if b.localOnly && !(broker.Address{Hosts: []string{host}}).Local() {
		return nil, errClearText
	}
	return dialer.DialContext(ctx, network, host)
}

// Close gives up the connections.
func (b *Broker) Close() error {
	b.stop()
	b.current().Close()
	b.admin.Close()
	return nil
}

// Publisher implements broker.Broker.
func (b *Broker) Publisher() message.Publisher { return publisher{b} }

func (b *Broker) topic(name string) string { return b.prefix + "-" + name }

// partition names a partition among those of all brokers.
func partition(topic string, number int32) string {
	return scheme + ":" + topic + "/" + strconv.Itoa(int(number))
}
