package mail

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"
)

const (
	testUser     = "postbus"
	testPassword = "p@ss:w/rd 100%"
)

// delivered is what a server took, with the arguments of its commands.
type delivered struct{ from, to, data string }

// backend is a mail server's memory; its error fields say what it refuses.
type backend struct {
	needLogin                         bool
	mailError, rcptError, dataError   error
	mu                                sync.Mutex
	mails                             []delivered
	askedUTF8                         bool
	logins                            int
	refuseEveryLogin, offersOnlyLogin bool
}

func (b *backend) NewSession(*gosmtp.Conn) (gosmtp.Session, error) { return &serverSession{b: b}, nil }

func (b *backend) received(t *testing.T, want int) []delivered {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.mails) != want {
		t.Fatalf("the server took %d mails, want %d", len(b.mails), want)
	}
	return b.mails
}

type serverSession struct {
	b        *backend
	mail     delivered
	loggedIn bool
}

func (s *serverSession) AuthMechanisms() []string {
	if !s.b.needLogin {
		return nil
	}
	if s.b.offersOnlyLogin {
		return []string{sasl.Login}
	}
	return []string{sasl.Plain}
}

func (s *serverSession) Auth(mechanism string) (sasl.Server, error) {
	check := func(_, user, password string) error {
		if s.b.refuseEveryLogin || user != testUser || password != testPassword {
			return gosmtp.ErrAuthFailed
		}
		s.loggedIn = true
		s.b.mu.Lock()
		defer s.b.mu.Unlock()
		s.b.logins++
		return nil
	}
	if mechanism == sasl.Login {
		return &loginServer{check: check}, nil
	}
	return sasl.NewPlainServer(check), nil
}

// loginServer is the other side of AUTH LOGIN, which go-sasl does not have.
type loginServer struct {
	check func(identity, user, password string) error
	turn  int
	user  string
}

func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	l.turn++
	switch l.turn {
	case 1:
		return []byte("Username:"), false, nil
	case 2:
		l.user = string(response)
		return []byte("Password:"), false, nil
	default:
		return nil, true, l.check("", l.user, string(response))
	}
}

func (s *serverSession) Mail(from string, opts *gosmtp.MailOptions) error {
	if s.b.needLogin && !s.loggedIn {
		return gosmtp.ErrAuthRequired
	}
	s.b.mu.Lock()
	s.b.askedUTF8 = opts.UTF8
	s.b.mu.Unlock()
	s.mail = delivered{from: from}
	return s.b.mailError
}

func (s *serverSession) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	s.mail.to = to
	return s.b.rcptError
}

func (s *serverSession) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if s.b.dataError != nil {
		return s.b.dataError
	}
	s.mail.data = string(data)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.mails = append(s.b.mails, s.mail)
	return nil
}

func (s *serverSession) Reset()        {}
func (s *serverSession) Logout() error { return nil }

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve runs a real SMTP server on loopback and gives its host:port.
func serve(t *testing.T, b *backend, l net.Listener, configure func(*gosmtp.Server)) string {
	t.Helper()
	server := gosmtp.NewServer(b)
	server.Domain = "mail.test"
	server.ErrorLog = log.New(io.Discard, "", 0)
	server.EnableSMTPUTF8 = true
	if configure != nil {
		configure(server)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // ends with an error when it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		_ = l.Close() // Close knows only a listener that Serve got to
		<-ended
	})
	return l.Addr().String()
}

// certificates makes an authority and a server's certificate for the given names and addresses.
func certificates(t *testing.T, names []string, ips ...net.IP) (*x509.CertPool, *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		DNSNames:              names,
		IPAddresses:           ips,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return pool, &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS12,
	}
}

// scriptPatience is how long a script waits for the other side: a test whose client neither speaks nor hangs up ends.
const scriptPatience = 30 * time.Second

// script is a server for what a well-behaved one never does. Each connection is given to talk and closed after it.
func script(t *testing.T, talk func(*conversation)) string {
	t.Helper()
	l := listen(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if err := conn.SetDeadline(time.Now().Add(scriptPatience)); err != nil {
				t.Error(err)
			}
			talk(&conversation{conn: conn, r: bufio.NewReader(conn)})
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
	})
	return l.Addr().String()
}

type conversation struct {
	conn    net.Conn
	r       *bufio.Reader
	stalled chan struct{} // closed when hearOut begins, which is where a script stalls
}

func (c *conversation) say(line string) { _, _ = io.WriteString(c.conn, line+"\r\n") }

// hear reads a command, or the empty string when the other side is gone.
func (c *conversation) hear() string {
	line, _ := c.r.ReadString('\n')
	return strings.TrimRight(line, "\r\n")
}

// hearOut reads until the other side closes the connection.
func (c *conversation) hearOut() string {
	if c.stalled != nil {
		close(c.stalled)
	}
	rest, _ := io.ReadAll(c.r)
	return string(rest)
}

// untilData is polite up to and including the reply to DATA.
func (c *conversation) untilData() {
	c.say("220 mail.test")
	for command := c.hear(); command != ""; command = c.hear() {
		if command == "DATA" {
			c.say("354 go on")
			return
		}
		c.say("250 ok")
	}
}

// hearMail reads a mail with its final dot.
func (c *conversation) hearMail() string {
	var mail strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil || line == ".\r\n" {
			return mail.String()
		}
		mail.WriteString(line)
	}
}
