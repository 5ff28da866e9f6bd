package mail

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	netmail "net/mail"
	"regexp"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// Message is one mail to one person.
type Message struct {
	// ID is the Message-ID without its angle brackets, KEY.KIND@HOST: the same whenever this mail is sent again.
	ID string
	// From is the sender, "name <address>".
	From string
	// To is the bare address of the recipient.
	To      string
	Subject string
	Text    string
	HTML    string
}

// Sender takes mails. Send returns nil when the mail is in other hands, or on disk. It may be called from many
// goroutines, ends when ctx does, and may be called again with the same Message: that is the same mail.
//
// last, if it is not nil, is called once everything is ready and right before the step after which the mail may be in
// other hands. Its error ends the attempt: the mail is not sent.
type Sender interface {
	Send(ctx context.Context, m Message, last func(context.Context) error) error
}

// subjectBytesMax keeps a subject readable in a list of mails; ours are a third of it.
const subjectBytesMax = 150

var (
	errMessageID = errors.New("compose mail: the message id is not of the form id@host")
	errSubject   = errors.New("compose mail: the subject is empty, too long or has control characters")
	errFrom      = errors.New("the sender must look like: postbus <no-reply@example.com>")
)

var messageID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}@[A-Za-z0-9.:\[\]-]{1,255}$`)

// envelope is a mail in its final bytes with the addresses of its SMTP commands.
type envelope struct {
	id   string // the Message-ID without brackets
	from string
	to   recipient
	raw  []byte // CRLF lines, ASCII but for a recipient that needs SMTPUTF8
}

// compose writes the mail. But for date, the same Message gives the same bytes.
func compose(m Message, date time.Time) (envelope, error) {
	to, err := parseRecipient(m.To)
	if err != nil {
		return envelope{}, err
	}
	from, err := parseFrom(m.From)
	if err != nil {
		return envelope{}, fmt.Errorf("compose mail: %w", err)
	}
	if !messageID.MatchString(m.ID) {
		return envelope{}, errMessageID
	}
	if m.Subject == "" || len(m.Subject) > subjectBytesMax || hasControl(m.Subject) {
		return envelope{}, errSubject
	}

	sum := sha256.Sum256([]byte(m.ID))
	msg := gomail.NewMsg(
		gomail.WithBoundary("postbus-"+hex.EncodeToString(sum[:16])), // as stable as the id
		gomail.WithEncoding(gomail.EncodingQP),
		gomail.WithNoDefaultUserAgent(),
	)
	msg.FromMailAddress(from)
	msg.ToMailAddress(&netmail.Address{Address: to.address})
	msg.Subject(m.Subject)
	msg.SetMessageIDWithValue(m.ID)
	msg.SetDateWithValue(date)
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.SetGenHeader(gomail.HeaderXAutoResponseSuppress, "All") // Exchange's word for the same: no holiday notes back
	msg.SetGenHeader(gomail.HeaderContentLang, "en")
	msg.SetBodyString(gomail.TypeTextPlain, m.Text)
	msg.AddAlternativeString(gomail.TypeTextHTML, m.HTML)

	var raw bytes.Buffer
	if _, err := msg.WriteTo(&raw); err != nil {
		return envelope{}, fmt.Errorf("compose mail: %w", err)
	}
	return envelope{id: m.ID, from: from.Address, to: to, raw: raw.Bytes()}, nil
}

// parseFrom reads a sender, "name <address>" or the bare address, under the same rules as a recipient. Its local part
// has to be ASCII, so that every server takes it.
func parseFrom(s string) (*netmail.Address, error) {
	address, err := netmail.ParseAddress(s)
	if err != nil || hasControl(address.Name) {
		return nil, errFrom
	}
	plain, err := parseRecipient(address.Address)
	if err != nil || plain.needUTF8 {
		return nil, errFrom
	}
	return &netmail.Address{Name: address.Name, Address: plain.address}, nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
