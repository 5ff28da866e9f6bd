package kafka_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/twmb/franz-go/pkg/kgo"

	"postbus/internal/broker/brokertest"
)

// plain is Kafka without postbus, which reads the topic "postbus-user" from its beginning.
func plain(t *testing.T, url string) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(strings.TrimPrefix(url, "kafka://"), ",")...),
		kgo.ConsumeTopics("postbus-user"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// pollOne reads the next message.
func pollOne(t *testing.T, client *kgo.Client) *kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		fetches := client.PollRecords(ctx, 1)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		if fetches.NumRecords() > 0 {
			return fetches.Records()[0]
		}
	}
}

// TestPlainDriverReadsCloudEvents: an event is a CloudEvent in binary mode to who knows nothing of postbus, and the other way
// round.
func TestPlainDriverReadsCloudEvents(t *testing.T) {
	t.Parallel()
	url := urlOf(cluster(t, 3))
	b := provisioned(t, url)
	m := brokertest.New("ключ 1", 1)
	m.SetContext(t.Context())
	if err := b.Publisher().Publish("user", m); err != nil {
		t.Fatal(err)
	}
	client := plain(t, url)
	got := pollOne(t, client)
	header := make(map[string]string)
	for _, h := range got.Headers {
		header[h.Key] = string(h.Value)
	}
	for name, want := range map[string]string{
		"ce_specversion": "1.0", "ce_id": m.UUID, "ce_source": "/test", "ce_type": "user.tested", "ce_partitionkey": "ключ 1",
		"content-type": "application/json", "ce_datacontenttype": "",
	} {
		if header[name] != want {
			t.Errorf("header %s is %q, want %q", name, header[name], want)
		}
	}
	if string(got.Value) != `{"n":1}` || string(got.Key) != "ключ 1" {
		t.Errorf("%q has %s", got.Key, got.Value)
	}

	event, err := binding.ToEvent(t.Context(), cloudEvent{got})
	if err != nil {
		t.Fatal(err)
	}
	if err := event.Validate(); err != nil {
		t.Error(err)
	}
	if event.ID() != m.UUID || event.Source() != "/test" || event.Type() != "user.tested" || event.DataContentType() != "application/json" ||
		event.Extensions()["partitionkey"] != "ключ 1" || string(event.Data()) != `{"n":1}` {
		t.Errorf("the SDK reads %s", event)
	}
}

// cloudEvent is a message to the SDK of CloudEvents, as its Kafka binding has it.
type cloudEvent struct{ record *kgo.Record }

func (cloudEvent) version() spec.Version { return spec.WithPrefix("ce_").Version("1.0") }

func (cloudEvent) ReadEncoding() binding.Encoding { return binding.EncodingBinary }

func (cloudEvent) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

func (c cloudEvent) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	for _, h := range c.record.Headers {
		var err error
		switch attribute := c.attribute(h.Key); {
		case attribute != nil:
			err = w.SetAttribute(attribute, string(h.Value))
		case strings.HasPrefix(h.Key, "ce_"):
			err = w.SetExtension(strings.TrimPrefix(h.Key, "ce_"), string(h.Value))
		}
		if err != nil {
			return err
		}
	}
	return w.SetData(bytes.NewReader(c.record.Value))
}

// attribute is that of a header, or nil.
func (c cloudEvent) attribute(header string) spec.Attribute {
	if header == "content-type" {
		return c.version().AttributeFromKind(spec.DataContentType)
	}
	return c.version().Attribute(header)
}

func (c cloudEvent) GetAttribute(kind spec.Kind) (attribute spec.Attribute, value any) {
	attribute = c.version().AttributeFromKind(kind)
	for _, h := range c.record.Headers {
		if found := c.attribute(h.Key); found != nil && found.Kind() == kind {
			return attribute, string(h.Value)
		}
	}
	return attribute, nil
}

func (c cloudEvent) GetExtension(name string) any {
	for _, h := range c.record.Headers {
		if h.Key == "ce_"+name {
			return string(h.Value)
		}
	}
	return nil
}

// TestForeignMessages: what others publish is read, whatever they leave out, and keeps the order of its key.
func TestForeignMessages(t *testing.T) {
	t.Parallel()
	url := urlOf(cluster(t, 3))
	b := provisioned(t, url)
	client := plain(t, url)
	header := func(pairs ...string) (all []kgo.RecordHeader) {
		for pair := range slices.Chunk(pairs, 2) {
			all = append(all, kgo.RecordHeader{Key: pair[0], Value: []byte(pair[1])})
		}
		return all
	}
	records := map[string]*kgo.Record{
		"whole": {Headers: header("ce_specversion", "1.0", "ce_id", "whole", "CE_Type", "user.tested", "ce_source", "/elsewhere",
			"ce_partitionkey", "k", "Content-Type", "text/plain", "other", "x"), Value: []byte("v")},
		"by key":   {Key: []byte("k"), Headers: header("ce_id", "by key")},
		"by bytes": {Key: []byte("\xff\x00"), Headers: header("ce_id", "by bytes")},
		"":         {Value: []byte("nothing else")},
	}
	for _, r := range records {
		r.Topic = "postbus-user"
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	got, _ := brokertest.Read(t, b, "user", nil, len(records))
	keys := map[string]string{"whole": "k", "by key": "k", "by bytes": "/wA=", "": ""}
	for _, m := range got {
		id := m.UUID
		if m.Metadata["id"] == "" {
			if !strings.HasPrefix(m.UUID, "kafka:postbus-user/") {
				t.Errorf("a message without an id has the id %q", m.UUID)
			}
			id = ""
		}
		want, ok := keys[id]
		if !ok || m.Metadata["partitionkey"] != want || string(m.Payload) != string(records[id].Value) {
			t.Errorf("read %q: %q with %q", m.UUID, m.Payload, m.Metadata)
		}
		if id == "whole" && (m.Metadata["type"] != "user.tested" || m.Metadata["datacontenttype"] != "text/plain" || len(m.Metadata) != 6) {
			t.Errorf("read %q", m.Metadata)
		}
		delete(keys, id)
	}
}

// TestKeysAreWhereOthersLook: the default of Kafka's own clients puts a key where we do.
func TestKeysAreWhereOthersLook(t *testing.T) {
	t.Parallel()
	url := urlOf(cluster(t, 1))
	b := provisioned(t, url)
	client := plain(t, url)
	for _, key := range []string{"a", "b", "0198c0de-0000-7000-8000-000000000001", "ключ"} {
		publish(t, b, key, 1)
		ours := pollOne(t, client)
		r := &kgo.Record{Topic: "postbus-user", Key: []byte(key)}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if theirs := pollOne(t, client); theirs.Partition != ours.Partition {
			t.Errorf("%s is in partition %d, and by others in %d", key, ours.Partition, theirs.Partition)
		}
	}
}

// TestAbortedTransactions of others are not read.
func TestAbortedTransactions(t *testing.T) {
	t.Parallel()
	url := urlOf(cluster(t, 1))
	b := provisioned(t, url)
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.TrimPrefix(url, "kafka://")), kgo.TransactionalID("other"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, outcome := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		r := &kgo.Record{Topic: "postbus-user", Key: []byte("k"), Value: []byte(map[kgo.TransactionEndTry]string{kgo.TryCommit: "committed"}[outcome])}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := client.EndTransaction(t.Context(), outcome); err != nil {
			t.Fatal(err)
		}
	}
	got, places := brokertest.Read(t, b, "user", nil, 1)
	if string(got[0].Payload) != "committed" {
		t.Errorf("read %q", got[0].Payload)
	}
	last := publish(t, b, "k", 2)
	if got, _ := brokertest.Read(t, b, "user", places, 1); got[0].UUID != last {
		t.Errorf("read %s behind a transaction, want %s", got[0].UUID, last)
	}
}

// produce publishes to a partition that others have chosen.
func produce(t *testing.T, from *kgo.Client, partition int32, id string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(from.OptValue(kgo.SeedBrokers).([]string)...), kgo.RecordPartitioner(kgo.ManualPartitioner())) //nolint:forcetypeassert // it documents so
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r := &kgo.Record{Topic: "postbus-user", Partition: partition, Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte(id)}}}
	if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
}
