package broker_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
)

func parse(t *testing.T, url string) broker.Address {
	t.Helper()
	a, err := broker.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestParameters are those that several kinds of broker have.
func TestParameters(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"":                             "postbus 0 0s",
		"?prefix=shop&replicas=3":      "shop 3 0s",
		"?retention=720h":              "postbus 0 720h0m0s",
		"?prefix=Shop":                 "has a prefix",
		"?prefix=a.b":                  "has a prefix",
		"?replicas=0":                  "has a parameter replicas that is not 1 to 5",
		"?replicas=6":                  "has a parameter replicas that is not 1 to 5",
		"?retention=59s":               "has a parameter retention of less than 1m0s",
		"?retention=-1h":               "has a parameter retention that is no time",
		"?tls=maybe":                   "has a parameter tls that is none of its values",
		"?tls=on&cert=file":            "needs cert and key",
		"?ca=file":                     "has a certificate for a connection without TLS",
		"?tls=on&ca=file":              "postbus 0 0s",
		"?tls=on&ca=f&cert=file&key=f": "postbus 0 0s",
	} {
		a := parse(t, "nats://127.0.0.1"+query)
		prefix, err1 := a.Prefix()
		replicas, err2 := a.Number("replicas", 5)
		retention, err3 := a.Retention(time.Minute)
		_, err4 := a.Security()
		got := fmt.Sprint(prefix, " ", replicas, " ", retention)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
}

// TestSecurity: TLS is the rule elsewhere than on this machine, and what its files say is used.
func TestSecurity(t *testing.T) {
	t.Parallel()
	certificate, key := brokertest.SelfSigned(t)
	for url, want := range map[string]string{
		"nats://127.0.0.1,localhost":                                           "clear",
		"nats://127.0.0.1,elsewhere":                                           "tls",
		"nats://elsewhere?tls=off":                                             "clear",
		"nats://127.0.0.1?tls=on":                                              "tls",
		"nats://elsewhere?ca=" + certificate:                                   "tls ca",
		"nats://elsewhere?ca=" + certificate + "/missing":                      "read a file that the URL names",
		"nats://elsewhere?ca=" + key:                                           "the file that ca names",
		"nats://elsewhere?cert=" + certificate + "&key=" + key:                 "tls certificate",
		"nats://elsewhere?cert=" + certificate + "&key=" + certificate:         "read the files that cert and key name",
		"nats://elsewhere?cert=" + certificate + "&key=" + certificate + "/no": "read a file that the URL names",
	} {
		s, err := parse(t, url).Security()
		if err != nil {
			t.Fatalf("%s: %v", url, err)
		}
		config, err := s.Config()
		got := "clear"
		switch {
		case err != nil:
			got = err.Error()
		case config != nil:
			got = "tls" + map[bool]string{true: " ca"}[s.CA != ""] + strings.Repeat(" certificate", len(config.Certificates))
			if (config.RootCAs != nil) != (s.CA != "") {
				t.Errorf("%s: authorities are %v", url, config.RootCAs)
			}
		}
		if !strings.HasPrefix(got, want) || strings.Contains(got, certificate) {
			t.Errorf("%s: %s, want %s", url, got, want)
		}
	}
}
