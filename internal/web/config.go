package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"time"
)

// Limits that are the same in every installation.
const (
	// answerFloor is how long POST /users and POST /verify/resend take at least, counted from the moment the body has
	// been read. It has to exceed what the slower of "known" and "unknown" needs in the database, so that the answer's
	// time tells neither. It does not begin earlier, because a client that dribbles its body could use it up.
	answerFloor = 150 * time.Millisecond

	// bodyBytesMax is the largest request body. The largest sensible one is an address of 254 bytes, escaped.
	bodyBytesMax = 16 << 10

	// headerBytesMax is the largest request header.
	headerBytesMax = 16 << 10

	// readyTimeout bounds one readiness check.
	readyTimeout = 2 * time.Second
)

// Config is what an [App] can be told. The zero value of every field but PublicURL is usable.
type Config struct {
	// PublicURL is what the links in emails begin with: http or https, a host, no path. Required.
	PublicURL string
	// TrustedProxies are the peers whose X-Forwarded-For is believed. Default none.
	TrustedProxies []netip.Prefix
	// Mailbox is shown at /mailbox to browsers on this machine, if PublicURL names this machine, too: localhost or a loopback
	// address. Otherwise, and by default, which is nil, the routes do not exist.
	Mailbox Mailbox
	// Ready says whether the app can serve, with the reason if not; the reason is logged and not shown. Default always.
	Ready func(ctx context.Context) error
	// Logger takes the access log and the errors. Default nowhere.
	Logger *slog.Logger

	// WorkTimeout bounds the work of one request with the database. Default 5 s.
	WorkTimeout time.Duration
	// RateBurst is how many POSTs a client address may send at once. Default 20.
	RateBurst int
	// RateInterval is the time after which a client address may send one more. Default 3 s.
	RateInterval time.Duration
	// RateClients is how many client addresses are remembered; the one unseen for longest is forgotten first.
	// Default 10,000.
	RateClients int

	// ReadHeaderTimeout bounds the reading of a request's header. Default 5 s.
	ReadHeaderTimeout time.Duration
	// ReadTimeout bounds the reading of a whole request. Default 10 s.
	ReadTimeout time.Duration
	// WriteTimeout bounds a request from the end of its header to the end of its answer. Default 30 s.
	WriteTimeout time.Duration
	// IdleTimeout is how long a connection may wait for its next request. Default 60 s.
	IdleTimeout time.Duration
	// ShutdownTimeout is how long requests under way may take to end once the server stops. Default 10 s.
	ShutdownTimeout time.Duration
	// ConnectionsMax is how many connections are open at once; more wait in the kernel's queue. Default 4,096.
	ConnectionsMax int
}

// defaults fills what was left at zero.
func (c *Config) defaults() {
	if c.Ready == nil {
		c.Ready = func(context.Context) error { return nil }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.WorkTimeout, 5*time.Second)
	setDefault(&c.RateBurst, 20)
	setDefault(&c.RateInterval, 3*time.Second)
	setDefault(&c.RateClients, 10_000)
	setDefault(&c.ReadHeaderTimeout, 5*time.Second)
	setDefault(&c.ReadTimeout, 10*time.Second)
	setDefault(&c.WriteTimeout, 30*time.Second)
	setDefault(&c.IdleTimeout, 60*time.Second)
	setDefault(&c.ShutdownTimeout, 10*time.Second)
	setDefault(&c.ConnectionsMax, 4096)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate checks c after defaults and returns PublicURL in parts.
func (c *Config) validate() (*url.URL, error) {
	public, err := url.Parse(c.PublicURL)
	if err != nil || public.Hostname() == "" || (public.Scheme != "http" && public.Scheme != "https") {
		return nil, errors.New("configure web: PublicURL must be an http or https URL with a host")
	}
	if public.User != nil || public.RawQuery != "" || public.Fragment != "" || (public.Path != "" && public.Path != "/") {
		return nil, errors.New("configure web: PublicURL must be a scheme and a host and nothing else")
	}
	for name, d := range map[string]time.Duration{
		"WorkTimeout": c.WorkTimeout, "RateInterval": c.RateInterval, "ReadHeaderTimeout": c.ReadHeaderTimeout,
		"ReadTimeout": c.ReadTimeout, "WriteTimeout": c.WriteTimeout, "IdleTimeout": c.IdleTimeout,
		"ShutdownTimeout": c.ShutdownTimeout,
	} {
		if d < 0 {
			return nil, fmt.Errorf("configure web: %s must be positive", name)
		}
	}
	if c.RateBurst < 0 || c.RateClients < 0 || c.ConnectionsMax < 0 {
		return nil, errors.New("configure web: RateBurst, RateClients and ConnectionsMax must be positive")
	}
	return public, nil
}
