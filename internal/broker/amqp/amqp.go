package amqp

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/broker"
)

const (
	scheme         = "amqp"
	replicasMax    = 9
	retentionLeast = time.Minute
	// guest is whom a new server lets in, from its own machine only.
	guest = "guest"
	// requestTimeout is for what the server has to answer.
	requestTimeout = 5 * time.Second
)

// settings are the parameters of the URL.
type settings struct {
	address   broker.Address
	vhost     string
	prefix    string        // begins the names of streams
	verify    bool          // somebody else makes the streams
	replicas  int           // 0: three, or as many as there are servers
	retention time.Duration // 0: nothing goes
	skipGap   bool
	security  broker.Security
}

// Kind is amqp://, RabbitMQ.
func Kind() broker.Kind {
	return broker.Kind{
		Scheme: scheme, Name: "RabbitMQ",
		Capabilities: broker.Capabilities{
			Crash: true,
			Loss: "two of three servers' machines fail at once; of a server alone: its machine fails, and what its system had not " +
				"written to the disk yet, mostly of half a minute",
			Replay: true, Age: true,
		},
		Check: func(a broker.Address) error { _, err := read(a); return err },
		// Hosts come and go; streams go by virtual host and prefix.
		Identity: func(a broker.Address) string {
			s, _ := read(a) // Check has refused a wrong one
			return fmt.Sprintf("amqp, virtual host %s, prefix %s", s.vhost, s.prefix)
		},
		Open: func(a broker.Address, logger *slog.Logger) (broker.Broker, error) { return Open(a, logger) },
	}
}

func read(a broker.Address) (s settings, err error) {
	if len(a.Hosts) == 0 {
		return s, &broker.URLError{Problem: "must name one HOST:PORT of RabbitMQ or several"}
	}
	if err := a.Known("prefix", "provision", "replicas", "retention", "gap", "tls", "ca", "cert", "key", "password_file"); err != nil {
		return s, err
	}
	if a.User == "" && a.Parameter("password_file", "") != "" {
		return s, &broker.URLError{Problem: "has a parameter password_file and no user"}
	}
	s = settings{address: a}
	var errs [7]error
	s.vhost, errs[0] = vhost(a.Path)
	s.prefix, errs[1] = a.Prefix()
	s.replicas, errs[2] = a.Number("replicas", replicasMax)
	s.retention, errs[3] = a.Retention(retentionLeast)
	s.security, errs[4] = a.Security()
	errs[5] = a.Choice("provision", "create", map[string]bool{"create": false, "verify": true}, &s.verify)
	errs[6] = a.Choice("gap", "stop", map[string]bool{"stop": false, "skip": true}, &s.skipGap)
	return s, cmp.Or(errs[:]...)
}

// vhost is the virtual host that a path means; a slash in its name is %2F there.
func vhost(path string) (string, error) {
	name, err := url.PathUnescape(path)
	if err != nil {
		return "", &broker.URLError{Problem: "has a virtual host, behind the hosts, that is not percent-encoded"}
	}
	return cmp.Or(name, "/"), nil
}

// Broker is RabbitMQ.
type Broker struct {
	settings
	logger  *slog.Logger
	host    atomic.Uint32   // of the hosts, the one to try first
	ctx     context.Context //nolint:containedctx // ends with Close
	stop    context.CancelFunc
	running sync.WaitGroup // what sessions are made of

	takesLarge atomic.Bool // the server takes the largest events

	mu    sync.Mutex
	lines map[string]*line // by stream, that are published to
}

// Open returns the broker. It does not wait for a server: whatever is asked of it before there is one fails, and is to be
// tried again. It returns an error for files that cannot be read.
func Open(a broker.Address, logger *slog.Logger) (*Broker, error) {
	s, err := read(a)
	if err != nil {
		return nil, err
	}
	_, err1 := s.address.Password()
	_, err2 := s.security.Config()
	if err := cmp.Or(err1, err2); err != nil {
		return nil, fmt.Errorf("open RabbitMQ: %w", err)
	}
	b := &Broker{settings: s, logger: logger.With(slog.String("broker", scheme)), lines: make(map[string]*line)}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b, nil
}

// Close gives up the connections.
func (b *Broker) Close() error {
	b.stop()
	b.running.Wait()
	return nil
}

// Publisher implements broker.Broker.
func (b *Broker) Publisher() message.Publisher { return publisher{b} }

func (b *Broker) stream(topic string) string { return b.prefix + "-" + topic }
