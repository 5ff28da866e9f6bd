package bus

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbus/internal/domain"
)

type grown struct {
	ID     string  `json:"id"`
	Metres float64 `json:"metres"`
}

func (grown) EventType() string  { return "tree.grown" }
func (e grown) EventKey() string { return e.ID }

type rustled struct{}

func (rustled) EventType() string { return "leaf.rustled" }

type nameless struct{}

func (nameless) EventType() string { return "Nameless" }

type far struct{}

func (far) EventType() string { return strings.Repeat("a", 41) + ".b" }

func newCodec(t *testing.T) *Codec {
	t.Helper()
	catalogue, err := NewCatalogue(Define[grown](2), Define[rustled](1))
	if err != nil {
		t.Fatal(err)
	}
	c := NewCodec(catalogue, "/test")
	c.now = func() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 500, time.FixedZone("CET", 3600)) }
	c.newID = func() (uuid.UUID, error) { return uuid.MustParse("01a20861-c42a-7a16-9c9a-dea0a315611b"), nil }
	return c
}

// TestWireForm is golden: other programs read this. To change it takes a new version.
func TestWireForm(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	cause := domain.Cause{EventID: uuid.MustParse("01a20861-0000-7000-8000-000000000000"), Correlation: "request-1"}
	topic, m, err := c.Encode(domain.WithCause(t.Context(), cause), grown{ID: "oak", Metres: 1.5})
	if err != nil {
		t.Fatal(err)
	}
	metadata, err := json.MarshalIndent(m.Metadata, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
 "causationid": "01a20861-0000-7000-8000-000000000000",
 "correlationid": "request-1",
 "datacontenttype": "application/json",
 "dataschema": "urn:postbus:schema:tree.grown:2",
 "id": "01a20861-c42a-7a16-9c9a-dea0a315611b",
 "partitionkey": "oak",
 "source": "/test",
 "specversion": "1.0",
 "subject": "oak",
 "time": "2026-11-23T11:00:00.0000005Z",
 "type": "tree.grown"
}`
	if string(metadata) != want {
		t.Errorf("metadata are %s", metadata)
	}
	if string(m.Payload) != `{"id":"oak","metres":1.5}` || topic != "tree" || m.UUID != m.Metadata["id"] {
		t.Errorf("payload %s, topic %s, id %s", m.Payload, topic, m.UUID)
	}
}

// TestBeginningOfAChain: without a cause an event is its own correlation and has no causation; without a key it has none.
func TestBeginningOfAChain(t *testing.T) {
	t.Parallel()
	_, m, err := newCodec(t).Encode(t.Context(), rustled{})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"correlationid": true, "causationid": false, "partitionkey": false, "subject": false} {
		if _, ok := m.Metadata[name]; ok != want {
			t.Errorf("%s is %q", name, m.Metadata[name])
		}
	}
	if m.Metadata["correlationid"] != m.UUID {
		t.Errorf("correlation is %s", m.Metadata["correlationid"])
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	want := grown{ID: "oak", Metres: 3}
	m, err := c.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got grown
	if err := c.Unmarshal(m, &got); err != nil || got != want || c.NameFromMessage(m) != c.Name(&got) {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestUndecodableQuotesNothing: an error about a payload ends up in a log.
func TestUndecodableQuotesNothing(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	const secret = "ada@example.com"
	for name, change := range map[string]func() (payload, schema string){
		"not JSON":         func() (string, string) { return `{"id": ` + secret, "tree.grown:2" },
		"wrong type":       func() (string, string) { return `{"metres": "` + secret + `"}`, "tree.grown:2" },
		"no version":       func() (string, string) { return `{}`, "" },
		"another's schema": func() (string, string) { return `{}`, "leaf.rustled:1" },
	} {
		m, err := c.Marshal(grown{})
		if err != nil {
			t.Fatal(err)
		}
		payload, schema := change()
		m.Payload = []byte(payload)
		m.Metadata["dataschema"] = "urn:postbus:schema:" + schema
		err = c.Unmarshal(m, &grown{})
		if !errors.Is(err, ErrUndecodable) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAnotherVersionIsAnUnknownType: a newer program may know it, so the event is not beyond help.
func TestAnotherVersionIsAnUnknownType(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	m, err := c.Marshal(grown{})
	if err != nil {
		t.Fatal(err)
	}
	m.Metadata["dataschema"] = "urn:postbus:schema:tree.grown:3"
	if err := c.Unmarshal(m, &grown{}); !errors.Is(err, ErrUnknownType) || errors.Is(err, ErrUndecodable) {
		t.Errorf("%v", err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	if _, _, err := c.Encode(t.Context(), nameless{}); !errors.Is(err, ErrUnknownType) {
		t.Errorf("an unknown type: %v", err)
	}
	if _, _, err := c.Encode(t.Context(), grown{Metres: math.Inf(1)}); err == nil {
		t.Error("what JSON cannot say was encoded")
	}
	var limit *LimitError
	fits := grown{ID: strings.Repeat("x", metadataBytesMax/4)}
	if _, _, err := c.Encode(t.Context(), fits); err != nil {
		t.Errorf("within the limits: %v", err)
	}
	_, _, err := c.Encode(t.Context(), grown{ID: strings.Repeat("x", metadataBytesMax)})
	if !errors.As(err, &limit) || limit.Limit != "metadataBytesMax" || limit.Type != "tree.grown" {
		t.Errorf("a long key: %v", err)
	}
}

func TestCatalogueRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		definitions []Definition
		want        error
	}{
		"no dotted name":   {[]Definition{Define[nameless](1)}, ErrEventShape},
		"a long topic":     {[]Definition{Define[far](1)}, ErrEventShape},
		"version 0":        {[]Definition{Define[grown](0)}, ErrEventShape},
		"a pointer":        {[]Definition{Define[*grown](1)}, ErrEventShape},
		"an interface":     {[]Definition{Define[domain.Event](1)}, ErrEventShape},
		"one type twice":   {[]Definition{Define[grown](1), Define[grown](2)}, ErrDuplicate},
		"nothing at all":   {nil, nil},
		"what is in order": {[]Definition{Define[grown](1), Define[rustled](1)}, nil},
	} {
		if _, err := NewCatalogue(c.definitions...); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
