package amqp_test

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	driver "github.com/rabbitmq/amqp091-go"

	"postbus/internal/broker/brokertest"
	"postbus/internal/rabbittest"
)

func ids(messages []*message.Message) []string {
	all := make([]string, len(messages))
	for i, m := range messages {
		all[i] = m.UUID
	}
	return all
}

// TestPlainDriverReadsCloudEvents: an event is a CloudEvent in binary mode to who knows nothing of postbus, and to the SDK of
// CloudEvents.
func TestPlainDriverReadsCloudEvents(t *testing.T) {
	t.Parallel()
	server := rabbittest.Shared(t)
	b := provisioned(t, server, "")
	m := brokertest.New("ключ 1", 1)
	m.Metadata["time"] = "2026-11-27T12:00:00.5Z"
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	d := receive(t, consume(t, connect(t, server), prefix(t)+"-user", "first"))
	want := driver.Table{
		"cloudEvents_specversion": "1.0", "cloudEvents_id": m.UUID, "cloudEvents_source": "/test", "cloudEvents_type": "user.tested",
		"cloudEvents_time": "2026-11-27T12:00:00.5Z", "cloudEvents_partitionkey": "ключ 1", "x-stream-offset": int64(0),
	}
	if !maps.Equal(d.Headers, want) {
		t.Errorf("headers are %v, want %v", d.Headers, want)
	}
	if d.ContentType != "application/json" || d.MessageId != m.UUID || string(d.Body) != `{"n":1}` {
		t.Errorf("message %q of type %q has %s", d.MessageId, d.ContentType, d.Body)
	}

	e, err := binding.ToEvent(t.Context(), &delivered{d})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	if e.ID() != m.UUID || e.Source() != "/test" || e.Type() != "user.tested" || e.DataContentType() != "application/json" ||
		e.Extensions()["partitionkey"] != "ключ 1" || string(e.Data()) != `{"n":1}` ||
		!e.Time().Equal(time.Date(2026, 11, 27, 12, 0, 0, 500e6, time.UTC)) {
		t.Errorf("the SDK reads %s", e)
	}
}

// delivered has the SDK read a message of AMQP 0.9.1; its own binding is for AMQP 1.0.
type delivered struct{ driver.Delivery }

func (*delivered) ReadEncoding() binding.Encoding { return binding.EncodingBinary }

func (*delivered) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

const attributePrefix = "cloudEvents_"

func (d *delivered) version() spec.Version {
	versions := spec.WithPrefix(attributePrefix)
	text, _ := d.Headers[versions.PrefixedSpecVersionName()].(string)
	return versions.Version(text)
}

func (d *delivered) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	attribute := d.version().AttributeFromKind(kind)
	if kind == spec.DataContentType {
		return attribute, d.ContentType
	}
	return attribute, d.Headers[attribute.PrefixedName()]
}

func (d *delivered) GetExtension(name string) any { return d.Headers[attributePrefix+name] }

func (d *delivered) ReadBinary(_ context.Context, to binding.BinaryWriter) error {
	version := d.version()
	if err := to.SetAttribute(version.AttributeFromKind(spec.DataContentType), d.ContentType); err != nil {
		return err
	}
	for name, value := range d.Headers {
		var err error
		if attribute := version.Attribute(name); attribute != nil {
			err = to.SetAttribute(attribute, value)
		} else if extension, ok := strings.CutPrefix(name, attributePrefix); ok {
			err = to.SetExtension(extension, value)
		}
		if err != nil {
			return err
		}
	}
	return to.SetData(bytes.NewReader(d.Body))
}

// TestEventsOfOthers: what strangers publish arrives, in either form of the binding, with values of any type, and with nothing of
// CloudEvents at all.
func TestEventsOfOthers(t *testing.T) {
	t.Parallel()
	server := rabbittest.Shared(t)
	b := provisioned(t, server, "")
	channel := connect(t, server)
	if err := channel.Confirm(false); err != nil {
		t.Fatal(err)
	}
	for _, m := range []driver.Publishing{
		{
			ContentType: "text/plain", Body: []byte("hello"),
			Headers: driver.Table{
				"cloudEvents:id": "42", "cloudEvents:type": "user.tested", "cloudEvents:source": "/elsewhere", "cloudEvents:number": int32(7),
				"cloudEvents_flag": true, "cloudEvents_bytes": []byte{0xfb, 0xff}, "CloudEvents_Partitionkey": "100%", "other": "x",
				"cloudEvents_time": time.Date(2026, 11, 27, 13, 0, 0, 0, time.FixedZone("", 3600)), "cloudEvents_": "y", "cloudEvents": "z",
			},
		},
		{MessageId: "only", Body: []byte("1")},
		{Body: []byte("2")},
		{Body: []byte("2")},
	} {
		sent, err := channel.PublishWithDeferredConfirm("", prefix(t)+"-user", true, false, m)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := sent.WaitContext(t.Context()); !ok || err != nil {
			t.Fatalf("not published: %v", err)
		}
	}
	read, places := brokertest.Read(t, b, "user", nil, 4)
	want := message.Metadata{
		"id": "42", "type": "user.tested", "source": "/elsewhere", "number": "7", "flag": "true", "bytes": "+/8=", "partitionkey": "100%",
		"time": "2026-11-27T12:00:00Z", "datacontenttype": "text/plain",
	}
	if read[0].UUID != "42" || !maps.Equal(read[0].Metadata, want) || string(read[0].Payload) != "hello" {
		t.Errorf("read %s with %q, want %q", read[0].UUID, read[0].Metadata, want)
	}
	if read[1].UUID != "only" || read[2].UUID == "" || read[3].UUID == "" || read[2].UUID == read[3].UUID {
		t.Errorf("the ids are %q", ids(read))
	}
	last := publish(t, b, 5)
	if again, _ := brokertest.Read(t, b, "user", places, 1); !slices.Equal(ids(again), []string{last}) {
		t.Errorf("behind a message without an id %q were read", ids(again))
	}
}
