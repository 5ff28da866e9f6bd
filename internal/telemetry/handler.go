package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
)

// output is where records go once they are clean: the part of slog.Handler that is left when attributes and groups have
// been dealt with.
type output interface {
	Enabled(ctx context.Context, level slog.Level) bool
	Handle(ctx context.Context, r slog.Record) error
}

// handler lets through what is allowed. It is immutable; WithAttrs and WithGroup return copies.
type handler struct {
	out     output
	allowed map[string]struct{}
	prefix  string      // path of the open groups, with a dot behind each
	attrs   []slog.Attr // of WithAttrs: clean, with full paths
	dropped []string    // names that WithAttrs dropped
}

func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.out.Enabled(ctx, level)
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	s := h.sieve()
	r.Attrs(func(a slog.Attr) bool {
		s.add(h.prefix, a)
		return true
	})
	if len(s.dropped) > 0 && h.out.Enabled(ctx, slog.LevelDebug) {
		slices.Sort(s.dropped)
		s.keep(slog.String("dropped", strings.Join(slices.Compact(s.dropped), ",")))
	}
	clean := slog.NewRecord(r.Time, r.Level, scrub(r.Message), r.PC)
	clean.AddAttrs(s.kept...)
	return h.out.Handle(ctx, clean)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	s := h.sieve()
	for _, a := range attrs {
		s.add(h.prefix, a)
	}
	c := *h
	c.attrs, c.dropped = s.kept, s.dropped
	return &c
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}

// sieve returns one that already holds what WithAttrs gave. It shares no memory with h.
func (h *handler) sieve() *sieve {
	return &sieve{allowed: h.allowed, kept: slices.Clone(h.attrs), dropped: slices.Clone(h.dropped)}
}

// sieve sorts attributes into those that are written and those of which only the name is remembered.
type sieve struct {
	allowed map[string]struct{}
	kept    []slog.Attr
	dropped []string
}

func (s *sieve) add(prefix string, a slog.Attr) {
	v := resolve(a.Value)
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range v.Group() {
			s.add(prefix, member)
		}
		return
	}
	if a.Key == "" {
		return
	}
	path := prefix + a.Key
	if _, ok := s.allowed[path]; !ok {
		s.dropped = append(s.dropped, safeName(path))
		return
	}
	s.keep(slog.Attr{Key: path, Value: safeValue(path, v)})
}

// keep replaces an attribute of the same name, so that no key stands twice in a line and the innermost one counts.
func (s *sieve) keep(a slog.Attr) {
	if i := slices.IndexFunc(s.kept, func(k slog.Attr) bool { return k.Key == a.Key }); i >= 0 {
		s.kept[i] = a
		return
	}
	s.kept = append(s.kept, a)
}

// safeName is for names that nobody vouches for: one that does not look like a name is not shown.
func safeName(name string) string {
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '.'
	}
	if len(name) > nameBytesMax || strings.ContainsFunc(name, odd) || scrub(name) != name {
		return "?"
	}
	return name
}

// resolve calls LogValue. One that panics costs the attribute, not the program.
func resolve(v slog.Value) (r slog.Value) {
	defer func() {
		if recover() != nil {
			r = slog.StringValue("[panic in LogValue]")
		}
	}()
	return v.Resolve()
}

// safeValue renders a value that stands under an allowed key. Text is scrubbed; what is neither text nor a plain number
// or time is named by its type only.
func safeValue(key string, v slog.Value) slog.Value {
	switch v.Kind() {
	case slog.KindBool, slog.KindInt64, slog.KindUint64, slog.KindFloat64, slog.KindTime:
		return v
	case slog.KindDuration:
		return slog.StringValue(v.Duration().String()) // a bare number would not say its unit
	case slog.KindString:
		if key == "stack" {
			return slog.StringValue(scrub(condenseStack(v.String())))
		}
		return slog.StringValue(scrub(v.String()))
	default:
		return safeAny(v.Any())
	}
}

func safeAny(x any) slog.Value {
	switch x := x.(type) {
	case nil:
		return slog.AnyValue(nil)
	case error:
		return slog.StringValue(scrubError(x))
	case []string:
		return slog.StringValue(scrub(strings.Join(x, ",")))
	case fmt.Stringer:
		return slog.StringValue(scrub(call(x.String)))
	}
	switch v := reflect.ValueOf(x); {
	case v.Kind() == reflect.String:
		return slog.StringValue(scrub(v.String()))
	case v.Kind() == reflect.Bool:
		return slog.BoolValue(v.Bool())
	case v.CanInt():
		return slog.Int64Value(v.Int())
	case v.CanUint():
		return slog.Uint64Value(v.Uint())
	case v.CanFloat():
		return slog.Float64Value(v.Float())
	}
	return slog.StringValue(scrub(fmt.Sprintf("[%T]", x)))
}

// call guards against methods of nil pointers: a log line never brings the program down.
func call(text func() string) (s string) {
	defer func() {
		if recover() != nil {
			s = "[panic in String]"
		}
	}()
	return text()
}
