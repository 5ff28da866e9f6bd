package redis

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/redis/go-redis/v9"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/redistest"
)

// foreign is an entry as the SDK of CloudEvents takes messages: what a program that knows the SDK and the driver has to write.
type foreign map[string]any

func (foreign) ReadEncoding() binding.Encoding { return binding.EncodingBinary }

func (foreign) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

func (f foreign) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	version := spec.VS.Version(f["specversion"].(string)) //nolint:forcetypeassert // the test fails
	for name, value := range f {
		var err error
		if attribute := version.Attribute(name); attribute != nil {
			err = w.SetAttribute(attribute, value)
		} else if name == "data" {
			err = w.SetData(bytes.NewBufferString(value.(string))) //nolint:forcetypeassert // the test fails
		} else {
			err = w.SetExtension(name, value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f foreign) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	attribute := spec.VS.Latest().AttributeFromKind(kind)
	return attribute, f[attribute.Name()]
}

func (f foreign) GetExtension(name string) any { return f[name] }

// TestPlainDriverReadsCloudEvents: an event is one of the SDK of CloudEvents to who knows nothing of postbus, and what somebody
// adds with the plain driver arrives.
func TestPlainDriverReadsCloudEvents(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	address, err := broker.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(address, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	m := brokertest.New("ключ 1", 1)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	entries, err := client.XRange(t.Context(), "postbus:user", "-", "+").Result()
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	e, err := binding.ToEvent(t.Context(), foreign(entries[0].Values))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	if e.ID() != m.UUID || e.Source() != "/test" || e.Type() != "user.tested" || e.DataContentType() != "application/json" ||
		e.Extensions()["partitionkey"] != "ключ 1" || string(e.Data()) != `{"n":1}` {
		t.Errorf("the SDK has %s", e)
	}

	for _, fields := range [][]string{
		{"id", "42", "type", "user.tested", "source", "/elsewhere", "partitionkey", "100%", "data", "{}"},
		{"unheard", "of"},
	} {
		if err := client.XAdd(t.Context(), &redis.XAddArgs{Stream: "postbus:user", Values: fields}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	read, _ := brokertest.Read(t, b, "user", nil, 3)
	f := read[1]
	if f.UUID != "42" || f.Metadata["type"] != "user.tested" || f.Metadata["partitionkey"] != "100%" || string(f.Payload) != "{}" {
		t.Errorf("read %s with %q", f.UUID, f.Metadata)
	}
	if read[2].UUID == "" || read[2].Metadata["unheard"] != "of" {
		t.Errorf("read %q with %q", read[2].UUID, read[2].Metadata)
	}
}

func FuzzFields(f *testing.F) {
	f.Add("id", "42", []byte("{}"))
	f.Add("data", "\xff\x00\n", []byte(nil))
	f.Fuzz(func(t *testing.T, name, value string, payload []byte) {
		m := message.NewMessage("42", payload)
		m.Metadata.Set(name, value)
		fields := toFields(m)
		values := make(map[string]any, len(fields)/2)
		for i := 0; i < len(fields); i += 2 {
			text, ok := fields[i+1].(string)
			if raw, isRaw := fields[i+1].([]byte); isRaw {
				text, ok = string(raw), true
			}
			if !ok {
				t.Fatalf("field %v has a %T", fields[i], fields[i+1])
			}
			values[fields[i].(string)] = text //nolint:forcetypeassert // names are
		}
		want := maps.Clone(m.Metadata)
		delete(want, "data")
		want["id"] = "42"
		got := fromFields("none", values)
		if got.UUID != "42" || !maps.Equal(got.Metadata, want) || !bytes.Equal(got.Payload, payload) {
			t.Errorf("%q came back as %q", m.Metadata, got.Metadata)
		}
	})
}

func FuzzParsePlace(f *testing.F) {
	f.Add("1700000000000-1/1700000000001-0/12/019a")
	f.Add("///")
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parsePlace(s)
		if !ok {
			return
		}
		if again, ok := parsePlace(p.String()); !ok || again != p {
			t.Errorf("%q is %+v, then %+v", s, p, again)
		}
	})
}
