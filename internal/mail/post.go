package mail

import (
	"context"
	"embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	texttemplate "text/template"
)

//go:embed templates
var templates embed.FS

// linkBytesMax keeps a link within what every mail program and browser takes.
const linkBytesMax = 2000

var (
	errPublicURL = errors.New("the public URL must look like https://example.com")
	errLink      = errors.New("the link does not lead to the public URL")
	errKey       = errors.New("the key of a mail must be 1 to 64 letters, digits, hyphens and underscores")
)

var mailKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Post writes the mails of the application and gives them to a Sender. It may be used from many goroutines.
//
// The mails never show the recipient's address: anybody may sign up anybody, and what they typed would reach a stranger
// in our name.
type Post struct {
	sender Sender
	public *url.URL
	from   string
	idHost string
	kinds  map[string]kind
}

// kind is one of the mails. Its name is part of Message-IDs and so never changes.
type kind struct {
	subject string
	text    *texttemplate.Template
	html    *htmltemplate.Template
}

// view is what the templates see.
type view struct {
	Subject string
	Host    string // the host that the person knows, with its port if it has one
	Home    string
	Link    string
}

const (
	kindVerification      = "verification"
	kindWelcome           = "welcome"
	kindAlreadyRegistered = "already-registered"
)

// PostOption changes one setting of a Post.
type PostOption func(*Post)

// WithFrom sets the sender, "name <address>" or the bare address. Default: DefaultFrom of the public URL, which the empty
// string stands for as well.
func WithFrom(from string) PostOption {
	return func(p *Post) {
		if from != "" {
			p.from = from
		}
	}
}

// NewPost makes a Post whose links lead to publicURL, an absolute http or https URL. The error is one sentence about the
// setting that is wrong.
func NewPost(s Sender, publicURL string, options ...PostOption) (*Post, error) {
	public, host, err := parsePublicURL(publicURL)
	if err != nil {
		return nil, err
	}
	p := &Post{sender: s, public: public, idHost: host, from: defaultFrom(host), kinds: map[string]kind{}}
	for _, option := range options {
		option(p)
	}
	if _, err := parseFrom(p.from); err != nil {
		return nil, err
	}
	subjects := map[string]string{
		kindVerification:      "Confirm your email address",
		kindWelcome:           "Welcome to postbus",
		kindAlreadyRegistered: "You already have an account",
	}
	for name, subject := range subjects {
		if p.kinds[name], err = parseKind(name, subject); err != nil {
			return nil, fmt.Errorf("parse template of the %s mail: %w", name, err)
		}
	}
	return p, nil
}

func parseKind(name, subject string) (kind, error) {
	text, err := texttemplate.ParseFS(templates, "templates/layout.txt", "templates/"+name+".txt")
	if err != nil {
		return kind{}, err
	}
	html, err := htmltemplate.ParseFS(templates, "templates/layout.html", "templates/"+name+".html")
	if err != nil {
		return kind{}, err
	}
	return kind{subject: subject, text: text, html: html}, nil
}

// DefaultFrom is the sender for a public URL: no-reply at its host, or at postbus.localhost where the host is localhost,
// an IP address or any name without a dot, which cannot stand in an address. The error is that of NewPost.
func DefaultFrom(publicURL string) (string, error) {
	_, host, err := parsePublicURL(publicURL)
	if err != nil {
		return "", err
	}
	return defaultFrom(host), nil
}

func defaultFrom(host string) string {
	if _, err := parseRecipient("no-reply@" + host); err != nil {
		host = "postbus.localhost"
	}
	return "postbus <no-reply@" + host + ">"
}

// parsePublicURL gives the URL and its host as it stands in a Message-ID: in punycode, an IPv6 address in brackets.
func parsePublicURL(s string) (public *url.URL, host string, err error) {
	public, err = url.Parse(s)
	if err != nil || (public.Scheme != "http" && public.Scheme != "https") || public.User != nil ||
		public.RawQuery != "" || public.Fragment != "" {
		return nil, "", errPublicURL
	}
	host = public.Hostname()
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Is6() {
			host = "[" + ip.WithZone("").String() + "]"
		}
		return public, host, nil
	}
	host, ok := asciiDomain(host)
	if !ok {
		return nil, "", errPublicURL
	}
	return public, host, nil
}

// Verification asks the person to confirm the address by following link, which has to lead to the public URL. key is
// what makes it this mail and no other, such as the id of the event that it is for (domain.IdempotencyKey): the same key
// is the same mail.
func (p *Post) Verification(ctx context.Context, to, link, key string) error {
	if err := p.checkLink(link); err != nil {
		return fmt.Errorf("send verification mail: %w", err)
	}
	return p.send(ctx, kindVerification, to, link, key)
}

// Welcome tells the person that the address is confirmed. About key see Verification.
func (p *Post) Welcome(ctx context.Context, to, key string) error {
	return p.send(ctx, kindWelcome, to, p.public.String(), key)
}

// AlreadyRegistered tells the person that somebody signed up with an address that has an account. About key see
// Verification.
func (p *Post) AlreadyRegistered(ctx context.Context, to, key string) error {
	return p.send(ctx, kindAlreadyRegistered, to, p.public.String(), key)
}

func (p *Post) send(ctx context.Context, name, to, link, key string) error {
	m, err := p.write(name, to, link, key)
	if err != nil {
		return fmt.Errorf("write %s mail: %w", name, err)
	}
	if err := p.sender.Send(ctx, m, nil); err != nil {
		return fmt.Errorf("send %s mail: %w", name, err)
	}
	return nil
}

func (p *Post) write(name, to, link, key string) (Message, error) {
	if !mailKey.MatchString(key) {
		return Message{}, errKey
	}
	k := p.kinds[name]
	v := view{Subject: k.subject, Host: p.public.Host, Home: p.public.String(), Link: link}
	var text, html strings.Builder
	if err := k.text.ExecuteTemplate(&text, "layout.txt", v); err != nil {
		return Message{}, err
	}
	if err := k.html.ExecuteTemplate(&html, "layout.html", v); err != nil {
		return Message{}, err
	}
	return Message{
		ID:      key + "." + name + "@" + p.idHost,
		From:    p.from,
		To:      to,
		Subject: k.subject,
		Text:    text.String(),
		HTML:    html.String(),
	}, nil
}

// checkLink is the last guard against a mail of ours that leads somewhere else.
func (p *Post) checkLink(link string) error {
	u, err := url.Parse(link)
	if err != nil || len(link) > linkBytesMax || u.Scheme != p.public.Scheme || u.Host != p.public.Host ||
		u.User != nil || hasControl(link) || strings.ContainsAny(link, " <>\"") {
		return errLink // without the link, whose token is a secret
	}
	return nil
}
