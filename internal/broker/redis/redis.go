package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"postbus/internal/broker"
)

const (
	scheme         = "redis"
	defaultPort    = "6379"
	databaseMax    = 1 << 20
	replicasMax    = 5
	retentionLeast = time.Minute
	dialTimeout    = 3 * time.Second
	requestTimeout = 5 * time.Second
)

// settings are the parameters of the URL.
type settings struct {
	address    broker.Address
	hosts      []string // each with its port
	master     string   // what sentinels, which the hosts are then, know the server by
	database   int
	prefix     string        // begins the names of streams
	verify     bool          // somebody else makes the streams
	replicas   int           // that have to have a message, beside the server
	retention  time.Duration // 0: nothing goes
	durability durability
	skipGap    bool
	security   broker.Security
	localOnly  bool // clear text stays on this machine, whatever address the sentinels tell
}

// Kind is redis://, Redis Streams.
func Kind() broker.Kind {
	return broker.Kind{
		Scheme: scheme, Name: "Redis Streams",
		Capabilities: broker.Capabilities{
			Crash: true,
			Loss: "it loses its disk; a replica takes its place that did not have them (`replicas=1` waits for one); it dies, and " +
				"`durability` names less than `always`",
			Replay: true, Age: true,
		},
		Check: func(a broker.Address) error { _, err := read(a); return err },
		Identity: func(a broker.Address) string {
			s, _ := read(a) // Check has refused a wrong one
			return fmt.Sprintf("redis, database %d, prefix %s", s.database, s.prefix)
		},
		Open: func(a broker.Address, logger *slog.Logger) (broker.Broker, error) { return Open(a, logger) },
	}
}

func read(a broker.Address) (s settings, err error) {
	if err := a.Known("master", "prefix", "provision", "durability", "replicas", "retention", "gap", "tls", "ca", "cert", "key",
		"password_file"); err != nil {
		return s, err
	}
	s.address, s.master = a, a.Parameter("master", "")
	if s.hosts, err = hosts(a, s.master != ""); err != nil {
		return s, err
	}
	var errs [8]error
	s.database, errs[0] = database(a.Path)
	s.prefix, errs[1] = a.Prefix()
	s.durability, errs[2] = parseDurability(a.Parameter(durabilityParameter, string(always)))
	s.replicas, errs[3] = a.Number("replicas", replicasMax)
	s.retention, errs[4] = a.Retention(retentionLeast)
	s.security, errs[5] = a.Security()
	s.localOnly = !s.security.TLS && a.Parameter("tls", "") == ""
	errs[6] = a.Choice("provision", "create", map[string]bool{"create": false, "verify": true}, &s.verify)
	errs[7] = a.Choice("gap", "stop", map[string]bool{"stop": false, "skip": true}, &s.skipGap)
	return s, cmp.Or(errs[:]...)
}

// hosts are those of the URL, each with its port.
func hosts(a broker.Address, sentinels bool) ([]string, error) {
	if len(a.Hosts) == 0 || len(a.Hosts) > 1 && !sentinels {
		return nil, &broker.URLError{Problem: "must name one HOST:PORT of Redis, or those of sentinels and, as master, what they know " +
			"the server by; clusters are not supported"}
	}
	port := defaultPort
	if sentinels {
		port = sentinelPort
	}
	all := make([]string, len(a.Hosts))
	for i, host := range a.Hosts {
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), port)
		}
		all[i] = host
	}
	return all, nil
}

func database(path string) (int, error) {
	n, err := strconv.Atoi(cmp.Or(path, "0"))
	if err != nil || n < 0 || n > databaseMax {
		return 0, &broker.URLError{Problem: "has a path that is not the number of a database"}
	}
	return n, nil
}

// Broker is a Redis server.
type Broker struct {
	settings
	client  *redis.Client // of publishing and provisioning; a reader has its own
	logger  *slog.Logger
	offered chan offer
	behind  atomic.Bool     // replicas were missing the last time
	stopped context.Context //nolint:containedctx // of those who publish
	stop    context.CancelFunc
	running sync.WaitGroup
}

// Open returns the broker. It does not wait for a server: whatever is asked of it before there is one fails, and is to be
// tried again. It returns an error for files that cannot be read.
func Open(a broker.Address, logger *slog.Logger) (*Broker, error) {
	s, err := read(a)
	if err != nil {
		return nil, err
	}
	_, err1 := a.Password()
	_, err2 := s.security.Config()
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("open Redis: %w", err)
	}
	// The driver has one logger for all clients, and writes to standard error what it returns as errors too.
	redis.SetLogger(&logging.VoidLogger{})
	b := &Broker{settings: s, logger: logger.With(slog.String("broker", scheme)), offered: make(chan offer)}
	b.stopped, b.stop = context.WithCancel(context.Background())
	options := b.options(b.connect)
	// Behind each connection there may be another server, or one that was started with other settings.
	options.OnConnect = func(ctx context.Context, conn *redis.Conn) error { return b.inspect(ctx, conn) }
	b.client = redis.NewClient(options)
	for range writers {
		b.running.Go(b.write)
	}
	return b, nil
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// options are those of a client whose connections the dialer makes.
func (b *Broker) options(dial dialer) *redis.Options {
	o := b.common()
	o.Addr, o.Dialer, o.DB = b.hosts[0], dial, b.database
	o.CredentialsProviderContext = func(context.Context) (user, password string, err error) {
		password, err = b.address.Password()
		return b.address.User, password, err
	}
	return o
}

// common are the options of every client. Nothing is tried twice: whoever asks does that. A pipeline is like any request.
func (*Broker) common() *redis.Options {
	return &redis.Options{
		Protocol: 2, MaxRetries: -1, DialerRetries: 1, PipelinePoolSize: -1,
		DialTimeout: dialTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, ContextTimeoutEnabled: true,
		DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// dial makes a connection, with TLS if that is spoken.
func (b *Broker) dial(ctx context.Context, network, address string) (net.Conn, error) {
	config, err := b.security.Config()
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil || config == nil {
		return conn, err
	}
	if config.ServerName, _, err = net.SplitHostPort(address); err == nil {
		guarded := tls.Client(conn, config)
		if err = guarded.HandshakeContext(ctx); err == nil {
			return guarded, nil
		}
	}
	_ = conn.Close() // the first error is the one to report
	return nil, fmt.Errorf("speak TLS with the server: %w", err)
}

// Close gives up the connections.
func (b *Broker) Close() error {
	b.stop()
	err := b.client.Close()
	b.running.Wait()
	return err
}

// Publisher implements broker.Broker.
func (b *Broker) Publisher() message.Publisher { return publisher{b} }

func (b *Broker) stream(topic string) string { return b.prefix + ":" + topic }
