package nats

import (
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A message has the form of CloudEvents' binary mode for NATS: the event's data are its payload, and each attribute is a
// header with the prefix "ce-", percent-encoded where it has other than printable ASCII.
const (
	attributePrefix = "ce-"
	idAttribute     = "id"
)

func toNATS(subject string, m *message.Message) *nats.Msg {
	out := &nats.Msg{Subject: subject, Data: m.Payload, Header: make(nats.Header, len(m.Metadata)+1)}
	for name, value := range m.Metadata {
		out.Header[attributePrefix+name] = []string{encode(value)}
	}
	out.Header[attributePrefix+idAttribute] = []string{encode(m.UUID)}
	out.Header[jetstream.MsgIDHeader] = []string{m.UUID}
	return out
}

// fromNATS takes anything that anybody may have published: headers that are no attributes are left out, and a value that is
// not encoded rightly stays as it is.
func fromNATS(id string, header nats.Header, data []byte) *message.Message {
	metadata := make(message.Metadata, len(header))
	for name, values := range header {
		if attribute, ok := strings.CutPrefix(strings.ToLower(name), attributePrefix); ok && len(values) > 0 {
			metadata[attribute] = decode(values[0])
		}
	}
	if own := metadata[idAttribute]; own != "" {
		id = own
	}
	m := message.NewMessage(id, data)
	m.Metadata = metadata
	return m
}

// encode percent-encodes what the HTTP binding of CloudEvents has encoded, which NATS has taken over.
func encode(s string) string {
	plain := func(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' }
	var b strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}

func decode(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			high, low := digit(s[i+1]), digit(s[i+2])
			if high >= 0 && low >= 0 {
				b.WriteByte(byte(high<<4 | low)) //nolint:gosec // two digits
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// digit is the value of a hexadecimal digit, or -1.
func digit(c byte) int {
	return strings.Index("0123456789abcdef", strings.ToLower(string(rune(c))))
}
