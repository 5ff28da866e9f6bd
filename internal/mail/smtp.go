package mail

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

// The bounds of one attempt. Whichever comes first ends it.
const (
	sendTimeout   = 3 * time.Minute  // a whole Send, from dial to the reply to the final dot
	dialTimeout   = 10 * time.Second // until the connection stands
	replyTimeout  = 20 * time.Second // one command's answer, or one write
	finishTimeout = 2 * time.Minute  // the reply to the final dot: whoever does not wait for it does not know
	quitTimeout   = 2 * time.Second  // the goodbye, when the mail is already delivered
)

var errTimeout = errors.New("the timeout of a mail must be more than zero")

// SMTP delivers mails to one server, one connection a mail. It may be used from many goroutines and holds nothing open
// between calls.
type SMTP struct {
	server  Server
	roots   *x509.CertPool
	timeout time.Duration
	now     func() time.Time
}

var _ Sender = (*SMTP)(nil)

// SMTPOption changes one setting of an SMTP.
type SMTPOption func(*SMTP)

// WithRootCAs sets the authorities that the server's certificate is checked against. Default: the system's.
func WithRootCAs(pool *x509.CertPool) SMTPOption {
	return func(s *SMTP) { s.roots = pool }
}

// WithTimeout sets the bound of a whole Send. Default: 3 min.
func WithTimeout(d time.Duration) SMTPOption {
	return func(s *SMTP) { s.timeout = d }
}

// NewSMTP makes a Sender for the server of an SMTP URL. It does not connect. The error is that of ParseURL.
func NewSMTP(smtpURL string, options ...SMTPOption) (*SMTP, error) {
	server, err := ParseURL(smtpURL)
	if err != nil {
		return nil, err
	}
	s := &SMTP{server: server, timeout: sendTimeout, now: time.Now}
	for _, option := range options {
		option(s)
	}
	if s.timeout <= 0 {
		return nil, errTimeout
	}
	return s, nil
}

// Send delivers one mail and returns when the server has answered, within the timeout and within ctx. It calls last when
// all but the final dot is said; an error of that is ErrTemporary. Its errors are *DeliveryError, but for ErrRecipient and a
// Message that cannot be written.
func (s *SMTP) Send(ctx context.Context, m Message, last func(context.Context) error) error {
	mail, err := compose(m, s.now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	session, err := s.open(ctx, mail)
	if err != nil {
		return newDeliveryError(ctx, StepConnect, err)
	}
	step, err := session.deliver(s.server, mail, func() error {
		if last == nil {
			return nil
		}
		return last(ctx)
	})
	if err == nil {
		session.quit()
		return nil
	}
	failure := newDeliveryError(ctx, step, err)
	if failure.Code != 0 {
		session.quit()
	}
	// Without a reply there is no goodbye: the connection is of no more use, and inside an open DATA the library begins
	// it with the final dot, which would make half a mail a whole one.
	session.conn.end()
	return failure
}

// session is one conversation with the server.
type session struct {
	client *smtp.Client
	conn   *boundedConn
}

// open dials, greets and, where the URL says so, encrypts. The connection is closed when ctx ends, whatever it is
// waiting for then.
func (s *SMTP) open(ctx context.Context, mail envelope) (*session, error) {
	var conn *boundedConn
	dial := func(dialCtx context.Context, network, address string) (net.Conn, error) {
		var err error
		if conn, err = s.dial(dialCtx, network, address); err != nil {
			return nil, err
		}
		conn.release = context.AfterFunc(ctx, func() { _ = conn.Conn.Close() })
		if s.server.Security != ImplicitTLS {
			return conn, nil
		}
		encrypted := tls.Client(conn, s.tlsConfig())
		err = encrypted.HandshakeContext(dialCtx)
		return encrypted, err
	}
	_, heloName, _ := strings.Cut(mail.from, "@")
	options := []gomail.Option{
		gomail.WithPort(s.server.Port),
		gomail.WithTimeout(s.timeout),
		gomail.WithHELO(heloName), // not the machine's name, which is nobody's business
		gomail.WithTLSConfig(s.tlsConfig()),
		gomail.WithDialContextFunc(dial),
	}
	switch s.server.Security {
	case ClearText:
		options = append(options, gomail.WithTLSPolicy(gomail.NoTLS))
	case ImplicitTLS:
		options = append(options, gomail.WithSSL())
	case StartTLS:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	}
	client, err := gomail.NewClient(s.server.Host, options...)
	if err != nil {
		return nil, err
	}
	// The session is driven here and not by the library's Send: what a failure means depends on the step, and the
	// library joins a failed goodbye to a success.
	smtpClient, err := client.DialToSMTPClientWithContext(ctx)
	if err != nil {
		if conn != nil {
			conn.end()
		}
		return nil, err
	}
	return &session{client: smtpClient, conn: conn}, nil
}

func (s *SMTP) dial(ctx context.Context, network, address string) (*boundedConn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); s.server.Security == ClearText && (!ok || !tcp.IP.IsLoopback()) {
		_ = conn.Close()
		return nil, errNotLoopback
	}
	return &boundedConn{Conn: conn, timeout: min(replyTimeout, s.timeout), finish: min(finishTimeout, s.timeout)}, nil
}

func (s *SMTP) tlsConfig() *tls.Config {
	return &tls.Config{ServerName: s.server.Host, RootCAs: s.roots, MinVersion: tls.VersionTLS12}
}

// deliver goes through the steps and names the one that failed. last comes right before the final dot.
func (s *session) deliver(server Server, mail envelope, last func() error) (Step, error) {
	if server.login != nil {
		if err := s.signIn(server); err != nil {
			return StepSignIn, err
		}
	}
	if known, _ := s.client.Extension("SMTPUTF8"); mail.to.needUTF8 && !known {
		return StepRecipient, errNoSMTPUTF8
	}
	// Asking for it without need would have the next server on the way refuse the mail.
	s.client.SkipSMTPUTF8(!mail.to.needUTF8)
	if err := s.client.Mail("<" + mail.from + ">"); err != nil {
		return StepSender, err
	}
	if err := s.client.Rcpt("<" + mail.to.address + ">"); err != nil {
		return StepRecipient, err
	}
	content, err := s.client.Data()
	if err != nil {
		return StepContent, err
	}
	// Without Close there is no final dot, so what breaks here was not taken.
	if _, err := content.Write(mail.raw); err != nil {
		return StepContent, err
	}
	if err := last(); err != nil {
		return StepContent, &heldBackError{err}
	}
	s.conn.timeout = s.conn.finish
	if err := content.Close(); err != nil {
		return StepFinish, err
	}
	return "", nil
}

func (s *session) signIn(server Server) error {
	_, offered := s.client.Extension("AUTH")
	user, password := server.login()
	mechanisms := strings.Fields(strings.ToUpper(offered))
	switch {
	case slices.Contains(mechanisms, "PLAIN"):
		return s.client.Auth(smtp.PlainAuth("", user, password, server.Host, false))
	case slices.Contains(mechanisms, "LOGIN"):
		return s.client.Auth(smtp.LoginAuth(user, password, server.Host, false))
	default:
		return errNoAuth
	}
}

// quit says goodbye, briefly, and closes the connection. What the server makes of it does not matter any more.
func (s *session) quit() {
	s.conn.timeout = quitTimeout
	_ = s.client.Quit()
	s.conn.end()
}

// boundedConn gives every read and write its own time. The library's one deadline for everything is overwritten.
type boundedConn struct {
	net.Conn
	timeout time.Duration
	finish  time.Duration // what timeout is for the reply to the final dot
	release func() bool   // undoes the closing at the context's end
}

func (c *boundedConn) Read(p []byte) (int, error) {
	if err := c.Conn.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, fmt.Errorf("set read deadline: %w", err)
	}
	return c.Conn.Read(p)
}

func (c *boundedConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, fmt.Errorf("set write deadline: %w", err)
	}
	return c.Conn.Write(p)
}

func (c *boundedConn) end() {
	c.release()
	_ = c.Conn.Close()
}
