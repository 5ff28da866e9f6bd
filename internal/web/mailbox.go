package web

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"

	"postbus/internal/mail"
)

// Mailbox is where mail goes while no SMTP server is set. Read returns mail.ErrNotFound for an id that is not one of
// List's.
type Mailbox interface {
	List() ([]mail.Entry, error)
	Read(id string) (mail.Mail, error)
}

// baseTarget makes the links of a mail open in the whole window, not in the frame that shows the mail.
const baseTarget = `<base target="_top">`

// letterPolicy is the Content-Security-Policy of a mail's HTML: nothing runs, nothing is fetched, no form is sent; a
// click on a link may leave the frame.
const letterPolicy = "sandbox allow-top-navigation-by-user-activation; default-src 'none'; style-src 'unsafe-inline'; " +
	"img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"

// mailboxRefusal says why this request may not see the mailbox, or nil. The mails in it hold working links of other
// people, so it is for browsers on this machine alone: the connection comes from a loopback address, not through a
// proxy, and the Host header names this machine, which keeps out a web page whose own name was made to resolve to
// 127.0.0.1.
func (a *App) mailboxRefusal(r *http.Request) error {
	forwarded := r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "" ||
		r.Header.Get("X-Forwarded-Host") != "" || r.Header.Get("X-Real-Ip") != ""
	if peerIP(r).IsLoopback() && !forwarded && isLocalHost(hostOf(r.Host)) {
		return nil
	}
	return &problem{
		status: http.StatusForbidden, code: "mailbox_is_local",
		message: "The local mailbox is only shown to a browser on the machine that runs the app, " +
			"under a local address such as http://127.0.0.1.",
	}
}

// hostOf is a Host header without its port, and without an IPv6 address's brackets.
func hostOf(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

// isLocalHost reports whether a host names this machine and no other: a loopback address, or localhost.
func isLocalHost(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || strings.EqualFold(host, "localhost")
}

func (a *App) showMailbox(w http.ResponseWriter, r *http.Request) error {
	if err := a.mailboxRefusal(r); err != nil {
		return err
	}
	letters, err := a.config.Mailbox.List()
	if err != nil {
		return err
	}
	a.sendPage(w, r, http.StatusOK, view{Name: "mailbox", Title: "Mailbox", Letters: letters})
	return nil
}

func (a *App) showLetter(w http.ResponseWriter, r *http.Request) error {
	letter, err := a.letter(r)
	if err != nil {
		return err
	}
	letters, err := a.config.Mailbox.List()
	if err != nil {
		return err
	}
	a.sendPage(w, r, http.StatusOK, view{
		Name: "mailbox", Title: letter.Subject, Letters: letters, Letter: &letter,
		AsText: letter.HTML == "" || r.URL.Query().Get("as") == "text",
	})
	return nil
}

// letter reads the mail that the path names, for those who may see it.
func (a *App) letter(r *http.Request) (mail.Mail, error) {
	if err := a.mailboxRefusal(r); err != nil {
		return mail.Mail{}, err
	}
	letter, err := a.config.Mailbox.Read(r.PathValue("id"))
	if errors.Is(err, mail.ErrNotFound) {
		return mail.Mail{}, &problem{
			status: http.StatusNotFound, code: "mail_not_found",
			message: "This mail is not in the mailbox, or not any more.",
		}
	}
	return letter, err
}

// showLetterHTML gives a mail's own HTML, for the frame of showLetter.
func (a *App) showLetterHTML(w http.ResponseWriter, r *http.Request) error {
	letter, err := a.letter(r)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Security-Policy", letterPolicy)
	w.Header().Set("X-Frame-Options", "SAMEORIGIN")
	a.write(w, r, http.StatusOK, "text/html; charset=utf-8", withBase([]byte(letter.HTML)))
	return nil
}

var headTag = regexp.MustCompile(`(?i)<head[^>]*>`)

// withBase puts baseTarget into the head of a document, or before everything if there is no head.
func withBase(document []byte) []byte {
	at := 0
	if head := headTag.FindIndex(document); head != nil {
		at = head[1]
	}
	return bytes.Join([][]byte{document[:at], []byte(baseTarget), document[at:]}, nil)
}
