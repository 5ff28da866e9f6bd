package telemetry

import (
	"encoding/json"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// scrubError returns the text of the error as it may stand in a log line. Errors anywhere in its tree whose text quotes
// their input are rendered without it; the words that wrap them stay.
func scrubError(err error) string {
	text := call(func() string { return errorText(err) })
	return scrub(strings.ReplaceAll(text, "\n", "; ")) // joined errors stay apart
}

func errorText(err error) string {
	text := err.Error()
	walk(err, func(e error) {
		r, ok := render(e)
		switch {
		case !ok:
		case r.whole != "" && strings.Contains(text, r.whole):
			text = strings.ReplaceAll(text, r.whole, r.safe)
		case r.quoted != "" && strings.Contains(text, r.quoted):
			text = r.safe // somebody put it in words of their own, which cannot be told from ours
		}
	})
	return text
}

// walk visits the tree of err, outermost first.
func walk(err error, visit func(error)) {
	if err == nil {
		return
	}
	visit(err)
	switch e := err.(type) { //nolint:errorlint // this walks the chain itself
	case interface{ Unwrap() error }:
		walk(e.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			walk(inner, visit)
		}
	}
}

// rendering says how to show an error that quotes its input.
type rendering struct {
	whole  string // its own text
	quoted string // the part of it that must not be shown
	safe   string // what is shown instead
}

func render(err error) (rendering, bool) {
	switch e := err.(type) { //nolint:errorlint // walk visits each error of the chain
	case *pgconn.PgError:
		return rendering{whole: e.Error(), quoted: e.Message, safe: postgresText(e)}, true
	case *pgconn.ParseConfigError:
		return rendering{whole: e.Error(), quoted: e.ConnString, safe: "malformed Postgres URL"}, true
	case *url.Error:
		return rendering{whole: e.Error(), quoted: e.URL, safe: e.Op + ": " + e.Err.Error()}, true
	case *strconv.NumError:
		return rendering{whole: e.Error(), quoted: e.Num, safe: "strconv." + e.Func + ": " + e.Err.Error()}, true
	case *net.ParseError:
		return rendering{whole: e.Error(), quoted: e.Text, safe: "invalid " + e.Type}, true
	case *time.ParseError:
		return rendering{whole: e.Error(), quoted: e.Value, safe: "malformed time"}, true
	case *json.UnmarshalTypeError:
		kind, _, _ := strings.Cut(e.Value, " ") // "number 42" is cut to "number"
		safe := "json: cannot unmarshal " + kind + " into " + e.Field
		return rendering{whole: e.Error(), quoted: e.Value, safe: safe}, true
	default:
		return rendering{}, false
	}
}

// postgresText names the error by its code and, where there is one, its constraint. Message, detail and hint may quote
// the row.
func postgresText(e *pgconn.PgError) string {
	if e.ConstraintName == "" {
		return "SQLSTATE " + e.Code
	}
	return "SQLSTATE " + e.Code + " " + e.ConstraintName
}

// ErrorText is the error as a log line would have it: without addresses, tokens and passwords, in one line.
func ErrorText(err error) string { return scrubError(err) }
