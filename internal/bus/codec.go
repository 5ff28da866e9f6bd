package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"postbus/internal/domain"
)

// The metadata of a message are the CloudEvents 1.0 attributes of its event, by the names of the specification; a
// broker's own package gives them the prefix of its protocol binding. The last three are extension attributes.
const (
	attributeSpecVersion = "specversion"
	attributeID          = "id"
	attributeSource      = "source"
	attributeType        = "type"
	attributeSubject     = "subject"
	attributeTime        = "time"
	attributeContentType = "datacontenttype"
	attributeSchema      = "dataschema"
	attributeKey         = "partitionkey"
	attributeCorrelation = "correlationid"
	attributeCause       = "causationid"
)

// Limits on one message, checked before the commit (LimitError).
const (
	payloadBytesMax  = 256 << 10
	metadataBytesMax = 8 << 10
)

const schemaPrefix = "urn:postbus:schema:"

// Codec turns events into Watermill messages and back, for the types of one catalogue. It is the cqrs marshaler of the
// consumers' event groups. It may be used from many goroutines.
type Codec struct {
	catalogue *Catalogue
	source    string
	now       func() time.Time
	newID     func() (uuid.UUID, error)
}

// NewCodec returns a codec whose messages name source as the CloudEvents source, a URI reference such as
// "/postbus/app". Ids are UUIDv7, times are this machine's in UTC.
func NewCodec(catalogue *Catalogue, source string) *Codec {
	return &Codec{catalogue: catalogue, source: source, now: time.Now, newID: uuid.NewV7}
}

// Encode makes the message of an event, with a new id, and says which topic it goes to. The cause that ctx carries
// (domain.CauseOf) becomes its correlation and causation. It returns ErrUnknownType for a type that is not in the
// catalogue and a *LimitError for one that is too large.
func (c *Codec) Encode(ctx context.Context, e domain.Event) (topic string, m *message.Message, err error) {
	definition, ok := c.catalogue.Lookup(e.EventType())
	if !ok {
		return "", nil, fmt.Errorf("%w: %s", ErrUnknownType, e.EventType())
	}
	payload, err := json.Marshal(e)
	if err != nil {
		return "", nil, fmt.Errorf("encode %s: %w", definition.Type, err)
	}
	if len(payload) > payloadBytesMax {
		return "", nil, &LimitError{"payloadBytesMax", payloadBytesMax, len(payload), definition.Type}
	}
	id, err := c.newID()
	if err != nil {
		return "", nil, fmt.Errorf("make event id: %w", err)
	}
	m = message.NewMessageWithContext(ctx, id.String(), payload)
	m.Metadata = c.attributes(ctx, definition, id, e)
	if size := metadataBytes(m.Metadata); size > metadataBytesMax {
		return "", nil, &LimitError{"metadataBytesMax", metadataBytesMax, size, definition.Type}
	}
	return definition.Topic, m, nil
}

// Encoded are messages for one topic.
type Encoded struct {
	Topic    string
	Messages []*message.Message
}

// EncodeAll encodes the events, by topic, each topic's in the order given. It returns the errors of Encode.
func (c *Codec) EncodeAll(ctx context.Context, events []domain.Event) ([]Encoded, error) {
	var all []Encoded
	for _, e := range events {
		topic, m, err := c.Encode(ctx, e)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all, func(e Encoded) bool { return e.Topic == topic })
		if i < 0 {
			i = len(all)
			all = append(all, Encoded{Topic: topic})
		}
		all[i].Messages = append(all[i].Messages, m)
	}
	return all, nil
}

func (c *Codec) attributes(ctx context.Context, d Definition, id uuid.UUID, e domain.Event) message.Metadata {
	metadata := message.Metadata{
		attributeSpecVersion: "1.0",
		attributeID:          id.String(),
		attributeSource:      c.source,
		attributeType:        d.Type,
		attributeTime:        c.now().UTC().Format(time.RFC3339Nano),
		attributeContentType: "application/json",
		attributeSchema:      schemaPrefix + d.Type + ":" + strconv.Itoa(d.Version),
	}
	if keyed, ok := e.(domain.Keyed); ok && keyed.EventKey() != "" {
		metadata[attributeSubject] = keyed.EventKey()
		metadata[attributeKey] = keyed.EventKey()
	}
	cause := domain.CauseOf(ctx)
	metadata[attributeCorrelation] = cause.Correlation
	if cause.Correlation == "" {
		metadata[attributeCorrelation] = id.String() // the beginning of a chain is its name
	}
	if cause.EventID != uuid.Nil {
		metadata[attributeCause] = cause.EventID.String()
	}
	return metadata
}

func metadataBytes(metadata message.Metadata) int {
	size := 0
	for k, v := range metadata {
		size += len(k) + len(v)
	}
	return size
}

// Key returns the key of a message, "" when it has none.
func Key(m *message.Message) string { return m.Metadata.Get(attributeKey) }

// Type returns the event type of a message.
func Type(m *message.Message) string { return m.Metadata.Get(attributeType) }

// causeOf is the cause under which a message's handler works.
func causeOf(m *message.Message) (domain.Cause, error) {
	id, err := uuid.Parse(m.UUID)
	if err != nil {
		return domain.Cause{}, fmt.Errorf("%w: its id is not a UUID", ErrUndecodable)
	}
	return domain.Cause{EventID: id, Correlation: m.Metadata.Get(attributeCorrelation)}, nil
}

// Marshal implements cqrs.CommandEventMarshaler for an event outside of any cause.
func (c *Codec) Marshal(v any) (*message.Message, error) {
	e, ok := v.(domain.Event)
	if !ok {
		return nil, fmt.Errorf("%w: %T is not an event", ErrEventShape, v)
	}
	_, m, err := c.Encode(context.Background(), e)
	return m, err
}

// Unmarshal implements cqrs.CommandEventMarshaler: it decodes the payload into v, a pointer to an event. A message of
// another version than the catalogue's is ErrUnknownType, one whose payload does not fit is ErrUndecodable. The error says
// where it does not fit and quotes nothing of the payload.
func (c *Codec) Unmarshal(m *message.Message, v any) error {
	definition, ok := c.catalogue.Lookup(Type(m))
	if !ok {
		return fmt.Errorf("%w: %s", ErrUnknownType, Type(m))
	}
	version, _ := strings.CutPrefix(m.Metadata.Get(attributeSchema), schemaPrefix+definition.Type+":")
	switch n, err := strconv.Atoi(version); {
	case err != nil:
		return fmt.Errorf("%w: %s does not name its version", ErrUndecodable, definition.Type)
	case n != definition.Version:
		return fmt.Errorf("%w: %s in version %d, not %d", ErrUnknownType, definition.Type, n, definition.Version)
	}
	if err := json.Unmarshal(m.Payload, v); err != nil {
		return fmt.Errorf("%w: %s of %d bytes %s", ErrUndecodable, definition.Type, len(m.Payload), misfit(err))
	}
	return nil
}

// misfit tells what is wrong with a payload without quoting it, as the errors of encoding/json do.
func misfit(err error) string {
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Sprintf("is not JSON at byte %d", syntax.Offset)
	case errors.As(err, &mismatch):
		return fmt.Sprintf("has a wrong type in field %q", mismatch.Field)
	default:
		return "does not fit the event's fields"
	}
}

// Name implements cqrs.CommandEventMarshaler.
func (c *Codec) Name(v any) string {
	if e, ok := v.(domain.Event); ok {
		return e.EventType()
	}
	return ""
}

// NameFromMessage implements cqrs.CommandEventMarshaler.
func (c *Codec) NameFromMessage(m *message.Message) string { return Type(m) }
