package user

import (
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits of RFC 5321 (4.5.3.1) and RFC 1035 (2.3.4), in bytes of the form that goes over the wire.
const (
	addressBytesMax = 254
	localBytesMax   = 64
	labelBytesMax   = 63

	// inputBytesMax bounds the work on what was typed. Punycode is at times shorter than the UTF-8 that it stands for,
	// so this is wider than addressBytesMax; four bytes a character are the most that UTF-8 takes.
	inputBytesMax = 4 * addressBytesMax
)

// The sentences of AddressError. They are for the person at the keyboard: what is wrong, and what to do about it.
const (
	reasonEmpty         = "Please enter an email address."
	reasonLong          = "That email address is too long: it can have at most 254 characters."
	reasonCharacters    = "That email address contains line breaks or other characters that cannot be part of one."
	reasonSpace         = "An email address cannot contain spaces."
	reasonQuotes        = "An email address with quotation marks or backslashes is not supported here."
	reasonAngles        = "Please enter only the address, without a name and without < and >."
	reasonComment       = "An email address with a comment in parentheses is not supported here."
	reasonNoAt          = "An email address needs an @ in the middle, as in name@example.com."
	reasonManyAt        = "An email address can have only one @."
	reasonLocalEmpty    = "Something is missing before the @."
	reasonLocalLong     = "The part before the @ is too long: it can have at most 64 characters."
	reasonLocalDots     = "The part before the @ cannot begin or end with a dot, nor have two dots in a row."
	reasonLocalForeign  = "The part before the @ can only have digits, a few signs, and the letters a to z without accents."
	reasonLocalSign     = "The part before the @ contains a sign that is not allowed there."
	reasonDomainEmpty   = "Something is missing after the @."
	reasonDomainLiteral = "The part after the @ must be a domain name, not an IP address."
	reasonDomainDot     = "The part after the @ cannot end with a dot."
	reasonDomainDots    = "The part after the @ cannot begin with a dot, nor have two dots in a row."
	reasonDomainSingle  = "The part after the @ needs a dot, as in example.com."
	reasonDomainLabel   = "The part after the @ is too long between two dots: at most 63 characters are allowed there."
	reasonDomainName    = "The part after the @ is not a valid domain name."
)

// domains maps a domain name as typed to what is looked up: UTS 46 for lookup, non-transitional (ß stays ß), NFC,
// STD3 rules (letters, digits and hyphens only), hyphen, joiner and bidi checks. It is safe for concurrent use.
var domains = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false))

// Address is an email address that mail can be sent to: printable ASCII without spaces, quotes, comments or angle
// brackets, at most 254 bytes, of the form dot-atom@domain. It is an immutable value and comparable; only ParseAddress
// makes one. The zero Address is no address, its forms are empty.
type Address struct {
	local  string // as typed
	domain string // punycode, lower-case
}

// ParseAddress reads an address as a person types it; white space around it is trimmed. The domain may be international
// in any normalisation or case. Whether the mailbox exists is not asked. The error is always an *AddressError.
//
// A trailing dot of the domain is refused, not stripped: SMTP does not allow it, and here it is a full stop
// that came along from a sentence more often than it is a root label.
func ParseAddress(s string) (Address, error) {
	s = strings.TrimSpace(s)
	if reason := refuseText(s); reason != "" {
		return Address{}, &AddressError{Reason: reason}
	}
	local, domain, found := strings.Cut(s, "@")
	if !found {
		return Address{}, &AddressError{Reason: reasonNoAt}
	}
	if strings.Contains(domain, "@") {
		return Address{}, &AddressError{Reason: reasonManyAt}
	}
	if reason := refuseLocal(local); reason != "" {
		return Address{}, &AddressError{Reason: reason}
	}
	ascii, reason := parseDomain(domain)
	if reason != "" {
		return Address{}, &AddressError{Reason: reason}
	}
	if len(local)+len("@")+len(ascii) > addressBytesMax {
		return Address{}, &AddressError{Reason: reasonLong}
	}
	return Address{local: local, domain: ascii}, nil
}

// String gives the form to deliver to: the local part as it was typed, since only its own server knows what case means
// in it, and the domain in punycode and lower case. It parses to the same Address.
func (a Address) String() string {
	if a == (Address{}) {
		return ""
	}
	return a.local + "@" + a.domain
}

// Canonical gives the key by which two addresses are the same: as String, with the local part in lower case. It is a
// key, not a place to deliver to.
func (a Address) Canonical() string { return strings.ToLower(a.String()) }

// LogValue keeps the address out of structured logs.
func (a Address) LogValue() slog.Value { return slog.StringValue("[address]") }

// refuseText judges what holds for the whole text, before anything takes it apart.
func refuseText(s string) string {
	switch {
	case s == "":
		return reasonEmpty
	case len(s) > inputBytesMax:
		return reasonLong
	case !utf8.ValidString(s), strings.ContainsFunc(s, unicode.IsControl):
		return reasonCharacters
	case strings.ContainsAny(s, `"\`):
		return reasonQuotes
	case strings.ContainsAny(s, "<>"):
		return reasonAngles
	case strings.ContainsAny(s, "()"):
		return reasonComment
	case strings.ContainsFunc(s, unicode.IsSpace):
		return reasonSpace
	}
	return ""
}

// refuseLocal judges the part before the @: a dot-atom of RFC 5321 in ASCII.
func refuseLocal(local string) string {
	switch {
	case local == "":
		return reasonLocalEmpty
	case strings.ContainsFunc(local, func(r rune) bool { return r > unicode.MaxASCII }):
		return reasonLocalForeign
	case len(local) > localBytesMax:
		return reasonLocalLong
	case strings.HasPrefix(local, "."), strings.HasSuffix(local, "."), strings.Contains(local, ".."):
		return reasonLocalDots
	}
	for i := range len(local) {
		if local[i] != '.' && !isAtomText(local[i]) {
			return reasonLocalSign
		}
	}
	return ""
}

// isAtomText reports whether c is atext of RFC 5321 (4.1.2, by RFC 5322 3.2.3).
func isAtomText(c byte) bool {
	return isLetterOrDigit(c) || strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

func isLetterOrDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || isDigit(c)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// parseDomain returns the domain in punycode and lower case, or the reason why it is none.
func parseDomain(domain string) (ascii, reason string) {
	if domain == "" {
		return "", reasonDomainEmpty
	}
	if strings.ContainsAny(domain, "[]:") {
		return "", reasonDomainLiteral
	}
	ascii, err := domains.ToASCII(domain)
	if err != nil {
		return "", reasonDomainName
	}
	// From here on only the result counts: the mapping knows more dots than one, and can leave a label empty.
	labels := strings.Split(ascii, ".")
	for i, label := range labels {
		last := i == len(labels)-1
		if reason := refuseLabel(label, last); reason != "" {
			return "", reason
		}
	}
	if len(labels) < 2 {
		return "", reasonDomainSingle
	}
	return ascii, ""
}

// refuseLabel judges one label of a mapped domain. idna has judged most of this; what an SMTP command is
// made of is checked here once more, so that it does not rest on the options of a library.
func refuseLabel(label string, last bool) string {
	if label == "" && last {
		return reasonDomainDot
	}
	if label == "" {
		return reasonDomainDots
	}
	if len(label) > labelBytesMax {
		return reasonDomainLabel
	}
	if label[0] == '-' || label[len(label)-1] == '-' {
		return reasonDomainName
	}
	digits := 0
	for i := range len(label) {
		if label[i] != '-' && !isLetterOrDigit(label[i]) {
			return reasonDomainName
		}
		if isDigit(label[i]) {
			digits++
		}
	}
	// No top-level domain is a number (RFC 3696, 2): this is an IP address, or means to pass for one.
	if last && digits == len(label) {
		return reasonDomainLiteral
	}
	return ""
}
