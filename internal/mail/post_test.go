package mail

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	testURL   = "https://post.example.com"
	testEvent = "01912f4c-7a3b-7c1d-8e9f-0123456789ab"
	testTo    = "ada@example.org"
	testLink  = testURL + "/verify?token=q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA"
)

// kept is a Sender that keeps what it is given.
type kept struct{ messages []Message }

func (k *kept) Send(_ context.Context, m Message, _ func(context.Context) error) error {
	k.messages = append(k.messages, m)
	return nil
}

// sendAll has a Post write each of its mails.
func sendAll(t *testing.T, p *Post) {
	t.Helper()
	ctx := t.Context()
	for _, err := range []error{
		p.Verification(ctx, testTo, testLink, testEvent),
		p.Welcome(ctx, testTo, testEvent),
		p.AlreadyRegistered(ctx, testTo, testEvent),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func newTestPost(t *testing.T, s Sender) *Post {
	t.Helper()
	p, err := NewPost(s, testURL)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// testMessage is the verification mail, for tests of the Senders.
func testMessage(t *testing.T) Message {
	t.Helper()
	var k kept
	sendAll(t, newTestPost(t, &k))
	return k.messages[0]
}

func TestMailsMatchGoldenFiles(t *testing.T) {
	var k kept
	sendAll(t, newTestPost(t, &k))
	for i, name := range []string{kindVerification, kindWelcome, kindAlreadyRegistered} {
		m := k.messages[i]
		golden(t, name+".txt", m.Text)
		golden(t, name+".html", m.HTML)
		mail, err := compose(m, time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC))
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".eml", string(mail.raw))
		if want := testEvent + "." + name + "@post.example.com"; m.ID != want {
			t.Errorf("%s: id %q, want %q", name, m.ID, want)
		}
		if m.From != "postbus <no-reply@post.example.com>" || m.To != testTo || len(m.Subject) > 30 {
			t.Errorf("%s: from %q, to %q, subject %q", name, m.From, m.To, m.Subject)
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from the golden file; look at the change and run the test with -update\n%s", name, got)
	}
}

// What every mail owes the person, whatever its words are.
func TestMailsSayWhatTheyMust(t *testing.T) {
	var k kept
	sendAll(t, newTestPost(t, &k))
	for i, m := range k.messages {
		link := testURL
		if i == 0 {
			link = testLink
		}
		for part, content := range map[string]string{"text": m.Text, "html": m.HTML} {
			for _, want := range []string{link, "You can ignore this mail", "post.example.com"} {
				if !strings.Contains(content, want) {
					t.Errorf("%s, %s: %q is missing", m.Subject, part, want)
				}
			}
			if strings.Contains(content, testTo) {
				t.Errorf("%s, %s: shows the recipient's address", m.Subject, part)
			}
		}
		for _, line := range strings.Split(m.Text, "\n") {
			if len(line) > 76 && !strings.HasPrefix(line, "https://") {
				t.Errorf("%s: the text has a line of %d characters: %q", m.Subject, len(line), line)
			}
		}
		for _, want := range []string{`<html lang="en"`, `name="color-scheme"`, "prefers-color-scheme: dark"} {
			if !strings.Contains(m.HTML, want) {
				t.Errorf("%s: the HTML lacks %q", m.Subject, want)
			}
		}
		for _, never := range []string{"<img", "<script", "<link", "url(", "@import", "<table"} {
			if strings.Contains(m.HTML, never) {
				t.Errorf("%s: the HTML has %q", m.Subject, never)
			}
		}
	}
	for part, content := range map[string]string{"text": k.messages[0].Text, "html": k.messages[0].HTML} {
		if !strings.Contains(content, "24 hours") {
			t.Errorf("%s does not say how long the link is valid", part)
		}
	}
}

func TestRepeatIsTheSameMailButForItsDate(t *testing.T) {
	m, again := testMessage(t), testMessage(t)
	date := time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
	first, err := compose(m, date)
	if err != nil {
		t.Fatal(err)
	}
	second, err := compose(again, date.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	later := strings.Replace(string(first.raw), "12:00:00", "13:00:00", 1)
	if later == string(first.raw) || later != string(second.raw) {
		t.Errorf("the repeat differs in more than its date:\n%s\n%s", first.raw, second.raw)
	}
}

func TestHTMLIsEscaped(t *testing.T) {
	var k kept
	p := newTestPost(t, &k)
	link := testURL + `/verify?token=a&b='><script>alert(1)</script>`
	if err := p.Verification(t.Context(), testTo, link, testEvent); !errors.Is(err, errLink) {
		t.Fatalf("a link with angle brackets: %v", err)
	}
	link = testURL + `/verify?token=a&lt;script&gt;'onload='x`
	if err := p.Verification(t.Context(), testTo, link, testEvent); err != nil {
		t.Fatal(err)
	}
	html := k.messages[0].HTML
	if strings.Contains(html, "a&lt;script") || strings.Contains(html, "'onload") ||
		!strings.Contains(html, "token=a&amp;lt;script&amp;gt;&#39;onload") {
		t.Errorf("not escaped:\n%s", html)
	}
	if !strings.Contains(k.messages[0].Text, link) {
		t.Error("the text does not have the link as it is")
	}
}

func TestVerificationRefusesLinksThatLeadElsewhere(t *testing.T) {
	for _, link := range []string{
		"", "/verify?token=x", "https://evil.example/verify", "http://post.example.com/verify",
		"https://post.example.com@evil.example/verify", "https://a:b@post.example.com/verify",
		"https://post.example.com.evil.example/", "javascript:alert(1)", testLink + "\r\nBcc: eve@example.net",
		testLink + " ", testURL + "/" + strings.Repeat("a", linkBytesMax),
	} {
		var k kept
		err := newTestPost(t, &k).Verification(t.Context(), testTo, link, testEvent)
		if !errors.Is(err, errLink) || len(k.messages) != 0 {
			t.Errorf("%.60q: %v, %d sent", link, err, len(k.messages))
		}
		if err != nil && link != "" && strings.Contains(err.Error(), link) {
			t.Errorf("%.60q: the error holds the link", link)
		}
	}
}

func TestPostRefusesKeysThatAreNone(t *testing.T) {
	for _, id := range []string{"", "a b", "a@b", "a>\r\nBcc: x", strings.Repeat("a", 65), "ä"} {
		var k kept
		if err := newTestPost(t, &k).Welcome(t.Context(), testTo, id); !errors.Is(err, errKey) || len(k.messages) != 0 {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestSenderAndMessageIDHostFollowThePublicURL(t *testing.T) {
	tests := []struct{ publicURL, from, wantFrom, wantHost string }{
		{"https://example.com", "", "postbus <no-reply@example.com>", "example.com"},
		{"https://Example.com:8443/base", "", "postbus <no-reply@example.com>", "example.com"},
		{"https://bücher.example", "", "postbus <no-reply@xn--bcher-kva.example>", "xn--bcher-kva.example"},
		{"http://localhost:8080", "", "postbus <no-reply@postbus.localhost>", "localhost"},
		{"http://127.0.0.1:8080", "", "postbus <no-reply@postbus.localhost>", "127.0.0.1"},
		{"http://[::1]:8080", "", "postbus <no-reply@postbus.localhost>", "[::1]"},
		{"http://app:8080", "", "postbus <no-reply@postbus.localhost>", "app"},
		{"https://example.com", "The Post <hi@example.net>", "The Post <hi@example.net>", "example.com"},
	}
	for _, test := range tests {
		var k kept
		p, err := NewPost(&k, test.publicURL, WithFrom(test.from))
		if err != nil {
			t.Errorf("%s: %v", test.publicURL, err)
			continue
		}
		if err := p.Welcome(t.Context(), testTo, "e1"); err != nil {
			t.Fatal(err)
		}
		m := k.messages[0]
		if m.From != test.wantFrom || m.ID != "e1.welcome@"+test.wantHost {
			t.Errorf("%s: from %q, id %q", test.publicURL, m.From, m.ID)
		}
		if mail, err := compose(m, time.Now()); err != nil {
			t.Errorf("%s: compose: %v", test.publicURL, err)
		} else if parsed, err := parseMail(strings.NewReader(string(mail.raw))); err != nil || parsed.MessageID != m.ID {
			t.Errorf("%s: the mail does not read back: %v, %q", test.publicURL, err, parsed.MessageID)
		}
		if from, err := DefaultFrom(test.publicURL); test.from == "" && (err != nil || from != test.wantFrom) {
			t.Errorf("%s: DefaultFrom %q, %v", test.publicURL, from, err)
		}
	}
}

func TestNewPostRefusesSettingsThatAreWrong(t *testing.T) {
	for _, publicURL := range []string{"", "example.com", "ftp://example.com", "https://", "https://u:p@example.com",
		"https://example.com/?a=b", "https://example.com/#a", "https://a b.example", "https://-.example", "::"} {
		if _, err := NewPost(&kept{}, publicURL); !errors.Is(err, errPublicURL) {
			t.Errorf("%q: %v", publicURL, err)
		}
		if _, err := DefaultFrom(publicURL); !errors.Is(err, errPublicURL) {
			t.Errorf("DefaultFrom(%q): %v", publicURL, err)
		}
	}
	for _, from := range []string{"postbus", "a@localhost", "<>", "a@b.example, c@d.example", "a@b.example\r\nBcc: x@y.example",
		"\"a\r\nb\" <a@b.example>", "\"a b\"@c.example", "ä@c.example", "=?utf-8?q?a=0D=0AB?= <a@b.example>"} {
		if _, err := NewPost(&kept{}, testURL, WithFrom(from)); !errors.Is(err, errFrom) {
			t.Errorf("from %q: %v", from, err)
		}
	}
}
