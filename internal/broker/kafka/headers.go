package kafka

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A message has the form of CloudEvents' binary mode for Kafka: the event's data are its value, each attribute is a header with
// the prefix "ce_", but for the data's type, which is content-type, and the key is the event's partitionkey.
const (
	attributePrefix   = "ce_"
	idAttribute       = "id"
	keyAttribute      = "partitionkey"
	typeAttribute     = "datacontenttype"
	contentTypeHeader = "content-type"
)

func (b *Broker) toKafka(topic string, m *message.Message) *kgo.Record {
	r := &kgo.Record{Topic: topic, Value: m.Payload, Headers: make([]kgo.RecordHeader, 0, len(m.Metadata)+1)}
	for name, value := range m.Metadata {
		switch name {
		case idAttribute:
			continue
		case typeAttribute:
			name = contentTypeHeader
		default:
			name = attributePrefix + name
		}
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: attributePrefix + idAttribute, Value: []byte(m.UUID)})
	key := m.Metadata.Get(keyAttribute)
	if key == "" {
		r.Partition = b.partitionOf(m.UUID)
		return r
	}
	r.Key = []byte(key)
	r.Partition = b.partitionOf(key)
	return r
}

// fromKafka takes anything that anybody may have published: headers that are no attributes are left out. A message that has a
// key and no partitionkey has its order by the key.
func fromKafka(id string, r *kgo.Record) *message.Message {
	metadata := make(message.Metadata, len(r.Headers))
	for _, h := range r.Headers {
		name := strings.ToLower(h.Key)
		if attribute, ok := strings.CutPrefix(name, attributePrefix); ok {
			metadata[attribute] = string(h.Value)
		} else if name == contentTypeHeader {
			metadata[typeAttribute] = string(h.Value)
		}
	}
	if own := metadata[idAttribute]; own != "" {
		id = own
	}
	if metadata[keyAttribute] == "" && len(r.Key) > 0 {
		metadata[keyAttribute] = keyText(r.Key)
	}
	m := message.NewMessage(id, r.Value)
	m.Metadata = metadata
	return m
}

// keyText is a key as text, which it need not be.
func keyText(key []byte) string {
	if utf8.Valid(key) {
		return string(key)
	}
	return base64.StdEncoding.EncodeToString(key)
}
