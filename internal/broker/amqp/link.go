package amqp

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"postbus/internal/broker"
)

const (
	// hostTimeout is for one host to let us in; a second one has some of requestTimeout left.
	hostTimeout = 3 * time.Second
	// heartbeat is what the server is told. Half of it is how often a word comes when there is nothing to say; three that
	// do not come, and the connection counts as lost.
	heartbeat    = 6 * time.Second
	writeTimeout = 5 * time.Second
	closeTimeout = time.Second
	port         = "5672"
	portTLS      = "5671"
)

// link is a connection. It is not made again when it is lost.
type link struct {
	*amqp.Connection
	wire net.Conn
}

// dial connects to the first host that lets us in.
func (b *Broker) dial(ctx context.Context) (*link, error) {
	var last error
	for range b.address.Hosts {
		at := b.host.Load()
		l, err := b.dialHost(ctx, b.address.Hosts[int(at)%len(b.address.Hosts)])
		if err == nil {
			return l, nil
		}
		b.nextHost(at)
		last = err
	}
	return nil, last
}

// nextHost has another host tried first, unless somebody has seen to that since.
func (b *Broker) nextHost(at uint32) { b.host.CompareAndSwap(at, at+1) }

func (b *Broker) dialHost(ctx context.Context, host string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, hostTimeout)
	defer cancel()
	password, err1 := b.address.Password()
	security, err2 := b.security.Config()
	if err := cmp.Or(err1, err2); err != nil {
		return nil, err
	}
	wire, name, err := dialWire(ctx, host, security != nil)
	if err != nil {
		return nil, err
	}
	l := &link{wire: wire}
	defer l.until(ctx)()
	var secured net.Conn = bounded{wire}
	if security != nil {
		security.ServerName = name
		client := tls.Client(secured, security)
		if err := client.HandshakeContext(ctx); err != nil {
			_ = wire.Close()
			return nil, fmt.Errorf("connect to %s: %w", host, err)
		}
		secured = client
	}
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName("postbus")
	l.Connection, err = amqp.Open(secured, amqp.Config{
		SASL:  []amqp.Authentication{&login{user: cmp.Or(b.address.User, guest), password: b.password(password), properties: properties}},
		Vhost: b.vhost, Heartbeat: heartbeat, Properties: properties, Locale: "en_US",
	})
	if err != nil {
		_ = wire.Close()
		return nil, fmt.Errorf("connect to %s: %w", host, err)
	}
	return l, nil
}

// password is that of the URL, or of guest where the URL names nobody.
func (b *Broker) password(given string) string {
	if b.address.User == "" {
		return guest
	}
	return given
}

// dialWire returns a connection to a host, and the name by which it should know itself.
func dialWire(ctx context.Context, host string, secure bool) (net.Conn, string, error) {
	u, err := url.Parse("//" + host)
	if err != nil {
		return nil, "", fmt.Errorf("read a host of the URL: %w", err)
	}
	otherwise := port
	if secure {
		otherwise = portTLS
	}
	wire, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), otherwise)))
	if err != nil {
		return nil, "", fmt.Errorf("connect to %s: %w", host, err)
	}
	return wire, u.Hostname(), nil
}

// until has whatever waits for the server fail when ctx ends, since the driver's calls have no context. The link is of no use
// then. What it returns lets go of ctx.
func (l *link) until(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() { _ = l.wire.Close() })
	return func() { stop() }
}

// close says goodbye, if the server listens.
func (l *link) close() {
	_ = l.CloseDeadline(time.Now().Add(closeTimeout)) // or it is closed already
	_ = l.wire.Close()
}

// bounded is a connection that a server which reads nothing does not hold up for long: it fails, which ends it.
type bounded struct{ net.Conn }

// Write implements net.Conn.
func (c bounded) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// login is a user and password (SASL PLAIN). It asks the server to answer wrong ones, which the driver does not: the server
// would close the connection after seconds and without a word, as one does that goes away.
type login struct {
	user, password string
	properties     amqp.Table // that the driver is about to send
}

// Mechanism implements amqp.Authentication.
func (*login) Mechanism() string { return "PLAIN" }

// Response implements amqp.Authentication.
func (l *login) Response() string {
	if capabilities, ok := l.properties["capabilities"].(amqp.Table); ok {
		capabilities["authentication_failure_close"] = true
	}
	return "\x00" + l.user + "\x00" + l.password
}

// refusal tells why the server lets nobody in, or makes no stream, if no waiting will mend that; otherwise it is "".
func refusal(err error) string {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	if errors.As(err, &record) {
		return "the server does not speak TLS; let it, or say tls=off in the URL if clear text will do"
	}
	if errors.As(err, &certificate) {
		return "the server has a certificate that is not trusted; name its authority as ca in the URL"
	}
	var said *amqp.Error
	if !errors.As(err, &said) || !said.Server {
		return ""
	}
	switch said.Code {
	case amqp.AccessRefused:
		return "the server refuses: " + said.Reason
	case amqp.NotAllowed: // a virtual host, or connections that are too many
		return "the server does not allow it: " + said.Reason
	case amqp.PreconditionFailed:
		return "the server refuses the settings: " + said.Reason
	}
	return ""
}

// refused makes an error of the driver a *broker.RefusedError, if it is that.
func refused(err error) error {
	if reason := refusal(err); reason != "" {
		return &broker.RefusedError{Reason: reason}
	}
	return err
}
