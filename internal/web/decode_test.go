package web

import (
	"bufio"
	"encoding/json"
	"errors"
	"html"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestStrictInput(t *testing.T) {
	long := strings.Repeat("a", bodyBytesMax)
	for name, c := range map[string]struct {
		q        request
		status   int
		code     string
		sentence string
	}{
		"empty JSON":          {postJSON("/users", ""), 400, "malformed_json", `"email"`},
		"cut JSON":            {postJSON("/users", `{"email":"a@example.com"`), 400, "malformed_json", `"email"`},
		"not JSON":            {postJSON("/users", `email=a@example.com`), 400, "malformed_json", `"email"`},
		"trailing data":       {postJSON("/users", `{"email":"a@example.com"}{}`), 400, "malformed_json", "one JSON object"},
		"array":               {postJSON("/users", `["a@example.com"]`), 400, "malformed_json", "JSON object"},
		"null":                {postJSON("/users", `null`), 400, "malformed_json", "JSON object"},
		"unknown field":       {postJSON("/users", `{"email":"a@example.com","admin":true}`), 400, "unknown_field", `"admin"`},
		"field in wrong case": {postJSON("/users", `{"Email":"a@example.com"}`), 400, "unknown_field", `"Email"`},
		"unprintable field":   {postJSON("/users", `{"<b>\r\n":1}`), 400, "unknown_field", "a field besides"},
		"duplicate field":     {postJSON("/users", `{"email":"a@example.com","email":"b@example.com"}`), 400, "duplicate_field", `"email"`},
		"escaped duplicate":   {postJSON("/users", `{"email":"a@example.com","em\u0061il":"b@example.com"}`), 400, "duplicate_field", `"email"`},
		"number":              {postJSON("/users", `{"email":1}`), 400, "wrong_type", `"email"`},
		"null field":          {postJSON("/users", `{"email":null}`), 400, "wrong_type", `"email"`},
		"object field":        {postJSON("/users", `{"email":{"a":1}}`), 400, "wrong_type", `"email"`},
		"missing field":       {postJSON("/users", `{}`), 400, "missing_field", `"email"`},
		"invalid UTF-8":       {postJSON("/users", "{\"email\":\"a\xff@example.com\"}"), 400, "invalid_encoding", "UTF-8"},
		"half a character":    {postJSON("/users", `{"email":"a\ud800@example.com"}`), 400, "invalid_encoding", `"email"`},
		"deep nesting":        {postJSON("/users", strings.Repeat("[", bodyBytesMax)), 400, "malformed_json", `"email"`},
		"deep field":          {postJSON("/users", `{"email":`+strings.Repeat("[", 8000)+strings.Repeat("]", 8000)+`}`), 400, "wrong_type", `"email"`},
		"oversized JSON":      {postJSON("/users", `{"email":"`+long+`"}`), 413, "body_too_large", "16 KiB"},
		"no content type":     {postJSON("/users", `{}`).with("Content-Type", ""), 415, "unsupported_media_type", typeJSON},
		"wrong content type":  {postJSON("/users", `{}`).with("Content-Type", "text/plain"), 415, "unsupported_media_type", typeJSON},
		"multipart":           {postJSON("/users", `{}`).with("Content-Type", "multipart/form-data; boundary=x"), 415, "unsupported_media_type", typeForm},
		"malformed type":      {postJSON("/users", `{}`).with("Content-Type", "application/json; charset"), 415, "unsupported_media_type", typeForm},
		"other charset":       {postJSON("/users", `{}`).with("Content-Type", "application/json; charset=utf-16"), 415, "unsupported_media_type", "UTF-8"},
		"compressed":          {postJSON("/users", `{}`).with("Content-Encoding", "gzip"), 415, "unsupported_media_type", "compressed"},
		"token of wrong type": {postJSON("/verify", `{"token":[]}`), 400, "wrong_type", `"token"`},
		"email for token":     {postJSON("/verify", `{"email":"a@example.com"}`), 400, "unknown_field", `"token"`},
		"token for email":     {postJSON("/verify/resend", `{"token":"x"}`), 400, "unknown_field", `"email"`},
	} {
		t.Run(name, func(t *testing.T) {
			f := &accounts{}
			w := c.q.do(newApp(t, f).Handler())
			wantStatus(t, w, c.status)
			if code, message := errorOf(t, w); code != c.code || !strings.Contains(message, c.sentence) {
				t.Errorf("error is %s: %s", code, message)
			}
			if f.called() != "" {
				t.Errorf("called %s", f.called())
			}
		})
	}
}

func TestStrictForm(t *testing.T) {
	for name, c := range map[string]struct {
		body     string
		status   int
		sentence string
	}{
		"unknown field":   {"email=a%40example.com&admin=1", 400, `The field "admin" is not known here; send only "email".`},
		"duplicate field": {"email=a%40example.com&email=b%40example.com", 400, `The field "email" is there more than once.`},
		"missing field":   {"", 400, `The field "email" is missing.`},
		"bad escape":      {"email=%zz", 400, "not encoded correctly"},
		"semicolon":       {"email=a;b", 400, "not encoded correctly"},
		"invalid UTF-8":   {"email=%ff%40example.com", 400, "UTF-8"},
		"too large":       {"email=" + strings.Repeat("a", bodyBytesMax), 413, "16 KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &accounts{}
			h := newApp(t, f).Handler()
			for _, target := range []string{"/users", "/verify/resend"} {
				w := postForm(target, c.body).do(h)
				wantStatus(t, w, c.status)
				wantPage(t, w, escaped(c.sentence), `role="alert"`, `action="`+target+`"`)
			}
			if f.called() != "" {
				t.Errorf("called %s", f.called())
			}
		})
	}
}

// What is left of a body that is too large is not read: the connection ends with the answer.
func TestOversizedBodyEndsTheConnection(t *testing.T) {
	addr, _ := serve(t, &accounts{})
	for size, closed := range map[int]bool{bodyBytesMax: false, bodyBytesMax + 1: true} {
		conn := dial(t, addr)
		say(t, conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
			size, strings.Repeat(" ", size))
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.Close != closed || (response.StatusCode == http.StatusRequestEntityTooLarge) != closed {
			t.Errorf("%d bytes: status %d, connection ends: %v", size, response.StatusCode, response.Close)
		}
	}
}

func TestAcceptedContentTypes(t *testing.T) {
	h := newApp(t, &accounts{}).Handler()
	for _, contentType := range []string{
		"application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8",
	} {
		q := postJSON("/users", `{"email":"a@example.com"}`).with("Content-Type", contentType)
		wantStatus(t, q.do(h), http.StatusAccepted)
	}
}

// FuzzJSONField holds the decoder against encoding/json: what it accepts, encoding/json reads as the same one field.
func FuzzJSONField(f *testing.F) {
	for _, seed := range []string{
		`{"email":"a@example.com"}`, `{"email":"a","email":"b"}`, `{"em\u0061il":"x"}`, `{"email":"\ud800"}`, `{}`, `[`, `{"email":`,
		"{\"email\":\"\xff\"}", ` {"email" : "x" } `, `{"email":"x",}`, `{"email":{}}`, `{"Email":"x"}`, "\ufeff{}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		value, err := jsonField(body, "email")
		var fields map[string]any
		plain := json.Unmarshal(body, &fields)
		if err != nil {
			var no *problem
			if !errors.As(err, &no) || no.status != http.StatusBadRequest || !utf8.ValidString(no.message) {
				t.Fatalf("error is %v", err)
			}
			return
		}
		if plain != nil || len(fields) != 1 || fields["email"] != value {
			t.Fatalf("accepted %q as %q; encoding/json: %v, %v", body, value, fields, plain)
		}
	})
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func formOf(key, value string) string { return url.Values{key: {value}}.Encode() }

// escaped is how a text stands in a page.
func escaped(s string) string {
	return strings.NewReplacer("+", "&#43;").Replace(html.EscapeString(s))
}

// slowBody pauses before its last byte.
type slowBody struct {
	rest  string
	pause time.Duration
	ended time.Time
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.rest == "" {
		<-time.After(b.pause)
		b.ended = time.Now()
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// timedWriter remembers when the status was written.
type timedWriter struct {
	header http.Header
	at     time.Time
}

func (w *timedWriter) Header() http.Header         { return w.header }
func (w *timedWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w *timedWriter) WriteHeader(int)             { w.at = time.Now() }
