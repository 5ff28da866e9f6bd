package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	netmail "net/mail"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
)

// The subjects of our mails.
const (
	verification      = "Confirm your email address"
	welcome           = "Welcome to postbus"
	alreadyRegistered = "You already have an account"
)

// letter is a mail that the office has received in full, whatever it answered.
type letter struct {
	id, to, subject string
	text, html      string
	link            string // to /verify, if it has one
}

// office is a real SMTP server that keeps what it receives.
type office struct {
	t       testing.TB
	addr    string
	letters watched[[]letter]
	held    watched[int] // how many letters hold has caught

	refuses watched[string]               // the recipient that it does not have
	hangUps atomic.Int32                  // for how many letters it hangs up after the final dot
	hold    atomic.Pointer[chan struct{}] // if set, the answer to the final dot waits for it to be closed
}

// openOffice serves until the test's end.
func openOffice(t testing.TB) *office {
	t.Helper()
	o := &office{t: t, addr: "127.0.0.1:0"}
	o.open()
	return o
}

// closedOffice has an address, on which nothing listens before open.
func closedOffice(t testing.TB) *office {
	t.Helper()
	return &office{t: t, addr: "127.0.0.1:" + freePort(t)}
}

func (o *office) open() {
	o.t.Helper()
	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		o.t.Fatal(err)
	}
	o.addr = listener.Addr().String()
	server := gosmtp.NewServer(gosmtp.BackendFunc(func(c *gosmtp.Conn) (gosmtp.Session, error) {
		return &session{office: o, conn: c}, nil
	}))
	server.Domain = "mail.test"
	server.ErrorLog = log.New(io.Discard, "", 0) // of killed clients
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener) // ends with an error when it is closed
	}()
	o.t.Cleanup(func() {
		_ = server.Close()
		_ = listener.Close() // Close knows only a listener that Serve got to
		<-ended
	})
}

// of returns the letters to that address with that subject, in the order of arrival. Empty stands for any.
func (o *office) of(to, subject string) []letter {
	all, _ := o.letters.get()
	return choose(all, to, subject)
}

func choose(all []letter, to, subject string) []letter {
	var chosen []letter
	for _, l := range all {
		if (to == "" || l.to == to) && (subject == "" || l.subject == subject) {
			chosen = append(chosen, l)
		}
	}
	return chosen
}

// await returns the first letter to that address with that subject.
func (o *office) await(to, subject string) letter {
	o.t.Helper()
	return o.awaitWithin(patience, to, subject)
}

func (o *office) awaitWithin(within time.Duration, to, subject string) letter {
	o.t.Helper()
	return o.awaitMany(within, 1, to, subject)[0]
}

// awaitMany returns the letters to that address with that subject as soon as there are so many.
func (o *office) awaitMany(within time.Duration, n int, to, subject string) []letter {
	o.t.Helper()
	all := o.letters.await(o.t, fmt.Sprintf("%d letters to %s: %s", n, to, subject), within,
		func(all []letter) bool { return len(choose(all, to, subject)) >= n })
	return choose(all, to, subject)
}

// holdBack makes the office receive letters and answer nothing, until release is called. Called again, release does
// nothing.
func (o *office) holdBack() (release func()) {
	gate := make(chan struct{})
	o.hold.Store(&gate)
	return sync.OnceFunc(func() {
		o.hold.CompareAndSwap(&gate, nil)
		close(gate)
	})
}

// session is one SMTP session.
type session struct {
	office *office
	conn   *gosmtp.Conn
	to     string
}

func (s *session) Mail(string, *gosmtp.MailOptions) error { return nil }

func (s *session) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	s.to = to
	if unknown, _ := s.office.refuses.get(); unknown == to {
		return &gosmtp.SMTPError{Code: 550, EnhancedCode: gosmtp.EnhancedCode{5, 1, 1}, Message: "no such person"}
	}
	return nil
}

func (s *session) Data(r io.Reader) error {
	l, err := parseLetter(r, s.to)
	if err != nil {
		if !errors.Is(err, io.ErrUnexpectedEOF) { // the client was killed
			s.office.t.Errorf("the office received no proper mail: %v", err)
		}
		return err
	}
	gate := s.office.hold.Load()
	s.office.letters.update(func(all []letter) []letter { return append(all, l) })
	if gate != nil {
		s.office.held.update(func(n int) int { return n + 1 })
		<-*gate
	}
	if s.office.hangUps.Add(-1) >= 0 {
		return s.conn.Conn().Close()
	}
	return nil
}

func (s *session) Reset()        {}
func (s *session) Logout() error { return nil }

var verifyLink = regexp.MustCompile(`http://\S+/verify\?token=[A-Za-z0-9_-]{43}\b`)

// parseLetter reads a mail with the standard library, as a mail program would.
func parseLetter(r io.Reader, to string) (letter, error) {
	m, err := netmail.ReadMessage(r)
	if err != nil {
		return letter{}, err
	}
	l := letter{to: to, id: m.Header.Get("Message-Id"), subject: m.Header.Get("Subject")}
	_, parameters, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		return letter{}, err
	}
	parts := multipart.NewReader(m.Body, parameters["boundary"])
	for {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return letter{}, err
		}
		content, err := io.ReadAll(quotedprintable.NewReader(part))
		if err != nil {
			return letter{}, err
		}
		if strings.HasPrefix(part.Header.Get("Content-Type"), "text/html") {
			l.html = string(content)
		} else {
			l.text = string(content)
		}
	}
	l.link = verifyLink.FindString(l.text)
	switch {
	case l.id == "" || l.text == "" || l.html == "":
		return letter{}, fmt.Errorf("a mail without Message-ID, text or HTML: %+v", l)
	case l.subject == verification && (l.link == "" || !strings.Contains(l.html, `href="`+l.link+`"`)):
		return letter{}, fmt.Errorf("the link is not in both parts: %+v", l)
	}
	return l, nil
}
