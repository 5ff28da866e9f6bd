package telemetry

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	textBytesMax  = 1024 // of a message, a string or an error in a log line
	inputBytesMax = 8192 // of a text that is looked at; what comes behind is not read at all
	nameBytesMax  = 64   // of the name of a dropped attribute
	stackCallsMax = 24   // of a stack
	tokenCharsMin = 32   // a run of base64url characters this long is taken for a token

	harmlessRunMax = 16 // shorter runs than this are no credentials of any kind
)

var (
	uuidPattern = regexp.MustCompile(`[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`)

	// The message of a Postgres error may quote what was inserted; its code may not. Greedy on purpose.
	// The severity is in the server's language.
	postgresPattern = regexp.MustCompile(`[\p{Lu}\p{Lo}]{2,}: .*\(SQLSTATE ([0-9A-Z]{5})\)`)

	// password=…, SECRET_KEY = '…', and the same as members of JSON.
	assignPattern = regexp.MustCompile(`(?i)([a-z_-]*(?:password|passwd|secret|token|api_?key)[a-z_-]*)\s*=\s*` +
		`(?:'[^']*'?|"[^"]*"?|[^\s&]+)`)
	memberPattern = regexp.MustCompile(`(?i)("[^"]*(?:password|passwd|secret|token|api_?key)[^"]*")\s*:\s*"(?:[^"\\]|\\.)*"?`)
	bearerPattern = regexp.MustCompile(`(?i)\b(bearer|basic|plain)\s+[a-z0-9._~+/-]{16,}=*`)

	urlPattern  = regexp.MustCompile("(?i)[a-z][a-z0-9+.-]*://[^\\s\"'`<>]*")
	hostPattern = regexp.MustCompile(`^(?:[A-Za-z0-9._-]*|\[[0-9a-fA-F:.]+\])(?::[0-9]*)?$`)

	// Anything around an at sign, in whichever of its forms. Deliberately wider than what an address may be.
	addressPattern = regexp.MustCompile(`[^\s@<>()",;:\[\]\\]*(?:(?:@|%40|＠|﹫)[^\s@<>()",;:]*)+`)

	base64Pattern = regexp.MustCompile(`[A-Za-z0-9+/]{20,}={1,2}`)
	jwtPattern    = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]+)+`)
	tokenPattern  = regexp.MustCompile(`[A-Za-z0-9_-]{32,}`)
)

// scrub returns the text as it may stand in a log line. What it returns has no at sign, no control character, no
// userinfo or query of a URL and no run that looks like a token; is valid UTF-8; and has at most textBytesMax bytes.
// UUIDs and identifiers in lower case stay.
func scrub(s string) string {
	if harmless(s) {
		return s
	}
	s = clean(head(s))
	s = postgresPattern.ReplaceAllString(s, "SQLSTATE $1")
	s = memberPattern.ReplaceAllString(s, `$1:"[redacted]"`)
	s = assignPattern.ReplaceAllString(s, "$1=[redacted]")
	s = bearerPattern.ReplaceAllString(s, "$1 [redacted]")
	s = urlPattern.ReplaceAllStringFunc(s, scrubURL)
	s = addressPattern.ReplaceAllString(s, "[address]")
	s = base64Pattern.ReplaceAllString(s, "[token]")
	s = jwtPattern.ReplaceAllString(s, "[token]")
	s = tokenPattern.ReplaceAllStringFunc(s, scrubRun)
	return cut(s)
}

// harmless is the short way out for what most texts are: a UUID, or plain words without a long run of characters. What
// it lets through, the patterns would leave alone.
func harmless(s string) bool {
	if len(s) == 36 && uuidPattern.MatchString(s) {
		return true
	}
	run := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
			if run++; run >= harmlessRunMax {
				return false
			}
		case c == ' ', c == '.', c == ',', c == ':', c == ';':
			run = 0
		default:
			return false
		}
	}
	return len(s) <= textBytesMax
}

// head bounds the work. It ends between two words, because half a token would not be recognised as one.
func head(s string) string {
	if len(s) <= inputBytesMax {
		return s
	}
	s = s[:inputBytesMax]
	return s[:strings.LastIndexAny(s, " \t\r\n")+1] + "…"
}

// clean makes one line of it: line ends become blanks; other control and formatting characters, which could hide text,
// turn its direction or drive a terminal, go.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\r', r == '\t', r == '\u2028', r == '\u2029':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r):
			return -1
		default:
			return r
		}
	}, strings.ToValidUTF8(s, "\ufffd"))
}

// scrubURL leaves scheme, host and path. If it is not certain where the userinfo ends (a password may hold any
// character if somebody forgot to encode it), nothing but the scheme stays.
func scrubURL(raw string) string {
	scheme, rest, _ := strings.Cut(raw, "://")
	end := strings.IndexAny(rest, "/?#\\")
	if end < 0 {
		end = len(rest)
	}
	host, rest := rest[:end], rest[end:]
	host = host[strings.LastIndexByte(host, '@')+1:]
	if strings.Contains(rest, "@") || !hostPattern.MatchString(host) {
		return scheme + "://[redacted]"
	}
	if query := strings.IndexAny(rest, "?#"); query >= 0 {
		rest = rest[:query] + "?[redacted]"
	}
	return scheme + "://" + host + rest
}

// scrubRun decides about a long run of base64url characters. It stays if all of it but UUIDs is short or reads like an
// identifier: a random token has capitals or digits.
func scrubRun(run string) string {
	for _, part := range uuidPattern.Split(run, -1) {
		if len(part) >= tokenCharsMin && strings.ContainsAny(part, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") {
			return "[token]"
		}
	}
	return run
}

func cut(s string) string {
	if len(s) <= textBytesMax {
		return s
	}
	s = s[:textBytesMax-len("…")]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}
