package mail

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of an address in bytes, from RFC 5321 and RFC 1035.
const (
	localPartBytesMax = 64
	domainBytesMax    = 253
	labelBytesMax     = 63
	addressBytesMax   = 254
)

// recipient is an address in the form that goes on the wire: its domain in punycode, nothing in it that could end an
// SMTP command's argument or a header.
type recipient struct {
	address  string
	needUTF8 bool // the local part has characters beyond ASCII, so the server must know SMTPUTF8
}

// parseRecipient accepts what a plain address can be and refuses the rest: a list of what is allowed cannot forget a
// character. Quoted local parts and address literals are not allowed. The error never holds the input.
func parseRecipient(s string) (recipient, error) {
	local, domain, found := strings.Cut(s, "@")
	if !found || !validLocalPart(local) {
		return recipient{}, errBadRecipient()
	}
	domain, ok := asciiDomain(domain)
	if !ok || !strings.Contains(domain, ".") || len(local)+1+len(domain) > addressBytesMax {
		return recipient{}, errBadRecipient()
	}
	if _, err := netip.ParseAddr(domain); err == nil {
		return recipient{}, errBadRecipient()
	}
	return recipient{address: local + "@" + domain, needUTF8: !isASCII(local)}, nil
}

func errBadRecipient() error { return fmt.Errorf("%w: %w", ErrRefused, ErrRecipient) }

func validLocalPart(local string) bool {
	if local == "" || len(local) > localPartBytesMax || !utf8.ValidString(local) {
		return false
	}
	if strings.HasPrefix(local, ".") || strings.HasSuffix(local, ".") || strings.Contains(local, "..") {
		return false
	}
	for _, r := range local {
		switch {
		case r == '.', isLetterOrDigit(r), strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r):
		case r >= utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsDigit(r)):
		default:
			return false
		}
	}
	return true
}

// asciiDomain gives a domain's ASCII form, in lower case, with every label a valid one. Labels beyond ASCII have to be
// mapped already: an upper-case letter in one is a sign that nobody did, and is refused rather than guessed at.
func asciiDomain(domain string) (string, bool) {
	if len(domain) > domainBytesMax || !utf8.ValidString(domain) {
		return "", false
	}
	labels := strings.Split(domain, ".")
	for i, label := range labels {
		ascii, ok := asciiLabel(label)
		if !ok {
			return "", false
		}
		labels[i] = ascii
	}
	ascii := strings.Join(labels, ".")
	return ascii, len(ascii) <= domainBytesMax
}

func asciiLabel(label string) (string, bool) {
	if label == "" || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
		return "", false
	}
	for _, r := range label {
		switch {
		case r == '-', isLetterOrDigit(r):
		case r >= utf8.RuneSelf && unicode.ToLower(r) == r &&
			(unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsDigit(r)):
		default:
			return "", false
		}
	}
	label = strings.ToLower(label)
	if !isASCII(label) {
		label = "xn--" + punycode(label)
	}
	return label, len(label) <= labelBytesMax
}

func isLetterOrDigit(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
