package redis

import (
	"maps"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"
)

// An entry has a field for each attribute of the CloudEvent, by its bare name, and one for the event's data. There is no
// official binding for Redis; the names are those of the JSON format, which keeps "data" from being the name of an attribute,
// and of the binding for MQTT. Values are UTF-8, as they are.
const (
	idField   = "id"
	dataField = "data"
)

// toFields has the attributes in the order of their names: entries with the same fields in the same order share them in memory.
// Data come last, and are left out where there are none.
func toFields(m *message.Message) []any {
	attributes := maps.Clone(m.Metadata)
	if attributes == nil {
		attributes = make(message.Metadata, 1)
	}
	attributes[idField] = m.UUID
	delete(attributes, dataField) // which no attribute may be called
	fields := make([]any, 0, 2*len(attributes)+2)
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		fields = append(fields, name, attributes[name])
	}
	if m.Payload != nil {
		fields = append(fields, dataField, []byte(m.Payload))
	}
	return fields
}

// fromFields takes anything that anybody may have added. An entry without an id gets the one that is given.
func fromFields(id string, fields map[string]any) *message.Message {
	metadata := make(message.Metadata, len(fields))
	var data message.Payload
	for name, value := range fields {
		text, _ := value.(string) // the driver has nothing else there
		if name == dataField {
			data = message.Payload(text)
		} else {
			metadata[name] = text
		}
	}
	if own := metadata[idField]; own != "" {
		id = own
	}
	m := message.NewMessage(id, data)
	m.Metadata = metadata
	return m
}
