package web

import (
	"net/http"
	"net/netip"
	"strings"
)

// clientIP is the address a request is counted under. It is the peer's, unless the peer is a trusted proxy: then it is
// the rightmost hop of X-Forwarded-For that is not one. Everything to the left of that hop was written by somebody we
// do not trust. It is the zero Addr if the peer has no IP address.
func (a *App) clientIP(r *http.Request) netip.Addr {
	client := peerIP(r)
	if !a.trusts(client) {
		return client
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, ok := parseHop(hops[i])
		if !ok {
			return client
		}
		client = hop
		if !a.trusts(hop) {
			return client
		}
	}
	return client
}

func (a *App) trusts(ip netip.Addr) bool {
	for _, proxies := range a.config.TrustedProxies {
		if proxies.Contains(ip) {
			return true
		}
	}
	return false
}

func peerIP(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return plain(peer.Addr())
}

// parseHop reads one entry of X-Forwarded-For: an address, or an address and a port as some proxies write it.
func parseHop(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if ip, err := netip.ParseAddr(s); err == nil {
		return plain(ip), true
	}
	if hop, err := netip.ParseAddrPort(s); err == nil {
		return plain(hop.Addr()), true
	}
	return netip.Addr{}, false
}

// plain writes an address in its one form, so that 192.0.2.1 and ::ffff:192.0.2.1 are the same client.
func plain(ip netip.Addr) netip.Addr { return ip.Unmap().WithZone("") }

// network is what a client address is limited by: itself for IPv4, its /64 for IPv6, since that is the least a
// household or a rented server gets and whoever holds one address of it holds them all.
func network(ip netip.Addr) netip.Addr {
	if !ip.Is6() {
		return ip
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ip
	}
	return prefix.Addr()
}
