package mail

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestRecipientsThatAreAddresses(t *testing.T) {
	tests := []struct {
		in, want string
		needUTF8 bool
	}{
		{"ada@example.org", "ada@example.org", false},
		{"Ada.Lovelace+tag@Example.ORG", "Ada.Lovelace+tag@example.org", false},
		{"o'neil/x=y@example.org", "o'neil/x=y@example.org", false},
		{"ada@bücher.example", "ada@xn--bcher-kva.example", false},
		{"ada@例え.テスト", "ada@xn--r8jz45g.xn--zckzah", false},
		{"ada@xn--bcher-kva.example", "ada@xn--bcher-kva.example", false},
		{"dörte@example.org", "dörte@example.org", true},
		{"用户@例え.テスト", "用户@xn--r8jz45g.xn--zckzah", true},
		{strings.Repeat("a", 64) + "@example.org", strings.Repeat("a", 64) + "@example.org", false},
	}
	for _, test := range tests {
		got, err := parseRecipient(test.in)
		if err != nil || got.address != test.want || got.needUTF8 != test.needUTF8 {
			t.Errorf("%q: %+v, %v", test.in, got, err)
		}
	}
}

// hostileRecipients are the ways to say more than an address. The first is CVE-2025-59937.
var hostileRecipients = []string{
	`"toni.tester@example.com> ORCPT=admin@admin.com"@example.com`,
	`"a@x> ORCPT=b@y"@z.example`,
	"ada@example.org\r\nBcc: eve@example.net",
	"ada@example.org\nRCPT TO:<eve@example.net>",
	"ada\r\n@example.org",
	"ada@example.org\r",
	"ada@exam\x00ple.org",
	"ada\x00@example.org",
	"ada@example.org> NOTIFY=SUCCESS",
	"<ada@example.org>",
	"Ada <ada@example.org>",
	"ada@example.org, eve@example.net",
	"ada@example.org;eve@example.net",
	"ada@example.org eve@example.net",
	"ada(comment)@example.org",
	`ada\@example.org`,
	`"ada"@example.org`,
	"@relay.example:ada@example.org",
	"ada@relay.example@example.org",
	"ada@[127.0.0.1]", "ada@127.0.0.1", "ada@[IPv6:::1]",
	"", "@", "ada", "ada@", "@example.org", "ada@localhost", "ada@.example", "ada@example.", "ada@ex..ample",
	".ada@example.org", "ada.@example.org", "a..da@example.org", "ada@-a.example", "ada@a-.example",
	"ada@b\u00fccher\u2028.example", "ada\u0085@example.org", "ada\u200b@example.org", "ada@BÜCHER.example",
	"ada@example\u3002org", "ada\xff@example.org", "ada@\xff.example",
	strings.Repeat("a", 65) + "@example.org",
	"a@" + strings.Repeat("b", 64) + ".example",
	"a@" + strings.Repeat("ü", 60) + ".example",
	"a@" + strings.Repeat("abcdefg.", 31) + "example",
}

func TestHostileRecipientsAreRefused(t *testing.T) {
	for _, s := range hostileRecipients {
		got, err := parseRecipient(s)
		if !errors.Is(err, ErrRecipient) || !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %+v, %v", s, got, err)
			continue
		}
		if len(s) > 6 && strings.Contains(err.Error(), s) {
			t.Errorf("%q: the error holds the input", s)
		}
	}
}

func TestComposeRefusesMessagesThatBreakHeaders(t *testing.T) {
	tests := map[string]struct {
		change func(*Message)
		want   error
	}{
		"recipient":     {func(m *Message) { m.To = "a@b.example\r\nBcc: x@y.example" }, ErrRecipient},
		"sender":        {func(m *Message) { m.From = "a@b.example\r\nBcc: x@y.example" }, errFrom},
		"no sender":     {func(m *Message) { m.From = "" }, errFrom},
		"id":            {func(m *Message) { m.ID = "a@b>\r\nBcc: x@y.example" }, errMessageID},
		"no id":         {func(m *Message) { m.ID = "" }, errMessageID},
		"subject":       {func(m *Message) { m.Subject = "Hi\r\nBcc: x@y.example" }, errSubject},
		"no subject":    {func(m *Message) { m.Subject = "" }, errSubject},
		"long, subject": {func(m *Message) { m.Subject = strings.Repeat("a", subjectBytesMax+1) }, errSubject},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := testMessage(t)
			test.change(&m)
			if _, err := compose(m, time.Now()); !errors.Is(err, test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// The samples of RFC 3492, section 7.1, that DNS labels can be, and some of today.
func TestPunycode(t *testing.T) {
	tests := map[string]string{
		"ليهمابتكلموشعربي؟":                        "egbpdaj6bu4bxfgehfvwxn",
		"他们为什么不说中文":                                "ihqwcrb4cv8a8dqg056pqjye",
		"почемужеонинеговорятпорусски":             "b1abfaaepdrnnbgefbadotcwatmq2g4l",
		"porquénopuedensimplementehablarenespañol": "porqunopuedensimplementehablarenespaol-fmd56a",
		"3年b組金八先生":                                 "3b-ww4c5e180e575a65lsy2b",
		"bücher":                                   "bcher-kva",
		"münchen":                                  "mnchen-3ya",
		"straße":                                   "strae-oqa",
		"☃":                                        "n3h",
		"💌":                                        "rr8h",
	}
	for in, want := range tests {
		if got := punycode(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzRecipient(f *testing.F) {
	for _, s := range hostileRecipients {
		f.Add(s)
	}
	f.Add("ada@example.org")
	f.Add("用户@例え.テスト")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseRecipient(s)
		if err != nil {
			if !errors.Is(err, ErrRecipient) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if strings.ContainsAny(got.address, "\r\n\x00<>\"\\ ,;:()[]") || strings.Count(got.address, "@") != 1 {
			t.Fatalf("%q became %q", s, got.address)
		}
		again, err := parseRecipient(got.address)
		if err != nil || again != got {
			t.Fatalf("%q became %q, which becomes %q, %v", s, got.address, again.address, err)
		}
	})
}
