package web

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postbus/internal/account"
	"postbus/internal/domain/user"
	"postbus/internal/mail"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const publicURL = "https://postbus.example"

// accounts is the role Accounts with a script: what it answers, how long it takes, and what it was asked.
type accounts struct {
	mu      sync.Mutex
	calls   []string
	err     error
	takes   time.Duration
	state   account.LinkState
	onWork  func(ctx context.Context, call string) error
	address user.Address
}

func (f *accounts) work(ctx context.Context, call string) error {
	f.mu.Lock()
	f.calls = append(f.calls, call)
	f.mu.Unlock()
	if f.onWork != nil {
		return f.onWork(ctx, call)
	}
	if f.takes > 0 {
		select {
		case <-time.After(f.takes):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return f.err
}

func (f *accounts) Register(ctx context.Context, a user.Address) error {
	f.address = a
	return f.work(ctx, "register")
}

func (f *accounts) Resend(ctx context.Context, a user.Address) error {
	f.address = a
	return f.work(ctx, "resend")
}

func (f *accounts) Inspect(ctx context.Context, _ account.Token) (account.LinkState, error) {
	return f.state, f.work(ctx, "inspect")
}

func (f *accounts) Verify(ctx context.Context, _ account.Token) (account.LinkState, error) {
	return f.state, f.work(ctx, "verify")
}

func (f *accounts) called() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.calls, " ")
}

// letters is a Mailbox in memory, the newest first.
type letters []mail.Mail

func (l letters) List() ([]mail.Entry, error) {
	entries := make([]mail.Entry, 0, len(l))
	for _, m := range l {
		entries = append(entries, m.Entry)
	}
	return entries, nil
}

func (l letters) Read(id string) (mail.Mail, error) {
	for _, m := range l {
		if m.ID == id {
			return m, nil
		}
	}
	return mail.Mail{}, mail.ErrNotFound
}

func newApp(t testing.TB, a Accounts, change ...func(*Config)) *App {
	t.Helper()
	c := Config{PublicURL: publicURL, Logger: slog.New(slog.DiscardHandler), RateBurst: 1000}
	for _, f := range change {
		f(&c)
	}
	app, err := New(a, c)
	if err != nil {
		t.Fatal(err)
	}
	return app
}

// withMailbox gives the app of one machine a mailbox.
func withMailbox(c *Config) {
	c.PublicURL = "http://127.0.0.1:8080"
	c.Mailbox = letters{{
		Entry: mail.Entry{
			ID: "0123456789abcdef0123456789abcdef", From: "postbus <no-reply@postbus.example>", To: "ada@example.com",
			Subject: "Confirm <b>your</b> address", Date: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
		},
		Text: "Open https://postbus.example/verify?token=x",
		HTML: `<!doctype html><html><head lang="en"><title>x</title></head><body><a href="/verify">Go</a></body></html>`,
	}}
}

// request is a request as a test describes it.
type request struct {
	method, target, body string
	header               map[string]string // Host sets the host
	remote               string
}

func postJSON(target, body string) request {
	return request{method: http.MethodPost, target: target, body: body, header: map[string]string{"Content-Type": typeJSON}}
}

func postForm(target, body string) request {
	return request{method: http.MethodPost, target: target, body: body, header: map[string]string{"Content-Type": typeForm}}
}

func get(target string) request { return request{method: http.MethodGet, target: target} }

func (q request) with(key, value string) request {
	header := map[string]string{key: value}
	for k, v := range q.header {
		if k != key {
			header[k] = v
		}
	}
	q.header = header
	return q
}

func (q request) do(h http.Handler) *httptest.ResponseRecorder {
	r := httptest.NewRequest(q.method, q.target, strings.NewReader(q.body))
	r.Host = "127.0.0.1:8080"
	r.RemoteAddr = "127.0.0.1:4000"
	if q.remote != "" {
		r.RemoteAddr = q.remote
	}
	for k, v := range q.header {
		if k == "Host" {
			r.Host = v
			continue
		}
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// errorOf reads the body of a refusal in JSON, and fails if it is anything else.
func errorOf(t *testing.T, w *httptest.ResponseRecorder) (code, message string) {
	t.Helper()
	var body struct {
		Error struct{ Code, Message string }
	}
	d := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		t.Fatalf("body %q is no error: %v", w.Body, err)
	}
	if d.More() {
		t.Fatalf("body %q goes on after the error", w.Body)
	}
	if body.Error.Code == "" || !strings.HasSuffix(body.Error.Message, ".") {
		t.Fatalf("error %+v has no code or no sentence", body.Error)
	}
	return body.Error.Code, body.Error.Message
}

func wantStatus(t *testing.T, w *httptest.ResponseRecorder, status int) {
	t.Helper()
	if w.Code != status {
		t.Fatalf("status is %d, want %d; body: %s", w.Code, status, w.Body)
	}
}

func wantPage(t *testing.T, w *httptest.ResponseRecorder, parts ...string) {
	t.Helper()
	if got := w.Header().Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Fatalf("content type is %q, want a page", got)
	}
	body := w.Body.String()
	if !strings.HasPrefix(body, "<!doctype html>") || !strings.HasSuffix(body, "</html>\n") {
		t.Fatalf("page is not whole: %s", body)
	}
	for _, part := range parts {
		if !strings.Contains(body, part) {
			t.Errorf("page lacks %q: %s", part, body)
		}
	}
}

// syncBuffer is a log's destination that a test may read while the app writes.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func logTo(w io.Writer) func(*Config) {
	return func(c *Config) {
		c.Logger = slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
}
