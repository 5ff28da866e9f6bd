package broker

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"
)

// What the URLs of several kinds of broker say behind their question marks is read here. All of it returns a *URLError for
// what cannot be meant.

const defaultPrefix = "postbus"

var prefixPattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// Prefix is what begins the names of what we make at the broker: the parameter prefix, by default "postbus".
func (a Address) Prefix() (string, error) {
	prefix := a.Parameter("prefix", defaultPrefix)
	if !prefixPattern.MatchString(prefix) {
		return "", &URLError{"has a prefix that is not of small letters, digits and _"}
	}
	return prefix, nil
}

// Choice reads a parameter that has two values.
func (a Address) Choice(name, otherwise string, values map[string]bool, into *bool) error {
	value, ok := values[a.Parameter(name, otherwise)]
	if !ok {
		return &URLError{"has a parameter " + name + " that is none of its values"}
	}
	*into = value
	return nil
}

// Number reads a parameter that is a number from 1 to most; 0 if the URL does not have it.
func (a Address) Number(name string, most int) (int, error) {
	text := a.Parameter(name, "")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, &URLError{fmt.Sprintf("has a parameter %s that is not 1 to %d", name, most)}
	}
	return n, nil
}

// Retention is for how long the broker is to keep events, at least so long; 0, for ever, if the URL does not say.
func (a Address) Retention(least time.Duration) (time.Duration, error) {
	retention, err := time.ParseDuration(a.Parameter("retention", "0s"))
	switch {
	case err != nil || retention < 0:
		return 0, &URLError{"has a parameter retention that is no time such as 720h"}
	case retention > 0 && retention < least:
		return 0, &URLError{fmt.Sprintf("has a parameter retention of less than %s", least)}
	}
	return retention, nil
}

// Security is how the way to a broker is guarded, by the parameters tls, ca, cert and key.
type Security struct {
	TLS bool
	// CA names a file with the authorities to believe; the system's if it is empty.
	CA string
	// Certificate and Key name the files of a certificate to show; none if they are empty.
	Certificate, Key string
}

// Security reads them. TLS is spoken unless all hosts are this machine, or the URL says tls=off.
func (a Address) Security() (Security, error) {
	s := Security{CA: a.Parameter("ca", ""), Certificate: a.Parameter("cert", ""), Key: a.Parameter("key", "")}
	if (s.Certificate == "") != (s.Key == "") {
		return s, &URLError{"needs cert and key, or neither"}
	}
	err := a.Choice("tls", map[bool]string{true: "off", false: "on"}[a.Local()], map[string]bool{"on": true, "off": false}, &s.TLS)
	if err == nil && !s.TLS && s.CA+s.Certificate != "" {
		err = &URLError{"has a certificate for a connection without TLS; say tls=on"}
	}
	return s, err
}

// Config reads the files, and returns nil for a way without TLS. Called for each connection, it has certificates that were
// renewed meanwhile. Where the driver does not set it, ServerName is the caller's to set.
func (s Security) Config() (*tls.Config, error) {
	if !s.TLS {
		return nil, nil //nolint:nilnil // as drivers take it
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		authorities, err := ReadFile(s.CA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(authorities) {
			return nil, errors.New("the file that ca names in the URL has no certificate")
		}
	}
	if s.Certificate != "" {
		certificate, err1 := ReadFile(s.Certificate)
		key, err2 := ReadFile(s.Key)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return nil, fmt.Errorf("read the files that cert and key name in the URL: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// ReadFile reads a file that a parameter names. Its error quotes nothing of the URL.
func ReadFile(name string) ([]byte, error) {
	content, err := os.ReadFile(name) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("read a file that the URL names: %w", errors.Unwrap(err))
	}
	return content, nil
}
