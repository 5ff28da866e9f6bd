package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
)

func newTestSMTP(t *testing.T, url string, options ...SMTPOption) *SMTP {
	t.Helper()
	s, err := NewSMTP(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// expect checks the outcome of a Send, and that the error keeps the recipient to itself.
func expect(t *testing.T, err, kind error, step Step, code int, status string) {
	t.Helper()
	failure, ok := errors.AsType[*DeliveryError](err)
	if !ok || !errors.Is(err, kind) {
		t.Fatalf("got %v, want a DeliveryError of kind %v", err, kind)
	}
	if failure.Step != step || failure.Code != code || failure.Status != status {
		t.Errorf("got step %q, code %d, status %q, want %q, %d, %q: %v",
			failure.Step, failure.Code, failure.Status, step, code, status, err)
	}
	for _, other := range []error{ErrTemporary, ErrRefused, ErrUnsure} {
		if !errors.Is(kind, other) && errors.Is(err, other) {
			t.Errorf("%v is of kind %v as well", err, other)
		}
	}
	if strings.Contains(err.Error(), "ada") || strings.Contains(err.Error(), testPassword) {
		t.Errorf("the error tells too much: %v", err)
	}
}

func TestSMTPDeliversInClearTextOnLoopback(t *testing.T) {
	b := &backend{}
	address := serve(t, b, listen(t), nil)
	s := newTestSMTP(t, "smtp://"+address)
	m := testMessage(t)
	m.To = "ada@bücher.example"
	if err := s.Send(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	got := b.received(t, 1)[0]
	if got.from != "no-reply@post.example.com" || got.to != "ada@xn--bcher-kva.example" {
		t.Errorf("envelope from %q to %q", got.from, got.to)
	}
	mail, err := parseMail(strings.NewReader(got.data))
	if err != nil {
		t.Fatal(err)
	}
	if mail.MessageID != m.ID || mail.Text != m.Text || mail.HTML != m.HTML || mail.To != "ada@xn--bcher-kva.example" {
		t.Errorf("the mail arrived changed: %+v", mail)
	}
	if !strings.Contains(got.data, "Auto-Submitted: auto-generated\r\n") || time.Since(mail.Date) > time.Minute {
		t.Errorf("headers:\n%.400s", got.data)
	}
	if b.askedUTF8 {
		t.Error("SMTPUTF8 was asked for without need")
	}
}

func TestSMTPUTF8IsAskedForWhenTheAddressNeedsIt(t *testing.T) {
	b := &backend{}
	m := testMessage(t)
	m.To = "dörte@example.org"
	if err := newTestSMTP(t, "smtp://"+serve(t, b, listen(t), nil)).Send(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	if got := b.received(t, 1)[0]; got.to != m.To || !b.askedUTF8 {
		t.Errorf("to %q, SMTPUTF8 %v", got.to, b.askedUTF8)
	}
	without := &backend{}
	address := serve(t, without, listen(t), func(s *gosmtp.Server) { s.EnableSMTPUTF8 = false })
	err := newTestSMTP(t, "smtp://"+address).Send(t.Context(), m, nil)
	expect(t, err, ErrRefused, StepRecipient, 0, "")
	without.received(t, 0)
}

func TestSMTPRefusesHostileRecipientsBeforeDialling(t *testing.T) {
	address := script(t, func(*conversation) { t.Error("a connection was made") })
	s := newTestSMTP(t, "smtp://"+address)
	for _, to := range hostileRecipients {
		m := testMessage(t)
		m.To = to
		if err := s.Send(t.Context(), m, nil); !errors.Is(err, ErrRecipient) || !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %v", to, err)
		}
	}
}

func TestNewSMTPRefusesClearTextToOtherMachines(t *testing.T) {
	if _, err := NewSMTP("smtp://mailcatcher:1025"); !errors.Is(err, errURLClearText) {
		t.Errorf("got %v", err)
	}
	if _, err := NewSMTP("smtp://localhost:1025", WithTimeout(0)); !errors.Is(err, errTimeout) {
		t.Errorf("got %v", err)
	}
}

// A hosts file can lead localhost away; the address that answers is what counts.
func TestClearTextEndsWhenTheNameLeadsAway(t *testing.T) {
	ip := outsideAddress(t)
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Skipf("no address but loopback to listen on: %v", err)
	}
	b := &backend{}
	s := newTestSMTP(t, "smtp://localhost")
	_, err = s.dial(t.Context(), "tcp", serve(t, b, l, nil))
	if !errors.Is(err, errNotLoopback) {
		t.Errorf("got %v", err)
	}
}

func outsideAddress(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but loopback")
	return ""
}

// testLogin is testUser and testPassword as they stand in a URL.
const testLogin = "postbus:p%40ss%3Aw%2Frd%20100%25@"

func withTLS(c *tls.Config) func(*gosmtp.Server) { return func(s *gosmtp.Server) { s.TLSConfig = c } }

func TestTLSAndLogin(t *testing.T) {
	pool, config := certificates(t, []string{"localhost"}, net.IPv4(127, 0, 0, 1))
	t.Run("STARTTLS with AUTH PLAIN", func(t *testing.T) {
		b := &backend{needLogin: true}
		address := serve(t, b, listen(t), withTLS(config))
		s := newTestSMTP(t, "smtp+starttls://"+testLogin+address, WithRootCAs(pool))
		if err := s.Send(t.Context(), testMessage(t), nil); err != nil {
			t.Fatal(err)
		}
		b.received(t, 1)
	})
	t.Run("implicit TLS with AUTH LOGIN", func(t *testing.T) {
		b := &backend{needLogin: true, offersOnlyLogin: true}
		address := serve(t, b, tls.NewListener(listen(t), config), nil)
		s := newTestSMTP(t, "smtps://"+testLogin+address, WithRootCAs(pool))
		if err := s.Send(t.Context(), testMessage(t), nil); err != nil {
			t.Fatal(err)
		}
		b.received(t, 1)
		if b.logins != 1 {
			t.Errorf("%d logins", b.logins)
		}
	})
	t.Run("a wrong password may be mended", func(t *testing.T) {
		b := &backend{needLogin: true, refuseEveryLogin: true}
		address := serve(t, b, tls.NewListener(listen(t), config), nil)
		err := newTestSMTP(t, "smtps://"+testLogin+address, WithRootCAs(pool)).Send(t.Context(), testMessage(t), nil)
		expect(t, err, ErrTemporary, StepSignIn, 535, "5.7.8")
		b.received(t, 0)
	})
	t.Run("a server without AUTH gets no mail", func(t *testing.T) {
		b := &backend{}
		address := serve(t, b, tls.NewListener(listen(t), config), nil)
		err := newTestSMTP(t, "smtps://"+testLogin+address, WithRootCAs(pool)).Send(t.Context(), testMessage(t), nil)
		expect(t, err, ErrTemporary, StepSignIn, 0, "")
		b.received(t, 0)
	})
	t.Run("a server without STARTTLS gets neither password nor mail", func(t *testing.T) {
		b := &backend{needLogin: true}
		address := serve(t, b, listen(t), func(s *gosmtp.Server) { s.AllowInsecureAuth = true })
		err := newTestSMTP(t, "smtp+starttls://"+testLogin+address, WithRootCAs(pool)).Send(t.Context(), testMessage(t), nil)
		expect(t, err, ErrTemporary, StepConnect, 0, "")
		if b.received(t, 0); b.logins != 0 || !strings.Contains(err.Error(), "STARTTLS") {
			t.Errorf("%d logins, %v", b.logins, err)
		}
	})
}

func TestWrongCertificatesAreRefused(t *testing.T) {
	ip := net.IPv4(127, 0, 0, 1)
	_, config := certificates(t, []string{"localhost"}, ip)
	foreign, _ := certificates(t, []string{"localhost"}, ip)
	otherPool, otherName := certificates(t, []string{"mail.example.com"})
	for name, c := range map[string]struct {
		server  *tls.Config
		trusted SMTPOption
	}{
		"an unknown authority": {config, WithRootCAs(foreign)},
		"the system's roots":   {config, WithRootCAs(nil)},
		"another host's name":  {otherName, WithRootCAs(otherPool)},
	} {
		for _, scheme := range []string{"smtps", "smtp+starttls"} {
			t.Run(scheme+" with "+name+" is refused", func(t *testing.T) {
				b, l := &backend{needLogin: true}, listen(t)
				if scheme == "smtps" {
					l = tls.NewListener(l, c.server)
				}
				address := serve(t, b, l, withTLS(c.server))
				err := newTestSMTP(t, scheme+"://"+testLogin+address, c.trusted).Send(t.Context(), testMessage(t), nil)
				expect(t, err, ErrTemporary, StepConnect, 0, "")
				if b.received(t, 0); b.logins != 0 || !strings.Contains(err.Error(), "certificate") {
					t.Errorf("%d logins, %v", b.logins, err)
				}
			})
		}
	}
}

func TestConnectionRefused(t *testing.T) {
	l := listen(t)
	address := l.Addr().String()
	_ = l.Close()
	err := newTestSMTP(t, "smtp://"+address).Send(t.Context(), testMessage(t), nil)
	expect(t, err, ErrTemporary, StepConnect, 0, "")
}

func TestRepliesAreClassified(t *testing.T) {
	reply := func(code int, a, b, c int) error {
		return &gosmtp.SMTPError{Code: code, EnhancedCode: gosmtp.EnhancedCode{a, b, c}, Message: "no, <" + testTo + ">: ada"}
	}
	tests := map[string]struct {
		backend *backend
		kind    error
		step    Step
		code    int
		status  string
	}{
		"sender later":    {&backend{mailError: reply(451, 4, 3, 0)}, ErrTemporary, StepSender, 451, "4.3.0"},
		"sender never":    {&backend{mailError: reply(550, 5, 7, 1)}, ErrTemporary, StepSender, 550, "5.7.1"},
		"recipient later": {&backend{rcptError: reply(450, 4, 2, 1)}, ErrTemporary, StepRecipient, 450, "4.2.1"},
		"recipient never": {&backend{rcptError: reply(550, 5, 1, 1)}, ErrRefused, StepRecipient, 550, "5.1.1"},
		"content later":   {&backend{dataError: reply(452, 4, 3, 1)}, ErrTemporary, StepFinish, 452, "4.3.1"},
		"content never":   {&backend{dataError: reply(554, 5, 6, 0)}, ErrRefused, StepFinish, 554, "5.6.0"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newTestSMTP(t, "smtp://"+serve(t, test.backend, listen(t), nil))
			expect(t, s.Send(t.Context(), testMessage(t), nil), test.kind, test.step, test.code, test.status)
			test.backend.received(t, 0)
		})
	}
}

func TestServersThatDoNotSpeakAsTheyShould(t *testing.T) {
	tests := map[string]struct {
		talk func(*conversation)
		kind error
		step Step
		code int
	}{
		"not SMTP":         {func(c *conversation) { c.say("HTTP/1.1 400 Bad Request") }, ErrTemporary, StepConnect, 0},
		"closed at once":   {func(*conversation) {}, ErrTemporary, StepConnect, 0},
		"busy":             {func(c *conversation) { c.say("421 4.3.2 later") }, ErrTemporary, StepConnect, 421},
		"no service":       {func(c *conversation) { c.say("554 no") }, ErrTemporary, StepConnect, 554},
		"nonsense at DATA": {func(c *conversation) { c.untilData(); c.hearMail(); c.say("ada?") }, ErrUnsure, StepFinish, 0},
		"354 at the end":   {func(c *conversation) { c.untilData(); c.hearMail(); c.say("354 again") }, ErrUnsure, StepFinish, 354},
		"shut down at end": {func(c *conversation) { c.untilData(); c.hearMail(); c.say("421 bye") }, ErrTemporary, StepFinish, 421},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := newTestSMTP(t, "smtp://"+script(t, test.talk)).Send(t.Context(), testMessage(t), nil)
			failure, ok := errors.AsType[*DeliveryError](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			expect(t, err, test.kind, test.step, test.code, failure.Status)
		})
	}
}

func TestSuccessStandsWhenTheGoodbyeFails(t *testing.T) {
	address := script(t, func(c *conversation) { c.untilData(); c.hearMail(); c.say("250 taken") })
	if err := newTestSMTP(t, "smtp://"+address).Send(t.Context(), testMessage(t), nil); err != nil {
		t.Error(err)
	}
}

// A server that stalls is left within the timeout, and within the caller's context; what that means for the mail depends
// on whether the final dot was sent.
func TestSlowServers(t *testing.T) {
	stalls := map[string]struct {
		talk func(*conversation)
		kind error
		step Step
	}{
		"no banner":         {func(c *conversation) { c.hearOut() }, ErrTemporary, StepConnect},
		"no answer to EHLO": {func(c *conversation) { c.say("220 mail.test"); c.hearOut() }, ErrTemporary, StepConnect},
		"no answer to MAIL": {func(c *conversation) {
			c.say("220 mail.test")
			c.hear()
			c.say("250 mail.test")
			c.hearOut()
		}, ErrTemporary, StepSender},
		"no answer to the final dot": {func(c *conversation) { c.untilData(); c.hearMail(); c.hearOut() }, ErrUnsure, StepFinish},
	}
	for name, test := range stalls {
		t.Run(name+", timeout", func(t *testing.T) {
			start := time.Now()
			s := newTestSMTP(t, "smtp://"+script(t, test.talk), WithTimeout(200*time.Millisecond))
			err := s.Send(t.Context(), testMessage(t), nil)
			expect(t, err, test.kind, test.step, 0, "")
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("not said to be a timeout: %v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
		t.Run(name+", cancelled", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			stalled := make(chan struct{})
			address := script(t, func(c *conversation) {
				c.stalled = stalled
				test.talk(c)
			})
			go func() {
				<-stalled
				cancel()
			}()
			start := time.Now()
			err := newTestSMTP(t, "smtp://"+address).Send(ctx, testMessage(t), nil)
			if !errors.Is(err, context.Canceled) || !errors.Is(err, test.kind) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestSendWithAContextThatIsOver(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	address := script(t, func(c *conversation) { c.hearOut() })
	err := newTestSMTP(t, "smtp://"+address).Send(ctx, testMessage(t), nil)
	expect(t, err, ErrTemporary, StepConnect, 0, "")
}

// The server took the mail and the reply was lost. The sender cannot know; the repeat is the same mail.
func TestCutOffAfterTheFinalDot(t *testing.T) {
	taken := make(chan string, 1)
	cutting := newTestSMTP(t, "smtp://"+script(t, func(c *conversation) {
		c.untilData()
		taken <- c.hearMail()
	}))
	post := newTestPost(t, cutting)
	err := post.Verification(t.Context(), testTo, testLink, testEvent)
	expect(t, err, ErrUnsure, StepFinish, 0, "")
	first, err := parseMail(strings.NewReader(<-taken))
	if err != nil {
		t.Fatal(err)
	}

	b := &backend{}
	post = newTestPost(t, newTestSMTP(t, "smtp://"+serve(t, b, listen(t), nil)))
	if err := post.Verification(t.Context(), testTo, testLink, testEvent); err != nil {
		t.Fatal(err)
	}
	second, err := parseMail(strings.NewReader(b.received(t, 1)[0].data))
	if err != nil {
		t.Fatal(err)
	}
	if first.MessageID != second.MessageID || first.Text != second.Text || first.HTML != second.HTML ||
		!strings.Contains(second.Text, testLink) {
		t.Errorf("the repeat is another mail:\n%+v\n%+v", first, second)
	}
}

// An attempt that is given up inside the content must not end it with the final dot, or the server takes half a mail.
func TestGivingUpInsideTheContentSendsNoFinalDot(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	rest := make(chan string, 1)
	address := script(t, func(c *conversation) {
		c.untilData()
		_, _ = c.r.Peek(1) // the content is on its way, and more of it than the buffers between us hold
		cancel()
		rest <- c.hearOut()
	})
	m := testMessage(t)
	m.HTML = strings.Repeat("<p>much</p>\n", 1<<20)
	err := newTestSMTP(t, "smtp://"+address).Send(ctx, m, nil)
	expect(t, err, ErrTemporary, StepContent, 0, "")
	if heard := <-rest; strings.HasSuffix(heard, "\r\n.\r\n") || strings.Contains(heard, "QUIT") {
		t.Error("the server was told that the mail is complete")
	}
}
