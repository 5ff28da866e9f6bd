package account

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"

	"github.com/google/uuid"
)

const (
	// derivation separates this use of the secret key from every other.
	derivation = "postbus/email-verification/v1\x00"

	// secretBytesMin is as much as the tokens carry: a shorter key would be the easier one to guess.
	secretBytesMin = 32

	// tokenTextBytes is the length of 32 bytes in base64url without padding.
	tokenTextBytes = 43
)

// What stands in the place of a token or a key wherever a value may be printed.
const (
	redactedToken  = "[token]"
	redactedSecret = "[secret]"
)

// Token is what a verification link carries: 256 bits that nobody can guess. It is a credential. Every way of printing
// it gives "[token]"; only Encode shows it.
//
// There are two ways around that which no method can close, both of them mistakes: fmt looks past the methods of an
// unexported field, so a struct that keeps a Token in one must not be printed; and so it does for %p, which vet refuses.
type Token [sha256.Size]byte

// ParseToken reads what Encode has written, and only that: 43 characters of base64url without padding or
// white space, whose unused bits are zero. Anything else is ErrTokenMalformed.
func ParseToken(s string) (Token, error) {
	if len(s) != tokenTextBytes {
		return Token{}, ErrTokenMalformed
	}
	// The decoder skips line breaks, and leaves the result too short then.
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(Token{}) {
		return Token{}, ErrTokenMalformed
	}
	return Token(b), nil
}

// Encode gives the token in the clear, for the link in the mail: 43 characters that need no escaping in a URL.
func (t Token) Encode() string { return base64.RawURLEncoding.EncodeToString(t[:]) }

// String returns "[token]".
func (Token) String() string { return redactedToken }

// GoString returns "[token]".
func (Token) GoString() string { return redactedToken }

// Format writes "[token]" for every verb and flag.
func (Token) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redactedToken) }

// LogValue returns "[token]".
func (Token) LogValue() slog.Value { return slog.StringValue(redactedToken) }

// MarshalText returns "[token]", and so does whatever encodes by it, such as JSON.
func (Token) MarshalText() ([]byte, error) { return []byte(redactedToken), nil }

// hash is the form that is stored and searched for. The token has 256 bits of its own, so a plain hash is enough, and a
// look-up by it gives a stopwatch nothing to work with.
func (t Token) hash() []byte {
	sum := sha256.Sum256(t[:])
	return sum[:]
}

// Tokens derives the tokens of verifications from the secret key. It is safe for concurrent use. Every way of printing
// it gives "[secret]". The zero Tokens has no key; New and NewNotifier refuse it.
type Tokens struct {
	// mac keeps the key out of sight of everything that prints a value, also one that looks into unexported fields.
	mac func(message []byte) Token
}

// NewTokens returns the Tokens of secret, of which it keeps a copy. New and NewNotifier return ErrSecretShort when secret
// has fewer than 32 bytes.
func NewTokens(secret []byte) Tokens {
	if len(secret) < secretBytesMin {
		return Tokens{}
	}
	key := append([]byte(nil), secret...)
	return Tokens{mac: func(message []byte) Token {
		h := hmac.New(sha256.New, key)
		h.Write(message) // never returns an error, by hash.Hash
		return Token(h.Sum(nil))
	}}
}

// For returns the token of a verification. It is the same at every call, which is what makes a repeated mail carry the
// same link. On the zero Tokens it panics.
func (t Tokens) For(verificationID uuid.UUID) Token {
	return t.mac(append([]byte(derivation), verificationID[:]...))
}

// String returns "[secret]".
func (Tokens) String() string { return redactedSecret }

// GoString returns "[secret]".
func (Tokens) GoString() string { return redactedSecret }

// Format writes "[secret]" for every verb and flag.
func (Tokens) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redactedSecret) }

// LogValue returns "[secret]".
func (Tokens) LogValue() slog.Value { return slog.StringValue(redactedSecret) }

// MarshalText returns "[secret]".
func (Tokens) MarshalText() ([]byte, error) { return []byte(redactedSecret), nil }

func (t Tokens) validate() error {
	if t.mac == nil {
		return ErrSecretShort
	}
	return nil
}
