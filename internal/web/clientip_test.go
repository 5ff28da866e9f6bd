package web

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

func TestClientIP(t *testing.T) {
	proxies := func(c *Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	}
	for name, c := range map[string]struct {
		peer      string
		forwarded []string
		want      string
	}{
		"no proxy":                  {"192.0.2.1:1", nil, "192.0.2.1"},
		"stranger's header":         {"192.0.2.1:1", []string{"198.51.100.7"}, "192.0.2.1"},
		"proxy without header":      {"10.0.0.1:1", nil, "10.0.0.1"},
		"proxy":                     {"10.0.0.1:1", []string{"198.51.100.7"}, "198.51.100.7"},
		"forged hop before":         {"10.0.0.1:1", []string{"203.0.113.9, 198.51.100.7"}, "198.51.100.7"},
		"two proxies":               {"10.0.0.1:1", []string{"203.0.113.9, 198.51.100.7, 10.9.9.9"}, "198.51.100.7"},
		"two headers":               {"10.0.0.1:1", []string{"203.0.113.9", "198.51.100.7 , 10.9.9.9"}, "198.51.100.7"},
		"only proxies":              {"10.0.0.1:1", []string{"10.1.1.1, 10.2.2.2"}, "10.1.1.1"},
		"rubbish":                   {"10.0.0.1:1", []string{"198.51.100.7, nonsense"}, "10.0.0.1"},
		"rubbish behind a stranger": {"10.0.0.1:1", []string{"nonsense, 198.51.100.7"}, "198.51.100.7"},
		"with a port":               {"10.0.0.1:1", []string{"198.51.100.7:999"}, "198.51.100.7"},
		"IPv6":                      {"[fd00::1]:1", []string{"2001:db8::7"}, "2001:db8::7"},
		"IPv6 with a port":          {"[fd00::1]:1", []string{"[2001:db8::7]:999"}, "2001:db8::7"},
		"IPv4 in IPv6":              {"[::ffff:10.0.0.1]:1", []string{"::ffff:198.51.100.7"}, "198.51.100.7"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/users", nil)
			r.RemoteAddr = c.peer
			r.Header["X-Forwarded-For"] = c.forwarded
			if got := newApp(t, &accounts{}, proxies).clientIP(r).String(); got != c.want {
				t.Errorf("client is %s, want %s", got, c.want)
			}
		})
	}
}

func TestNetwork(t *testing.T) {
	for ip, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "2001:db8:1:2::": "2001:db8:1:2::",
		"2001:db8:1:3::1": "2001:db8:1:3::",
	} {
		if got := network(netip.MustParseAddr(ip)).String(); got != want {
			t.Errorf("network of %s is %s, want %s", ip, got, want)
		}
	}
	if got := network(netip.Addr{}); got.IsValid() {
		t.Errorf("network of no address is %s", got)
	}
}
