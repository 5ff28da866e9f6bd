package broker

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Address is a broker's URL: scheme://USER:PASSWORD@HOST:PORT,HOST:PORT/PATH?PARAMETERS. It prints without its password.
type Address struct {
	Scheme   string
	User     string
	password string
	// Hosts are HOST:PORT or HOST; none where the URL has none.
	Hosts []string
	// Path is what follows the hosts, without the slash.
	Path       string
	parameters url.Values
	raw        string
}

var errURL = &URLError{"must look like nats://USER:PASSWORD@HOST:4222, with commas between several HOST:PORT, and special " +
	"characters in the password percent-encoded (@ is %40, : is %3A, / is %2F)"}

// Parse reads a URL. It returns a *URLError, which quotes nothing. net/url alone takes no list of hosts.
func Parse(raw string) (Address, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok || scheme == "" {
		return Address{}, errURL
	}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, path, _ := strings.Cut(rest, "/")
	// A character of the password was not encoded.
	if strings.ContainsAny(rest, "#\\") || strings.Contains(path, "@") || strings.Contains(query, "@") {
		return Address{}, errURL
	}
	a, err := parseHosts(Address{Scheme: scheme, Path: path, raw: raw}, hosts)
	if err != nil {
		return Address{}, err
	}
	if a.parameters, err = url.ParseQuery(query); err != nil {
		return Address{}, errURL
	}
	for _, values := range a.parameters {
		if len(values) != 1 || values[0] == "" {
			return Address{}, &URLError{"has to name a value for each parameter behind its question mark, once"}
		}
	}
	return a, nil
}

// parseHosts reads USER:PASSWORD@HOST:PORT,HOST:PORT, of which all may be missing.
func parseHosts(a Address, text string) (Address, error) {
	if at := strings.LastIndex(text, "@"); at >= 0 {
		user, password, _ := strings.Cut(text[:at], ":")
		var err1, err2 error
		a.User, err1 = url.PathUnescape(user)
		a.password, err2 = url.PathUnescape(password)
		if err1 != nil || err2 != nil || a.User == "" || strings.Contains(text[:at], "@") {
			return Address{}, errURL
		}
		text = text[at+1:]
	}
	if text != "" {
		a.Hosts = strings.Split(text, ",")
	}
	for _, host := range a.Hosts {
		if u, err := url.Parse("x://" + host); err != nil || u.Hostname() == "" || u.Host != host {
			return Address{}, errURL
		}
	}
	return a, nil
}

// String is the URL for people: scheme, hosts and path.
func (a Address) String() string {
	s := a.Scheme + "://" + strings.Join(a.Hosts, ",")
	if a.Path != "" {
		s += "/" + a.Path
	}
	return s
}

// URL is the URL as it was given, with its password, for a driver that reads it itself.
func (a Address) URL() string { return a.raw }

// GoString is String, so that no password is printed.
func (a Address) GoString() string { return a.String() }

// Parameter returns what the URL says behind its question mark, or otherwise the default.
func (a Address) Parameter(name, otherwise string) string {
	if !a.parameters.Has(name) {
		return otherwise
	}
	return a.parameters.Get(name)
}

// Known returns a *URLError if the URL has a parameter of another name.
func (a Address) Known(names ...string) error {
	for name := range a.parameters {
		if !slices.Contains(names, name) {
			return &URLError{fmt.Sprintf("has an unknown parameter behind its question mark; there are %s", strings.Join(names, ", "))}
		}
	}
	return nil
}

// passwordFileParameter names a file that has the password, so that it need not stand in a variable.
const passwordFileParameter = "password_file"

// Password returns the password of the URL or of the file that its password_file names; one without a line end.
func (a Address) Password() (string, error) {
	name := a.Parameter(passwordFileParameter, "")
	if name == "" {
		return a.password, nil
	}
	content, err := ReadFile(name)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(content), "\r\n"), nil
}

// Local tells whether all hosts are this machine.
func (a Address) Local() bool {
	for _, h := range a.Hosts {
		name := h
		if host, _, err := net.SplitHostPort(h); err == nil {
			name = host
		}
		ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
		if name != "localhost" && (err != nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}
