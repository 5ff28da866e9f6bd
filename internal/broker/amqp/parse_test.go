package amqp

import (
	"maps"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
)

func FuzzParsePlace(f *testing.F) {
	f.Add("12/019a")
	f.Add("/")
	f.Add("-1/x/y")
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parsePlace(s)
		if !ok {
			return
		}
		if again, ok := parsePlace(p.String()); !ok || again != p || p.offset < 0 {
			t.Errorf("%q is %+v, then %+v", s, p, again)
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add("id", "subject", "é \"x\"\r\n", "application/json")
	f.Fuzz(func(t *testing.T, id, name, value, contentType string) {
		if id == "" || !lower(name) || name == idAttribute || name == contentTypeAttribute || contentType == "" {
			return
		}
		m := message.NewMessage(id, []byte("data"))
		m.Metadata = message.Metadata{idAttribute: id, name: value, contentTypeAttribute: contentType}
		out := toAMQP(m)
		got := fromAMQP("", amqp.Delivery{Headers: out.Headers, ContentType: out.ContentType, MessageId: out.MessageId, Body: out.Body})
		if got.UUID != id || !maps.Equal(got.Metadata, m.Metadata) || string(got.Payload) != "data" {
			t.Errorf("%q came back as %q with %q", m.Metadata, got.UUID, got.Metadata)
		}
		if len(out.MessageId) > shortMax || len(out.ContentType) > shortMax {
			t.Error("a property is too long")
		}
	})
}

// lower tells whether s could be an attribute's name.
func lower(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
