package user

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestParseAddressAccepts(t *testing.T) {
	const signs = "!#$%&'*+-/=?^_`{|}~"
	local64, label63 := strings.Repeat("a", 64), strings.Repeat("b", 63)
	tests := []struct {
		name, in, want, canonical string
	}{
		{"plain", "anna@example.com", "anna@example.com", "anna@example.com"},
		{"case", "Anna.Smit@Example.COM", "Anna.Smit@example.com", "anna.smit@example.com"},
		{"white space around", " \t\r\n\u00a0anna@example.com\u2003\r\n", "anna@example.com", "anna@example.com"},
		{"tag", "anna+post@example.com", "anna+post@example.com", "anna+post@example.com"},
		{"every sign of atext", signs + "@example.com", signs + "@example.com", signs + "@example.com"},
		{"digits", "007@123.example", "007@123.example", "007@123.example"},
		{"one letter each", "a@b.c", "a@b.c", "a@b.c"},
		{"sub-domain", "a@mail.eu.example.com", "a@mail.eu.example.com", "a@mail.eu.example.com"},
		{"hyphens", "a@x-y.example-1.com", "a@x-y.example-1.com", "a@x-y.example-1.com"},
		{"international domain", "Anna@Bücher.example", "Anna@xn--bcher-kva.example", "anna@xn--bcher-kva.example"},
		{"punycode as typed", "anna@XN--Bcher-KVA.example", "anna@xn--bcher-kva.example", "anna@xn--bcher-kva.example"},
		{"sharp s is kept", "a@straße.example", "a@xn--strae-oqa.example", "a@xn--strae-oqa.example"},
		{"ideographic full stop", "a@例え。jp", "a@xn--r8jz45g.jp", "a@xn--r8jz45g.jp"},
		{"full-width", "a@ｅｘａｍｐｌｅ．com", "a@example.com", "a@example.com"},
		{"right to left", "a@דוגמה.example", "a@xn--6dbbec0c.example", "a@xn--6dbbec0c.example"},
		{"international top-level domain", "a@пример.рф", "a@xn--e1afmkfd.xn--p1ai", "a@xn--e1afmkfd.xn--p1ai"},
		{"local part of 64", local64 + "@example.com", local64 + "@example.com", local64 + "@example.com"},
		{"label of 63", "a@" + label63 + ".com", "a@" + label63 + ".com", "a@" + label63 + ".com"},
		{"254 characters", addressOf(254), addressOf(254), addressOf(254)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := ParseAddress(tt.in)
			if err != nil {
				t.Fatalf("refused: %v", err)
			}
			if a.String() != tt.want || a.Canonical() != tt.canonical {
				t.Errorf("got %q and %q, want %q and %q", a.String(), a.Canonical(), tt.want, tt.canonical)
			}
		})
	}
}

func TestParseAddressRefusesText(t *testing.T) {
	testRefused(t, []refused{
		{"nothing", "", reasonEmpty},
		{"white space only", " \t\r\n", reasonEmpty},
		{"header injection", "anna@example.com\r\nBcc: eve@example.net", reasonCharacters},
		{"header injection in the local part", "anna\r\nBcc:eve@example.com", reasonCharacters},
		{"bare line feed", "anna@exa\nmple.com", reasonCharacters},
		{"NUL", "anna\x00@example.com", reasonCharacters},
		{"NUL at the end", "anna@example.com\x00", reasonCharacters},
		{"DEL", "anna\x7f@example.com", reasonCharacters},
		{"C1 control", "anna@exam\u0080ple.com", reasonCharacters},
		{"invalid UTF-8", "anna@exam\xffple.com", reasonCharacters},
		{"SMTP parameter in quotes", `"a@x> ORCPT=b@y"@z`, reasonQuotes},
		{"quoted local part", `"anna smit"@example.com`, reasonQuotes},
		{"backslash", `anna\@example.com`, reasonQuotes},
		{"name and address", "Anna Smit <anna@example.com>", reasonAngles},
		{"angle brackets", "<anna@example.com>", reasonAngles},
		{"SMTP parameter", "a@x> ORCPT=b@y", reasonAngles},
		{"comment", "anna(work)@example.com", reasonComment},
		{"comment in the domain", "anna@example.com(work)", reasonComment},
		{"inner space", "anna smit@example.com", reasonSpace},
		{"inner no-break space", "anna@example\u00a0.com", reasonSpace},
		{"line separator", "anna@example\u2028.com", reasonSpace},
		{"space after the @", "anna@ example.com", reasonSpace},
		{"no @", "anna.example.com", reasonNoAt},
		{"two @", "anna@home@example.com", reasonManyAt},
		{"two addresses", "a@example.com,b@example.com", reasonManyAt},
		{"full-width @", "anna＠example.com", reasonNoAt},
		{"255 characters", addressOf(255), reasonLong},
		{"255 characters in punycode only", addressOf(240) + ".bücher.example", reasonLong},
		{"a megabyte", strings.Repeat("a", 1<<20) + "@example.com", reasonLong},
	})
}

func TestParseAddressRefusesLocalPart(t *testing.T) {
	testRefused(t, []refused{
		{"no local part", "@example.com", reasonLocalEmpty},
		{"local part of 65", strings.Repeat("a", 65) + "@example.com", reasonLocalLong},
		{"leading dot", ".anna@example.com", reasonLocalDots},
		{"trailing dot in the local part", "anna.@example.com", reasonLocalDots},
		{"double dot", "anna..smit@example.com", reasonLocalDots},
		{"accents", "jérôme@example.com", reasonLocalForeign},
		{"look-alike letter", "аnna@example.com", reasonLocalForeign},
		{"zero width space", "\u200banna@example.com", reasonLocalForeign},
		{"comma", "anna,smit@example.com", reasonLocalSign},
		{"colon", "mailto:anna@example.com", reasonLocalSign},
		{"semicolon", "anna;@example.com", reasonLocalSign},
	})
}

func TestParseAddressRefusesDomain(t *testing.T) {
	testRefused(t, []refused{
		{"no domain", "anna@", reasonDomainEmpty},
		{"one label", "anna@localhost", reasonDomainSingle},
		{"trailing dot", "anna@example.com.", reasonDomainDot},
		{"trailing ideographic dot", "anna@example.com。", reasonDomainDot},
		{"leading dot in the domain", "anna@.example.com", reasonDomainDots},
		{"double dot in the domain", "anna@example..com", reasonDomainDots},
		{"label that maps to nothing", "anna@xn--.com", reasonDomainDots},
		{"IPv4 literal", "anna@[127.0.0.1]", reasonDomainLiteral},
		{"IPv6 literal", "anna@[IPv6:::1]", reasonDomainLiteral},
		{"port", "anna@example.com:25", reasonDomainLiteral},
		{"IPv4 address", "anna@127.0.0.1", reasonDomainLiteral},
		{"IPv4 address in full-width digits", "anna@１２７.０.０.１", reasonDomainLiteral},
		{"numeric top-level domain", "anna@example.123", reasonDomainLiteral},
		{"label of 64", "a@" + strings.Repeat("b", 64) + ".com", reasonDomainLabel},
		{"underscore", "anna@ex_ample.com", reasonDomainName},
		{"leading hyphen", "anna@-example.com", reasonDomainName},
		{"trailing hyphen", "anna@example-.com", reasonDomainName},
		{"percent", "anna@exam%70le.com", reasonDomainName},
		{"right-to-left override", "anna@exam\u202eple.com", reasonDomainName},
		{"broken punycode", "anna@xn--a.com", reasonDomainName},
		{"punycode of ASCII", "anna@xn--abc-.com", reasonDomainName},
		{"mixed directions", "anna@1א.com", reasonDomainName},
		{"full-width @", "a@b＠c.example", reasonDomainName},
	})
}

// refused is an input with the reason that it is refused for.
type refused struct{ name, in, reason string }

func testRefused(t *testing.T, tests []refused) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := ParseAddress(tt.in)
			var addressErr *AddressError
			if !errors.As(err, &addressErr) {
				t.Fatalf("got %q and error %v, want an AddressError", a, err)
			}
			if addressErr.Reason != tt.reason {
				t.Errorf("reason %q, want %q", addressErr.Reason, tt.reason)
			}
			if err.Error() != "refused email address: "+tt.reason {
				t.Errorf("the error says %q", err)
			}
			if a != (Address{}) || a.String() != "" || a.Canonical() != "" {
				t.Errorf("a refused address has the forms %q and %q", a.String(), a.Canonical())
			}
		})
	}
}

// The key is what makes an address unique: however the same mailbox is typed, it is one user.
func TestCanonicalJoins(t *testing.T) {
	for _, same := range [][]string{
		{"anna@example.com", "ANNA@EXAMPLE.COM", " Anna@Example.com "},
		{"a@bücher.example", "A@BÜCHER.example", "a@bu\u0308cher.example", "a@XN--Bcher-KVA.example"},
		{"a@example.com", "a@ｅｘａｍｐｌｅ.com", "a@example。com", "a@exam\u00adple.com", "a@example.com\u200b"},
		{"a@ﬁn.example", "a@fin.example"},
	} {
		first := parse(t, same[0])
		for _, other := range same[1:] {
			if got := parse(t, other).Canonical(); got != first.Canonical() {
				t.Errorf("%q has the key %q, %q has %q", other, got, same[0], first.Canonical())
			}
		}
	}
	for _, pair := range [][2]string{
		{"a@straße.example", "a@strasse.example"},
		{"a.b@example.com", "ab@example.com"},
		{"a+x@example.com", "a@example.com"},
		{"a@example.com", "a@example.org"},
	} {
		if parse(t, pair[0]).Canonical() == parse(t, pair[1]).Canonical() {
			t.Errorf("%q and %q have one key", pair[0], pair[1])
		}
	}
}

func TestAddressStaysOutOfLogs(t *testing.T) {
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "to", parse(t, "anna@example.com"))
	if strings.Contains(out.String(), "anna") || !strings.Contains(out.String(), "[address]") {
		t.Errorf("logged %s", out.String())
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, seed := range []string{
		"anna@example.com", " Anna.Smit+x@Bücher.example ", "a@例え。jp", `"a@x> ORCPT=b@y"@z`, "a@b.c\r\nBcc: d@e.f",
		"a@xn--bcher-kva.example", "a@xn--.com", "a@1.2.3.4", "a@[::1]", "a@דוגמה.example", "a@exam\u00adple.com", "@", "",
		"a@xn--a.com", "a@\u200d.com", "a@b..c", "a@ﬁn.example", "a@ＡＢ．c", addressOf(254), addressOf(255),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			var refused *AddressError
			if !errors.As(err, &refused) || refused.Reason == "" {
				t.Fatalf("error without a reason: %v", err)
			}
			return
		}
		for _, form := range []string{a.String(), a.Canonical()} {
			if len(form) > addressBytesMax || strings.Count(form, "@") != 1 {
				t.Errorf("%q is no address", form)
			}
			unprintable := func(r rune) bool { return r <= ' ' || r >= 0x7f }
			if strings.ContainsFunc(form, unprintable) || strings.ContainsAny(form, `<>"()\,;:[]`) {
				t.Errorf("%q has a character that could end an SMTP command or a header", form)
			}
		}
		again, err := ParseAddress(a.String())
		if err != nil || again != a {
			t.Errorf("%q parses again to %q, %v", a, again, err)
		}
		key, err := ParseAddress(a.Canonical())
		if err != nil || key.Canonical() != a.Canonical() || key.String() != a.Canonical() {
			t.Errorf("the key %q parses to the key %q, %v", a.Canonical(), key.Canonical(), err)
		}
	})
}

func parse(t *testing.T, s string) Address {
	t.Helper()
	a, err := ParseAddress(s)
	if err != nil {
		t.Fatalf("parse %q: %v", s, err)
	}
	return a
}

// addressOf makes a valid address of n characters, or the shortest invalid one when n is above the limit.
func addressOf(n int) string {
	a := strings.Repeat("a", localBytesMax) + "@"
	for n-len(a) > labelBytesMax {
		a += strings.Repeat("b", 60) + "."
	}
	return a + strings.Repeat("c", n-len(a))
}
