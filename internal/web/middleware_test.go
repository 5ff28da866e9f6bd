package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"postbus/internal/account"
)

// everyRoute is a request for each route and for what no route takes.
func everyRoute() []request {
	token := account.Token{1}.Encode()
	return []request{
		get("/"), get("/verify?token=" + token), get("/verify?token=x"), get("/healthz"), get("/readyz"),
		get("/static/style.css"), get("/static/nothing.css"), get("/mailbox"),
		get("/mailbox/0123456789abcdef0123456789abcdef"), get("/mailbox/0123456789abcdef0123456789abcdef/html"),
		get("/nothing"), get("/users"), get("//users"),
		postJSON("/users", `{"email":"ada@example.com"}`), postForm("/users", "email=ada%40example.com"),
		postJSON("/users", `{"email":"ada"}`), postForm("/users", "email=ada"), postForm("/users", "").with("Content-Type", "x/y"),
		postJSON("/verify", `{"token":"`+token+`"}`), postForm("/verify", "token="+token),
		postJSON("/verify/resend", `{"email":"ada@example.com"}`), postForm("/verify/resend", "email=ada%40example.com"),
		postForm("/users", "email=ada%40example.com").with("Sec-Fetch-Site", "cross-site"),
	}
}

func TestSecurityHeadersOnEveryRoute(t *testing.T) {
	h := newApp(t, &accounts{state: account.LinkOpen}, withMailbox).Handler()
	for _, q := range everyRoute() {
		w := q.do(h)
		for name, want := range map[string]string{
			"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
			"Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s %s: %s is %q, want %q", q.method, q.target, name, got, want)
			}
		}
		policy := w.Header().Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "frame-ancestors ", "base-uri 'none'"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s %s: policy %q lacks %q", q.method, q.target, policy, want)
			}
		}
		if len(w.Header().Get("X-Request-Id")) != 26 {
			t.Errorf("%s %s: request id is %q", q.method, q.target, w.Header().Get("X-Request-Id"))
		}
	}
}

// No page may need what its own policy forbids: a style attribute, an inline script or handler, anything from elsewhere.
func TestPagesKeepTheirOwnPolicy(t *testing.T) {
	h := newApp(t, &accounts{state: account.LinkOpen}, withMailbox).Handler()
	for _, q := range everyRoute() {
		w := q.do(h)
		redirect := w.Code/100 == 3 // written by net/http
		if redirect || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") || strings.HasSuffix(q.target, "/html") {
			continue
		}
		body := w.Body.String()
		for _, bad := range []string{" style=", "<style", "onclick=", "onload=", "javascript:", `src="http`, `href="http`} {
			if strings.Contains(body, bad) {
				t.Errorf("%s %s: page contains %q", q.method, q.target, bad)
			}
		}
		if n := strings.Count(body, "<script"); n != strings.Count(body, `<script src="/static/`) {
			t.Errorf("%s %s: page has an inline script", q.method, q.target)
		}
		for _, want := range []string{`<html lang="en">`, `name="viewport"`, "<main>", "<h1", "<title>"} {
			if !strings.Contains(body, want) {
				t.Errorf("%s %s: page lacks %q", q.method, q.target, want)
			}
		}
	}
}

// A browser that sends no Sec-Fetch-Site must not be kept from sending Origin, or its forms would be refused.
func TestReferrerPolicyLetsOldBrowsersSendForms(t *testing.T) {
	h := newApp(t, &accounts{}).Handler()
	old := get("/").with("Accept", "text/html,*/*")
	if got := old.do(h).Header().Get("Referrer-Policy"); got != "strict-origin" {
		t.Errorf("without Sec-Fetch-Site the policy is %q", got)
	}
	if got := old.with("Sec-Fetch-Site", "none").do(h).Header().Get("Referrer-Policy"); got != "no-referrer" {
		t.Errorf("with Sec-Fetch-Site the policy is %q", got)
	}
}

func TestCrossOrigin(t *testing.T) {
	for name, c := range map[string]struct {
		header map[string]string
		status int
	}{
		"JSON client":              {map[string]string{}, 202},
		"own page":                 {map[string]string{"Sec-Fetch-Site": "same-origin"}, 202},
		"other site":               {map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"sibling domain":           {map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		"old browser, own page":    {map[string]string{"Origin": "http://127.0.0.1:8080"}, 202},
		"old browser, other site":  {map[string]string{"Origin": "https://evil.example"}, 403},
		"old browser, opaque":      {map[string]string{"Origin": "null"}, 403},
		"proxy that rewrites Host": {map[string]string{"Origin": publicURL, "Host": "app:8080"}, 202},
	} {
		t.Run(name, func(t *testing.T) {
			for _, target := range []string{"/users", "/verify/resend", "/verify"} {
				f := &accounts{state: account.LinkVerified}
				q := postForm(target, "email=ada%40example.com")
				status := c.status
				if target == "/verify" {
					q.body = "token=" + account.Token{}.Encode()
					if status == http.StatusAccepted {
						status = http.StatusOK
					}
				}
				for k, v := range c.header {
					q = q.with(k, v)
				}
				w := q.do(newApp(t, f).Handler())
				wantStatus(t, w, status)
				if (f.called() == "") != (status == http.StatusForbidden) {
					t.Errorf("%s: called %q", target, f.called())
				}
			}
		})
	}
}

func TestUnknownPathAndMethod(t *testing.T) {
	h := newApp(t, &accounts{}, withMailbox).Handler()
	w := get("/nothing").do(h)
	wantStatus(t, w, http.StatusNotFound)
	wantPage(t, w, "Nothing here", `href="/"`)
	w = get("/nothing").with("Accept", typeJSON).do(h)
	wantStatus(t, w, http.StatusNotFound)
	if code, _ := errorOf(t, w); code != "not_found" {
		t.Errorf("code is %s", code)
	}
	wantStatus(t, get("/mailbox").do(newApp(t, &accounts{}).Handler()), http.StatusNotFound)

	for target, allow := range map[string]string{
		"/": "HEAD, GET", "/users": "POST", "/verify": "HEAD, GET, POST", "/verify/resend": "POST", "/healthz": "HEAD, GET",
		"/readyz": "HEAD, GET", "/mailbox": "HEAD, GET", "/static/style.css": "HEAD, GET",
	} {
		w := request{method: http.MethodDelete, target: target}.do(h)
		wantStatus(t, w, http.StatusMethodNotAllowed)
		if got := w.Header().Get("Allow"); got != allow {
			t.Errorf("%s: Allow is %q, want %q", target, got, allow)
		}
		if code, _ := errorOf(t, w); code != "method_not_allowed" {
			t.Errorf("%s: code is %s", target, code)
		}
	}
}

// Nothing that a person can put into a request may reach the log, whatever goes wrong with it.
func TestLogHoldsNothingTyped(t *testing.T) {
	const canary = "kanarie"
	token := account.Token([]byte("kanarie-kanarie-kanarie-kanarie-"))
	email := canary + "@Kanarie.example"
	quoting := func(_ context.Context, call string) error {
		if call == "register" || call == "resend" {
			return fmt.Errorf("insert: value %q or %q refused", email, strings.ToLower(email))
		}
		return fmt.Errorf("insert: value %q refused", token.Encode())
	}
	for _, f := range []*accounts{{state: account.LinkOpen}, {state: account.LinkUsed}, {onWork: quoting}} {
		var log syncBuffer
		h := newApp(t, f, withMailbox, logTo(&log)).Handler()
		for _, q := range []request{
			get("/" + canary), get("/?" + canary), get("/verify?token=" + token.Encode()), get("/verify?token=" + canary),
			get("/mailbox/" + canary), get("/static/" + canary), get("/").with("Host", canary), get("//" + canary),
			get("/").with("User-Agent", canary).with("X-Request-Id", canary).with("X-Forwarded-For", canary),
			{method: "KANARIE", target: "/" + canary}, {method: "KANARIE", target: "/users"},
			postJSON("/users", `{"email":"`+email+`"}`), postJSON("/users", `{"email":"`+canary+`"}`),
			postJSON("/users", `{"`+canary+`":1}`), postForm("/users", canary), postForm("/users", formOf("email", email)),
			postJSON("/users", "{}").with("Content-Type", canary),
			postForm("/verify/resend", formOf("email", email)), postForm("/verify", "token="+token.Encode()),
			postJSON("/verify", `{"token":"`+token.Encode()+`"}`),
		} {
			q.do(h)
		}
		got := log.String()
		if strings.Contains(strings.ToLower(got), canary) || strings.Contains(got, token.Encode()) {
			t.Errorf("log holds what was typed: %s", got)
		}
		if f.onWork != nil && !strings.Contains(got, "insert: value") {
			t.Errorf("log lost the error: %s", got)
		}
	}
}

func TestAccessLog(t *testing.T) {
	var log syncBuffer
	h := newApp(t, &accounts{}, logTo(&log)).Handler()
	w := postJSON("/users", `{"email":"ada@example.com"}`).do(h)
	var line struct {
		Level     string
		RequestID string `json:"request_id"`
		Duration  int64
		HTTP      struct {
			Method, Route string
			Status, Bytes int
		}
	}
	if err := json.Unmarshal([]byte(log.String()), &line); err != nil {
		t.Fatal(err)
	}
	if line.HTTP.Method != http.MethodPost || line.HTTP.Route != "/users" || line.HTTP.Status != 202 || line.Level != "INFO" ||
		line.HTTP.Bytes != w.Body.Len() || line.Duration < int64(answerFloor) || line.RequestID != w.Header().Get("X-Request-Id") {
		t.Errorf("line is %+v", line)
	}

	var routes []string
	for target, want := range map[string]string{
		"/": "INFO /", "/nothing": "INFO none", "/healthz": "DEBUG /healthz", "/static/style.css": "DEBUG /static/{name}",
		"/static/x": "INFO /static/{name}",
	} {
		log = syncBuffer{}
		get(target).do(h)
		if err := json.Unmarshal([]byte(log.String()), &line); err != nil {
			t.Fatal(err)
		}
		if got := line.Level + " " + line.HTTP.Route; got != want {
			routes = append(routes, got+" for "+target)
		}
	}
	if len(routes) > 0 {
		t.Errorf("lines are wrong: %q", slices.Sorted(slices.Values(routes)))
	}
}

func TestPanic(t *testing.T) {
	for name, c := range map[string]struct {
		work   func() error
		reason string
	}{
		"own value":     {func() error { panic("kanarie@example.com") }, "panic with a string"},
		"error":         {func() error { panic(errors.New("kanarie@example.com")) }, "panic with a *errors.errorString"},
		"runtime error": {func() error { return write(nil) }, "assignment to entry in nil map"},
	} {
		t.Run(name, func(t *testing.T) {
			var log syncBuffer
			f := &accounts{}
			f.onWork = func(context.Context, string) error { return c.work() }
			h := newApp(t, f, logTo(&log)).Handler()
			w := postJSON("/users", `{"email":"ada@example.com"}`).do(h)
			wantStatus(t, w, http.StatusInternalServerError)
			if code, _ := errorOf(t, w); code != "internal" {
				t.Errorf("code is %s", code)
			}
			w = postForm("/users", "email=ada%40example.com").do(h)
			wantStatus(t, w, http.StatusInternalServerError)
			wantPage(t, w, w.Header().Get("X-Request-Id"))
			got := log.String()
			if strings.Contains(got, "kanarie") || !strings.Contains(got, c.reason) || strings.Count(got, `"stack"`) != 2 ||
				!strings.Contains(got, "TestPanic") || strings.Count(got, `"status":500`) != 2 {
				t.Errorf("log is %s", got)
			}
		})
	}
}

func write(m map[string]int) error {
	m["x"] = 1
	return nil
}

func TestPanicAfterTheAnswerBegan(t *testing.T) {
	app := newApp(t, &accounts{})
	h := app.observe(app.recoverPanic(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		panic("late")
	})))
	defer func() {
		if err, ok := recover().(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			t.Errorf("recovered %v, want the connection to be broken off", err)
		}
	}()
	get("/").do(h)
	t.Error("the answer was taken for a whole one")
}
