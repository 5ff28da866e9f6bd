package mail

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// The refusals of ParseURL. None names a part of the URL: where one is malformed, any part may be the password.
var (
	errURL = errors.New("the SMTP URL must look like smtp://localhost:1025, smtps://user:password@host:465 or " +
		"smtp+starttls://user:password@host:587, with special characters in the password percent-encoded")
	errURLScheme    = errors.New("the SMTP URL must begin with smtp://, smtps:// or smtp+starttls://")
	errURLClearText = errors.New("an SMTP URL with smtp:// is clear text and may only name this machine " +
		"(localhost, 127.0.0.0/8 or ::1); use smtps:// or smtp+starttls:// for any other, and let a mail catcher " +
		"in a container share the network namespace of the program")
	errURLClearPassword = errors.New("an SMTP URL with smtp:// is clear text and takes no user and password; " +
		"use smtps:// or smtp+starttls://")
	errURLPort        = errors.New("the port of the SMTP URL must be a number from 1 to 65535")
	errURLCredentials = errors.New("the SMTP URL must have both user and password, without control characters, or neither")
)

// Security is how the connection to a mail server is protected.
type Security string

// The kinds of protection, one for each scheme.
const (
	ClearText   Security = "clear text"   // smtp://, to this machine only
	ImplicitTLS Security = "implicit TLS" // smtps://, TLS from the first byte
	StartTLS    Security = "STARTTLS"     // smtp+starttls://, refused when the server does not offer it
)

// Server is a mail server as an SMTP URL describes it, checked. It prints without user and password.
type Server struct {
	Host     string // a name or an IP address without brackets
	Port     int
	Security Security
	login    login
}

// login gives user and password; nil when there are none. A function, because that is what no verb of fmt looks into, not
// even where a Server stands in a field that hides its String.
type login func() (user, password string)

// String is the server without user and password, fit for a log.
func (s Server) String() string {
	return string(s.Security) + " to " + net.JoinHostPort(s.Host, strconv.Itoa(s.Port))
}

// ParseURL reads and checks an SMTP URL: smtp://host:port, smtps://user:password@host:port or
// smtp+starttls://user:password@host:port. Without a port it is 25, 465 or 587. The error is one sentence for people
// and holds no part of the URL.
func ParseURL(s string) (Server, error) {
	u, err := url.Parse(s)
	if err != nil || hasMore(u) {
		return Server{}, errURL // not err: it repeats the URL
	}
	server := Server{Host: strings.ToLower(u.Hostname())}
	switch u.Scheme {
	case "smtp":
		server.Security, server.Port = ClearText, 25
	case "smtps":
		server.Security, server.Port = ImplicitTLS, 465
	case "smtp+starttls":
		server.Security, server.Port = StartTLS, 587
	default:
		return Server{}, errURLScheme
	}
	if !validHost(server.Host) {
		return Server{}, errURL
	}
	if u.Port() != "" {
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil || port == 0 {
			return Server{}, errURLPort
		}
		server.Port = int(port)
	}
	if server.Security == ClearText && !isLoopback(server.Host) {
		return Server{}, errURLClearText
	}
	server.login, err = parseLogin(u.User, server.Security)
	if err != nil {
		return Server{}, err
	}
	return server, nil
}

// hasMore says that a URL has parts that a mail server's has no use for; a password that is not percent-encoded makes some.
func hasMore(u *url.URL) bool {
	path := strings.TrimSuffix(u.Path, "/")
	return u.Opaque != "" || path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != ""
}

func parseLogin(info *url.Userinfo, security Security) (login, error) {
	if info == nil {
		return nil, nil
	}
	if security == ClearText {
		return nil, errURLClearPassword
	}
	password, _ := info.Password()
	user := info.Username()
	if user == "" || password == "" || hasControl(user) || hasControl(password) {
		return nil, errURLCredentials
	}
	return func() (string, string) { return user, password }, nil
}

func validHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	ascii, ok := asciiDomain(host)
	return ok && ascii == host
}

// isLoopback is strict on purpose: a name that happens to lead to this machine today may lead elsewhere tomorrow.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
