package web

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"postbus/internal/account"
)

func TestLimitByClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &accounts{state: account.LinkVerified}
		h := newApp(t, f, func(c *Config) { c.RateBurst, c.RateInterval = 3, 10*time.Second }).Handler()
		posts := []request{
			postForm("/users", "email=x"), postForm("/verify", "token=x"), postForm("/verify/resend", "email=x"),
		}
		for _, q := range posts {
			if w := q.do(h); w.Code == http.StatusTooManyRequests {
				t.Fatalf("%s was refused within the burst", q.target)
			}
		}
		for _, q := range posts {
			w := q.do(h)
			wantStatus(t, w, http.StatusTooManyRequests)
			wantPage(t, w, "Please wait 10 seconds")
			if got := w.Header().Get("Retry-After"); got != "10" {
				t.Errorf("Retry-After is %q", got)
			}
		}
		// What was typed is still there, and so is the button of a link.
		wantPage(t, postForm("/users", "email=ada%40example.org").do(h), `value="ada@example.org"`)
		wantPage(t, postForm("/verify/resend", "email=ada%40example.org").do(h), `value="ada@example.org"`)
		link := account.NewTokens([]byte(strings.Repeat("secret", 8))).For(uuid.New()).Encode()
		wantPage(t, postForm("/verify", "token="+link).do(h), `value="`+link+`"`)
		// Neither another port nor an untrusted X-Forwarded-For makes another client; another address does.
		again := postJSON("/users", `{"email":"x"}`)
		again.remote = "127.0.0.1:4001"
		w := again.with("X-Forwarded-For", "192.0.2.7").do(h)
		wantStatus(t, w, http.StatusTooManyRequests)
		if code, message := errorOf(t, w); code != "too_many_requests" || !strings.Contains(message, "wait") {
			t.Errorf("error is %s: %s", code, message)
		}
		again.remote = "192.0.2.7:4001"
		wantStatus(t, again.do(h), http.StatusUnprocessableEntity)
		wantStatus(t, get("/").do(h), http.StatusOK)

		<-time.After(10 * time.Second)
		wantStatus(t, posts[0].do(h), http.StatusUnprocessableEntity)
		wantStatus(t, posts[0].do(h), http.StatusTooManyRequests)
	})
}

// TestLimitKeepsWhatWasTyped: a person who is told to wait can send the same form again, from the page that says so.
func TestLimitKeepsWhatWasTyped(t *testing.T) {
	token := strings.Repeat("A", 43)
	for name, tt := range map[string]struct {
		request request
		page    []string
	}{
		"sign-up": {postForm("/users", "email=ada%40example.com"), []string{
			`<form method="post" action="/users">`, `value="ada@example.com"`, "Open your postbus",
		}},
		"markup": {postForm("/users", "email=%22%3E%3Cscript%3E"), []string{`value="&#34;&gt;&lt;script&gt;"`}},
		"resend": {postForm("/verify/resend", "email=ada%40example.com"), []string{
			`<form method="post" action="/verify/resend">`, `value="ada@example.com"`, "Get a new email",
		}},
		"confirmation": {postForm("/verify", "token="+token), []string{
			`<form method="post" action="/verify">`, `name="token" value="` + token + `"`, "Confirm your email address",
		}},
		"no token":        {postForm("/verify", "token=x"), []string{"A little slower, please"}},
		"another field":   {postForm("/users", "name=ada"), []string{`<form method="post" action="/users">`, `value=""`}},
		"too much of it":  {postForm("/users", "email="+strings.Repeat("x", bodyBytesMax)), []string{`<form method="post" action="/users">`, `value=""`}},
		"not of our form": {postForm("/users", "email=%ff"), []string{`<form method="post" action="/users">`, `value=""`}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &accounts{}
				h := newApp(t, f, func(c *Config) { c.RateBurst, c.RateInterval = 1, 1500*time.Millisecond }).Handler()
				wantStatus(t, postForm("/users", "email=x").do(h), http.StatusUnprocessableEntity)
				<-time.After(time.Second)
				w := tt.request.do(h)
				wantStatus(t, w, http.StatusTooManyRequests)
				wantPage(t, w, append(tt.page, "Please wait 1 second and try again.")...)
				if got := w.Header().Get("Retry-After"); got != "1" || f.called() != "" {
					t.Errorf("Retry-After is %q, called %q", got, f.called())
				}
			})
		})
	}
}

// unread is a body that must not be read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

// TestLimitReadsNothingOfAProgram: it needs no form, and what it sends can wait for its turn.
func TestLimitReadsNothingOfAProgram(t *testing.T) {
	h := newApp(t, &accounts{}, func(c *Config) { c.RateBurst = 1 }).Handler()
	wantStatus(t, postJSON("/users", "{}").do(h), http.StatusBadRequest)
	for _, path := range []string{"/users", "/verify", "/verify/resend"} {
		r := httptest.NewRequest(http.MethodPost, path, unread{t})
		r.RemoteAddr = "127.0.0.1:4000"
		r.Header.Set("Content-Type", typeJSON)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		wantStatus(t, w, http.StatusTooManyRequests)
	}
}

func TestLimitIsPerHouseholdOnIPv6(t *testing.T) {
	h := newApp(t, &accounts{}, func(c *Config) { c.RateBurst = 1 }).Handler()
	q := postJSON("/users", "{}")
	for remote, status := range map[string]int{"[2001:db8:1:1::1]:1": 400, "[2001:db8:1:2::1]:1": 400} {
		q.remote = remote
		wantStatus(t, q.do(h), status)
	}
	q.remote = "[2001:db8:1:1:ffff::2]:1"
	wantStatus(t, q.do(h), http.StatusTooManyRequests)
}

func TestLimiterIsBoundedAndForgetsTheOldest(t *testing.T) {
	now := time.Unix(0, 0)
	client := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, i}) }
	l := newLimiter(1, time.Hour, 2)
	steps := []struct {
		client  byte
		refused bool
	}{
		{1, false}, {2, false}, {1, true}, // 2 is now the one unseen for longest
		{3, false}, {1, true}, {2, false}, // 2 was forgotten, and 3 is for it
		{3, false},
	}
	for i, step := range steps {
		if wait := l.allow(client(step.client), now); (wait > 0) != step.refused {
			t.Errorf("step %d: client %d waits %s", i, step.client, wait)
		}
		if len(l.buckets) > 2 || l.recent.Len() != len(l.buckets) {
			t.Fatalf("step %d: %d buckets, %d in order", i, len(l.buckets), l.recent.Len())
		}
	}
}

func TestRefusedRequestsCostNothing(t *testing.T) {
	now := time.Unix(0, 0)
	client := netip.MustParseAddr("192.0.2.1")
	l := newLimiter(1, time.Second, 10)
	l.allow(client, now)
	for range 100 {
		if wait := l.allow(client, now); wait != time.Second {
			t.Fatalf("wait is %s, want 1s", wait)
		}
	}
	if wait := l.allow(client, now.Add(time.Second)); wait != 0 {
		t.Errorf("after the wait it is %s more", wait)
	}
}
