package web

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"postbus/internal/mail"
)

const letterPath = "/mailbox/0123456789abcdef0123456789abcdef"

func TestMailboxIsForThisMachineOnly(t *testing.T) {
	h := newApp(t, &accounts{}, withMailbox).Handler()
	for name, c := range map[string]struct {
		remote string
		header map[string]string
		status int
	}{
		"loopback":                 {"127.0.0.1:1", nil, 200},
		"localhost":                {"127.0.0.1:1", map[string]string{"Host": "LocalHost:8080"}, 200},
		"IPv6 loopback":            {"[::1]:1", map[string]string{"Host": "[::1]:8080"}, 200},
		"IPv6 without port":        {"[::1]:1", map[string]string{"Host": "[::1]"}, 200},
		"public name":              {"127.0.0.1:1", map[string]string{"Host": "postbus.example"}, 403},
		"rebound name":             {"127.0.0.1:1", map[string]string{"Host": "evil.example:8080"}, 403},
		"name that looks local":    {"127.0.0.1:1", map[string]string{"Host": "127.0.0.1.evil.example"}, 403},
		"no host":                  {"127.0.0.1:1", map[string]string{"Host": ""}, 403},
		"other address":            {"127.0.0.1:1", map[string]string{"Host": "192.0.2.1:8080"}, 403},
		"another machine":          {"192.0.2.1:1", nil, 403},
		"another machine, forged":  {"192.0.2.1:1", map[string]string{"X-Forwarded-For": "127.0.0.1"}, 403},
		"proxy on this machine":    {"127.0.0.1:1", map[string]string{"X-Forwarded-For": "192.0.2.1"}, 403},
		"proxy, standard header":   {"127.0.0.1:1", map[string]string{"Forwarded": "for=192.0.2.1"}, 403},
		"proxy, host only":         {"127.0.0.1:1", map[string]string{"X-Forwarded-Host": "postbus.example"}, 403},
		"proxy, real address only": {"127.0.0.1:1", map[string]string{"X-Real-Ip": "127.0.0.1"}, 403},
	} {
		t.Run(name, func(t *testing.T) {
			for _, target := range []string{"/mailbox", letterPath, letterPath + "/html"} {
				q := get(target)
				q.remote = c.remote
				for k, v := range c.header {
					q = q.with(k, v)
				}
				w := q.do(h)
				wantStatus(t, w, c.status)
				if c.status != http.StatusOK && strings.Contains(w.Body.String(), "ada@example.com") {
					t.Error("the refusal shows the mail")
				}
				q.target = "/"
				if linked := strings.Contains(q.do(h).Body.String(), `href="/mailbox"`); linked != (c.status == http.StatusOK) {
					t.Errorf("start page links to the mailbox: %v", linked)
				}
			}
		})
	}
}

// An app with a public name has no mailbox pages at all: a proxy on this machine that adds no header looks like a browser
// on it.
func TestMailboxIsNotForPublicNames(t *testing.T) {
	for public, shown := range map[string]bool{
		"http://127.0.0.1:8080": true, "http://127.9.9.9": true, "http://[::1]:8080": true, "http://LocalHost:8080": true,
		"https://localhost": true, publicURL: false, "http://192.0.2.1:8080": false, "http://localhost.example": false,
		"http://127.0.0.1.example": false, "http://[2001:db8::1]": false,
	} {
		app := newApp(t, &accounts{}, withMailbox, func(c *Config) { c.PublicURL = public })
		if app.ShowsMailbox() != shown {
			t.Errorf("%s: the app says that it shows the mailbox: %v", public, !shown)
		}
		want := http.StatusNotFound
		if shown {
			want = http.StatusOK
		}
		for _, target := range []string{"/mailbox", letterPath, letterPath + "/html"} {
			q := get(target)
			q.remote = "127.0.0.1:1"
			wantStatus(t, q.do(app.Handler()), want)
		}
		q := get("/")
		q.remote = "127.0.0.1:1"
		if linked := strings.Contains(q.do(app.Handler()).Body.String(), `href="/mailbox"`); linked != shown {
			t.Errorf("%s: start page links to the mailbox: %v", public, linked)
		}
	}
	if newApp(t, &accounts{}, func(c *Config) { c.PublicURL = "http://localhost" }).ShowsMailbox() {
		t.Error("there is no mailbox to show")
	}
}

func TestMailboxShowsMails(t *testing.T) {
	h := newApp(t, &accounts{}, withMailbox).Handler()
	w := get("/mailbox").do(h)
	wantStatus(t, w, http.StatusOK)
	wantPage(t, w, `href="`+letterPath+`"`, "ada@example.com", "Confirm &lt;b&gt;your&lt;/b&gt; address",
		`<noscript><meta http-equiv="refresh" content="5"></noscript>`, `datetime="2026-03-04T05:06:07Z"`)

	w = get(letterPath).do(h)
	wantStatus(t, w, http.StatusOK)
	wantPage(t, w, `<iframe title="The mail" src="`+letterPath+`/html" sandbox="allow-top-navigation-by-user-activation">`,
		"postbus &lt;no-reply@postbus.example&gt;", `href="`+letterPath+`?as=text"`)

	w = get(letterPath + "?as=text").do(h)
	wantPage(t, w, "Open https://postbus.example/verify?token=x</pre>")
	if strings.Contains(w.Body.String(), "<iframe") {
		t.Error("plain text comes with a frame")
	}

	w = get("/mailbox/00000000000000000000000000000000").do(h)
	wantStatus(t, w, http.StatusNotFound)
	wantPage(t, w, "not in the mailbox")
}

func TestMailboxIsEmpty(t *testing.T) {
	h := newApp(t, &accounts{}, withMailbox, func(c *Config) { c.Mailbox = letters{} }).Handler()
	wantPage(t, get("/mailbox").do(h), "No mail yet.", `<a href="/">Sign up</a>`)
}

// A mail's HTML may do nothing but show itself and be left by a click.
func TestMailsHTMLIsSandboxed(t *testing.T) {
	w := get(letterPath + "/html").do(newApp(t, &accounts{}, withMailbox).Handler())
	wantStatus(t, w, http.StatusOK)
	if got := w.Header().Get("Content-Security-Policy"); got != letterPolicy || strings.Contains(got, "allow-scripts") ||
		strings.Contains(got, "allow-same-origin") {
		t.Errorf("policy is %q", got)
	}
	if !strings.Contains(w.Body.String(), `<head lang="en"><base target="_top"><title>`) {
		t.Errorf("links do not leave the frame: %s", w.Body)
	}
	if got := string(withBase([]byte("<p>x"))); got != baseTarget+"<p>x" {
		t.Errorf("without a head it is %s", got)
	}
}

type brokenMailbox struct{ err error }

func (b brokenMailbox) List() ([]mail.Entry, error)    { return nil, b.err }
func (b brokenMailbox) Read(string) (mail.Mail, error) { return mail.Mail{}, b.err }

func TestMailboxCannotBeRead(t *testing.T) {
	var log syncBuffer
	h := newApp(t, &accounts{}, logTo(&log), withMailbox, func(c *Config) {
		c.Mailbox = brokenMailbox{errors.New("disk is gone")}
	}).Handler()
	for _, target := range []string{"/mailbox", letterPath, letterPath + "/html"} {
		w := get(target).do(h)
		wantStatus(t, w, http.StatusInternalServerError)
		wantPage(t, w, "That went wrong", w.Header().Get("X-Request-Id"))
		if strings.Contains(w.Body.String(), "disk") {
			t.Errorf("%s shows the cause", target)
		}
	}
	if got := strings.Count(log.String(), "disk is gone"); got != 3 {
		t.Errorf("logged %d times: %s", got, log.String())
	}
}
