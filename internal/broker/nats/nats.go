package nats

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbus/internal/broker"
)

const (
	scheme          = "nats"
	duplicateWindow = 2 * time.Minute
	replicasMax     = 5
	requestTimeout  = 5 * time.Second
	reconnectWait   = 250 * time.Millisecond
	pingInterval    = 5 * time.Second // two that are not answered, and the connection counts as lost
)

// settings are the parameters of the URL.
type settings struct {
	address     broker.Address
	prefix      string        // begins the names of streams and subjects
	verify      bool          // somebody else makes the streams
	replicas    int           // 0: three in a cluster, one on a server alone
	retention   time.Duration // 0: nothing goes
	skipGap     bool
	security    broker.Security
	credentials string
}

// Kind is nats://, JetStream.
func Kind() broker.Kind {
	return broker.Kind{
		Scheme: scheme, Name: "NATS JetStream",
		Capabilities: broker.Capabilities{
			Crash: true,
			Loss: "two of three servers lose their disks; of a server alone: its machine fails within two minutes, " +
				"unless it has `sync_interval: always`",
			Repeats: duplicateWindow, Replay: true, Age: true,
		},
		Check: func(a broker.Address) error { _, err := read(a); return err },
		// Hosts come and go; streams go by the prefix.
		Identity: func(a broker.Address) string {
			prefix, _ := a.Prefix() // Check has refused a wrong one
			return "nats, prefix " + prefix
		},
		Open: func(a broker.Address, logger *slog.Logger) (broker.Broker, error) { return Open(a, logger) },
	}
}

func read(a broker.Address) (s settings, err error) {
	if len(a.Hosts) == 0 || a.Path != "" {
		return s, &broker.URLError{Problem: "must name one HOST:PORT of NATS or several, and no path"}
	}
	if err := a.Known("prefix", "provision", "replicas", "retention", "gap", "tls", "ca", "cert", "key",
		"credentials", "password_file"); err != nil {
		return s, err
	}
	if a.User == "" && a.Parameter("password_file", "") != "" {
		return s, &broker.URLError{Problem: "has a parameter password_file and no user"}
	}
	s = settings{address: a, credentials: a.Parameter("credentials", "")}
	var errs [6]error
	s.prefix, errs[0] = a.Prefix()
	s.replicas, errs[1] = a.Number("replicas", replicasMax)
	s.retention, errs[2] = a.Retention(duplicateWindow) // the server refuses to recognise repeats for longer than it has them
	s.security, errs[3] = a.Security()
	errs[4] = a.Choice("provision", "create", map[string]bool{"create": false, "verify": true}, &s.verify)
	errs[5] = a.Choice("gap", "stop", map[string]bool{"stop": false, "skip": true}, &s.skipGap)
	return s, cmp.Or(errs[:]...)
}

// Broker is JetStream.
type Broker struct {
	settings
	conn   *nats.Conn
	js     jetstream.JetStream
	logger *slog.Logger

	mu         sync.Mutex
	why        error           // there is no connection
	session    context.Context //nolint:containedctx // ends when the connection is lost: what was sent on it gets no answer
	endSession context.CancelFunc
}

// Open returns the broker. It does not wait for a server: whatever is asked of it before there is one fails, and is to be
// tried again. It returns an error for files that cannot be read.
func Open(a broker.Address, logger *slog.Logger) (*Broker, error) {
	s, err := read(a)
	if err != nil {
		return nil, err
	}
	b := &Broker{settings: s, logger: logger.With(slog.String("broker", scheme))}
	b.session, b.endSession = context.WithCancel(context.Background())
	options, err := b.options()
	if err != nil {
		return nil, fmt.Errorf("open NATS: %w", err)
	}
	urls := make([]string, len(a.Hosts))
	for i, host := range a.Hosts {
		urls[i] = scheme + "://" + host
	}
	if b.conn, err = nats.Connect(strings.Join(urls, ","), options...); err != nil {
		return nil, fmt.Errorf("open NATS: %w", err)
	}
	if b.js, err = jetstream.New(b.conn, jetstream.WithDefaultTimeout(requestTimeout)); err != nil {
		b.conn.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	return b, nil
}

func (b *Broker) options() ([]nats.Option, error) {
	options := []nats.Option{
		nats.Name("postbus"),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait),
		// What cannot be sent now fails now; whoever sends has it in the log.
		nats.ReconnectBufSize(-1),
		// A password that is wrong now may be changed at the server.
		nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			b.newSession()
			if err != nil {
				b.logger.Warn("connection to the broker was lost", slog.Any("error", err))
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { b.notConnected(err) }),
		nats.ReconnectHandler(func(*nats.Conn) { b.logger.Info("connected to the broker again") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			b.logger.Warn("the broker complains", slog.Any("error", err))
		}),
	}
	password, err := b.address.Password()
	if err != nil {
		return nil, err
	}
	if b.address.User != "" {
		options = append(options, nats.UserInfo(b.address.User, password))
	}
	if b.credentials != "" {
		if _, err := broker.ReadFile(b.credentials); err != nil {
			return nil, err
		}
		options = append(options, nats.UserCredentials(b.credentials))
	}
	return b.withTLS(options)
}

// withTLS has the driver read the files again for each connection.
func (b *Broker) withTLS(options []nats.Option) ([]nats.Option, error) {
	if _, err := b.security.Config(); err != nil {
		return nil, err
	}
	if !b.security.TLS {
		if b.address.Parameter("tls", "") == "" { // since all hosts of the URL are this machine
			options = append(options, nats.SetCustomDialer(localDialer{}))
		}
		return options, nil
	}
	options = append(options, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12}))
	if b.security.CA != "" {
		options = append(options, nats.RootCAs(b.security.CA))
	}
	if b.security.Certificate != "" {
		options = append(options, nats.ClientCert(b.security.Certificate, b.security.Key))
	}
	return options, nil
}

var errClearText = errors.New("a server is elsewhere than on this machine, and the connection has no TLS")

// localDialer keeps clear text on this machine, whatever other servers the server tells of.
type localDialer struct{}

// Dial implements nats.CustomDialer.
func (localDialer) Dial(network, host string) (net.Conn, error) {
	if !(broker.Address{Hosts: []string{host}}).Local() {
		return nil, errClearText
	}
	return (&net.Dialer{Timeout: nats.DefaultTimeout}).Dial(network, host)
}

// newSession has those who wait for an answer on a connection that was lost try again.
func (b *Broker) newSession() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endSession()
	b.session, b.endSession = context.WithCancel(context.Background())
}

func (b *Broker) sessionContext() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.session
}

func (b *Broker) notConnected(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.why = err
}

// Close gives up the connection.
func (b *Broker) Close() error {
	b.conn.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endSession()
	return nil
}

// Publisher implements broker.Broker.
func (b *Broker) Publisher() message.Publisher { return publisher{b} }

// publisher sends a message and waits for the server to have it. Many goroutines make a pipeline.
type publisher struct{ *Broker }

// Publish implements message.Publisher.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		if err := p.publish(topic, m); err != nil {
			return fmt.Errorf("publish to stream %s: %w", p.stream(topic), err)
		}
	}
	return nil
}

func (p publisher) publish(topic string, m *message.Message) error {
	ctx, cancel := context.WithTimeout(m.Context(), requestTimeout)
	defer cancel()
	defer context.AfterFunc(p.sessionContext(), cancel)()
	// Another stream may have come to take this one's subjects; it refuses the message.
	_, err := p.js.PublishMsg(ctx, toNATS(p.subject(topic, m), m), jetstream.WithRetryAttempts(0),
		jetstream.WithExpectStream(p.stream(topic)))
	return err
}

func (b *Broker) stream(topic string) string { return b.prefix + "-" + topic }
