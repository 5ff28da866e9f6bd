package bus

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"postbus/internal/domain"
)

var (
	typePattern  = regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`)
	topicPattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)
)

// typeBytesMax bounds an event type's name.
const typeBytesMax = 100

// Definition is one event type as the catalogue knows it.
type Definition struct {
	// Type is the durable name, such as "user.registered".
	Type string
	// Topic is the noun before the first dot. All event types of a topic share one order for each key.
	Topic string
	// Version is the version of the payload's schema.
	Version int

	goType reflect.Type
	err    error
}

// Define describes the event type E, a struct that is used by value, at a version of its schema. A definition that
// cannot work is refused by NewCatalogue.
func Define[E domain.Event](version int) Definition {
	name, err := typeOf[E]()
	d := Definition{Type: name, Version: version, goType: reflect.TypeFor[E](), err: err}
	d.Topic, _, _ = strings.Cut(name, ".")
	switch {
	case err != nil:
	case len(name) > typeBytesMax || !typePattern.MatchString(name):
		d.err = fmt.Errorf("%w: the type of %s is %q; it is a dotted name like user.registered", ErrEventShape, d.goType, name)
	case !topicPattern.MatchString(d.Topic):
		d.err = fmt.Errorf("%w: the topic %q of %s does not match %s", ErrEventShape, d.Topic, name, topicPattern)
	case version < 1:
		d.err = fmt.Errorf("%w: %s has version %d; versions begin at 1", ErrEventShape, name, version)
	}
	return d
}

// typeOf returns the durable name of E. Only value types have one without an instance, and an immutable event needs no
// pointer.
func typeOf[E domain.Event]() (string, error) {
	t := reflect.TypeFor[E]()
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return "", fmt.Errorf("%w: %s is not a value type", ErrEventShape, t)
	}
	var zero E
	return zero.EventType(), nil
}

// Catalogue is the set of event types that an application knows. It does not change after NewCatalogue and may be used
// from many goroutines.
type Catalogue struct{ byType map[string]Definition }

// NewCatalogue checks the definitions and puts them together. It returns ErrEventShape or ErrDuplicate.
func NewCatalogue(definitions ...Definition) (*Catalogue, error) {
	c := &Catalogue{byType: make(map[string]Definition, len(definitions))}
	for _, d := range definitions {
		if d.err != nil {
			return nil, d.err
		}
		if _, ok := c.byType[d.Type]; ok {
			return nil, fmt.Errorf("event type %s: %w", d.Type, ErrDuplicate)
		}
		c.byType[d.Type] = d
	}
	return c, nil
}

// Lookup finds an event type by its durable name.
func (c *Catalogue) Lookup(eventType string) (Definition, bool) {
	d, ok := c.byType[eventType]
	return d, ok
}

// Topics returns the topics of all event types, sorted.
func (c *Catalogue) Topics() []string {
	topics := make(map[string]bool)
	for _, d := range c.byType {
		topics[d.Topic] = true
	}
	return slices.Sorted(maps.Keys(topics))
}
