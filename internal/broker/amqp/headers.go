package amqp

import (
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
)

// A message has the form of CloudEvents' binary mode for AMQP: the event's data are its body, its content type is the property,
// and each other attribute is a header with the prefix "cloudEvents_". In AMQP 1.0 headers are application properties, which
// that binding means; the server translates one into the other. Of the prefixes that it allows, "cloudEvents_" and
// "cloudEvents:", it prefers the first, and both are read.
const (
	attributePrefix      = "cloudevents" // in small letters
	attributeSeparators  = "_:"
	attributePrefixOurs  = "cloudEvents_"
	idAttribute          = "id"
	contentTypeAttribute = "datacontenttype"
	// shortMax is how many bytes a property may have.
	shortMax = 255
)

func toAMQP(m *message.Message) amqp.Publishing {
	out := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: m.Payload, Headers: make(amqp.Table, len(m.Metadata)+1)}
	for name, value := range m.Metadata {
		if name == contentTypeAttribute && len(value) <= shortMax {
			out.ContentType = value
		} else {
			out.Headers[attributePrefixOurs+name] = value
		}
	}
	out.Headers[attributePrefixOurs+idAttribute] = m.UUID
	if len(m.UUID) <= shortMax {
		out.MessageId = m.UUID
	}
	return out
}

// fromAMQP takes anything that anybody may have published: headers that are no attributes are left out. An event without an id
// has the one that is given.
func fromAMQP(id string, d amqp.Delivery) *message.Message {
	metadata := make(message.Metadata, len(d.Headers)+1)
	for name, value := range d.Headers {
		if attribute, ok := attributeName(name); ok {
			metadata[attribute] = text(value)
		}
	}
	if d.ContentType != "" {
		metadata[contentTypeAttribute] = d.ContentType
	}
	switch {
	case metadata[idAttribute] != "":
		id = metadata[idAttribute]
	case d.MessageId != "":
		id = d.MessageId
	}
	m := message.NewMessage(id, d.Body)
	m.Metadata = metadata
	return m
}

// attributeName is what follows the prefix and its separator.
func attributeName(header string) (string, bool) {
	rest, ok := strings.CutPrefix(strings.ToLower(header), attributePrefix)
	if !ok || len(rest) < 2 || !strings.Contains(attributeSeparators, rest[:1]) {
		return "", false
	}
	return rest[1:], true
}

// text is the form that CloudEvents gives a value in text.
func text(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	default: // numbers, true and false
		return fmt.Sprint(v)
	}
}
