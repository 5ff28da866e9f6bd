package nats_test

import (
	"bytes"
	"context"
	"net/url"
	"strings"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/nats-io/nats.go/jetstream"
)

// stored is a message of the plain driver as the SDK of CloudEvents takes one: what a program that knows the two has to write.
type stored struct{ *jetstream.RawStreamMsg }

const attributePrefix = "ce-"

var versions = spec.WithPrefix(attributePrefix)

func (stored) ReadEncoding() binding.Encoding { return binding.EncodingBinary }

func (stored) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

func (s stored) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	version := versions.Version(s.header(versions.PrefixedSpecVersionName()))
	for name := range s.Header {
		value, err := url.PathUnescape(s.header(name))
		if err != nil {
			return err
		}
		if attribute := version.Attribute(name); attribute != nil {
			err = w.SetAttribute(attribute, value)
		} else if extension, ok := strings.CutPrefix(name, attributePrefix); ok {
			err = w.SetExtension(extension, value)
		}
		if err != nil {
			return err
		}
	}
	return w.SetData(bytes.NewReader(s.Data))
}

func (s stored) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	attribute := versions.Latest().AttributeFromKind(kind)
	return attribute, s.header(attribute.PrefixedName())
}

func (s stored) GetExtension(name string) any { return s.header(attributePrefix + name) }

func (s stored) header(name string) string {
	if values := s.Header[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}
