package job

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds on what is kept of a failure; what is longer is cut.
const (
	errorBytesMax = 2 << 10
	stackBytesMax = 8 << 10
	classBytesMax = 60
)

// Failure is one failed run of a job, as it is kept.
type Failure struct {
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"`
	Class   string    `json:"class"`
	Error   string    `json:"error"`
	Stack   string    `json:"stack,omitempty"`
	Version string    `json:"version,omitempty"` // of the program
}

// Policy says how often a job is tried, and when. Its zero value is the default policy, which goes on for about three days.
type Policy struct {
	// Attempts is how often the job is run at most. Default: 25.
	Attempts int
	// WaitMin and WaitMax bound the wait before the next attempt. It doubles each time, and up to half of it is taken off at
	// random. Default: 1 s and 6 h.
	WaitMin, WaitMax time.Duration
	// Timeout is how long one run may take; then its context ends. Default: without end.
	Timeout time.Duration
}

// Next says how long to wait after the attempt, or that there is not to be another.
func (p Policy) Next(attempt int) (wait time.Duration, again bool) {
	attempts := p.Attempts
	if attempts == 0 {
		attempts = 25
	}
	return p.wait(attempt), attempt < attempts
}

func (p Policy) wait(attempt int) time.Duration {
	shortest, longest := p.WaitMin, p.WaitMax
	if shortest == 0 {
		shortest = time.Second
	}
	if longest == 0 {
		longest = max(6*time.Hour, shortest)
	}
	wait := longest
	if shift := attempt - 1; shift >= 0 && shift < 30 && shortest < longest>>shift { // not shortest<<shift, which overflows
		wait = shortest << shift
	}
	return wait - rand.N(wait/2+1) //nolint:gosec // jitter needs no secrecy
}

func (p Policy) validate() error {
	if p.Attempts < 0 || p.WaitMin < 0 || p.WaitMax < 0 || p.Timeout < 0 || (p.WaitMax > 0 && p.WaitMax < p.WaitMin) {
		return ErrShape
	}
	return nil
}

// What an error may say of itself. Whoever raises it need not know this package.
type (
	nexter interface {
		Next(attempt int) (wait time.Duration, again bool)
	}
	classer interface{ Class() string }
	stacker interface{ Stack() string }
)

// judge says what becomes of a job whose run has failed. The class is that of an error which has none itself.
func judge(err error, class string, policy Policy, attempt int, version string) outcome {
	var next nexter = policy
	_ = errors.As(err, &next) // the policy stays where the error has none
	var c classer
	if errors.As(err, &c) {
		class = c.Class()
	}
	class = cut(cmp.Or(class, "error"), classBytesMax)
	failure := Failure{Attempt: attempt, At: time.Now().UTC(), Class: class, Error: cut(err.Error(), errorBytesMax), Version: version}
	var s stacker
	if errors.As(err, &s) {
		failure.Stack = cut(s.Stack(), stackBytesMax)
	}
	o := outcome{verdict: verdictDead}
	if wait, again := next.Next(attempt); again {
		o.verdict, o.wait = verdictRetry, max(wait, 0)
	}
	fingerprint := fingerprintOf(class, failure.Error)
	o.fingerprint = &fingerprint
	if encoded, err := json.Marshal(failure); err == nil { // it is made of text and numbers
		text := string(encoded)
		o.failure = &text
	}
	return o
}

// variable is what differs between errors that are the same: ids and numbers.
var variable = regexp.MustCompile(`[0-9a-fA-F-]*[0-9][0-9a-fA-F-]*`)

// fingerprintOf is the same for errors of a class whose texts differ in ids and numbers only.
func fingerprintOf(class, text string) string {
	sum := sha256.Sum256([]byte(class + "\x00" + variable.ReplaceAllString(text, "#")))
	return hex.EncodeToString(sum[:8])
}

// cut bounds a text, at the end of a character, and drops what Postgres does not take.
func cut(s string, bytesMax int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
	if len(s) <= bytesMax {
		return s
	}
	s = s[:bytesMax]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}
