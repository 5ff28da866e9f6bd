package postgres

import (
	"encoding/json"
	"maps"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
)

// FuzzDecodeMetadata: the short way takes nothing that encoding/json refuses, and finds nothing else.
func FuzzDecodeMetadata(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":"b"}`, `{"a":"b","c":""}`, `{"a":"1","a":"2"}`, `{"":""}`, `{"a" : "b"}`, `{"a":"b",}`, `{,"a":"b"}`, `{"a":1}`,
		`{"a":"\u0041"}`, `{"a":"é"}`, `{"a":null}`, `null`, ``, `{`, `{"a"}`, `{"a":"b"}}`, `{"a":"b""c":"d"}`, "{\"a\":\"\x01\"}",
		`{"partitionkey":"order-1","specversion":"1.0","time":"2024-05-06T07:08:09.000000001Z"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var want message.Metadata
		wantErr := json.Unmarshal(raw, &want)
		got, err := decodeMetadata(string(raw))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: error %v, want %v", raw, err, wantErr)
		}
		if err == nil && !maps.Equal(got, want) {
			t.Fatalf("%q: %v, want %v", raw, got, want)
		}
	})
}

func TestUsualMetadataIsCut(t *testing.T) {
	encoded, err := json.Marshal(event("k", 1).Metadata)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := cutMetadata(string(encoded)); !ok {
		t.Errorf("%s takes the long way", encoded)
	}
}

// TestEntryIsWeighedWhileHandedOut, as when a share is given up: the race detector looks on.
func TestEntryIsWeighedWhileHandedOut(t *testing.T) {
	t.Parallel()
	e := &entry{row: row{raw: `{"type":"user.tested"}`, metadata: message.Metadata{typeAttribute: "user.tested"}, payload: []byte("x")}}
	q := &queue{entries: []*entry{e}}
	handed := make(chan message.Metadata)
	go func() { handed <- e.handOut() }()
	if n, eventType := q.bytes(), e.eventType(); n == 0 || eventType != "user.tested" {
		t.Errorf("%d bytes of type %q", n, eventType)
	}
	if m := <-handed; m[typeAttribute] != "user.tested" {
		t.Errorf("handed out %q", m)
	}
}
