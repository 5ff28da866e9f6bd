package account_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"

	"postbus/internal/account"
)

var verificationID = uuid.MustParse("0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")

// The derivation is durable: two programs of different versions have to make one link of one verification, and a link
// in a mailbox has to outlive an update.
func TestTokenDerivation(t *testing.T) {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte("postbus/email-verification/v1\x00"))
	h.Write(verificationID[:])
	token := account.NewTokens(secret).For(verificationID)
	if !bytes.Equal(token[:], h.Sum(nil)) {
		t.Error("the token is not the HMAC of the verification's id")
	}
	if got, want := token.Encode(), "07UC0tIt4naXGN_VpDwYs2kwlJqkUoDEV9--cj2fXBU"; got != want {
		t.Errorf("the token is %s, want %s", got, want)
	}
	if token != account.NewTokens(secret).For(verificationID) {
		t.Error("the token is another one the second time")
	}
	if token == account.NewTokens(secret).For(uuid.Max) {
		t.Error("two verifications have one token")
	}
	if token == account.NewTokens([]byte(strings.ToUpper(string(secret)))).For(verificationID) {
		t.Error("two keys make one token")
	}
}

func TestTokensKeepTheirOwnKey(t *testing.T) {
	key := bytes.Clone(secret)
	tokens := account.NewTokens(key)
	want := tokens.For(verificationID)
	clear(key)
	if tokens.For(verificationID) != want {
		t.Error("the key changed with the caller's slice")
	}
}

func TestParseToken(t *testing.T) {
	good := account.NewTokens(secret).For(verificationID)
	text := good.Encode()
	if parsed, err := account.ParseToken(text); err != nil || parsed != good {
		t.Fatalf("parse: %v, %v", parsed, err)
	}
	zeros := strings.Repeat("A", 43)
	if parsed, err := account.ParseToken(zeros); err != nil || parsed != (account.Token{}) {
		t.Fatalf("parse zeros: %v, %v", parsed, err)
	}
	for name, s := range map[string]string{
		"nothing":            "",
		"cut off":            text[:42],
		"too long":           text + "A",
		"padding":            text + "=",
		"padding inside":     text[:42] + "=",
		"standard base64":    "+/" + text[2:],
		"unused bits":        zeros[:42] + "B",
		"line break at end":  text[:42] + "\n",
		"line break inside":  text[:20] + "\n" + text[21:],
		"line break besides": text + "\n",
		"space":              " " + text[1:],
		"NUL":                "\x00" + text[1:],
		"not ASCII":          "é" + text[2:],
		"percent-encoded":    "%41" + text[3:],
		"redacted":           good.String(),
		"a megabyte":         strings.Repeat("A", 1<<20),
	} {
		if parsed, err := account.ParseToken(s); !errors.Is(err, account.ErrTokenMalformed) || parsed != (account.Token{}) {
			t.Errorf("%s: %v, want ErrTokenMalformed", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(account.NewTokens(secret).For(verificationID).Encode())
	f.Add(strings.Repeat("A", 42) + "B")
	f.Add(strings.Repeat("A", 42) + "\n")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := account.ParseToken(s)
		if err == nil && token.Encode() != s {
			t.Errorf("%q is the token %q", s, token.Encode())
		}
		if err != nil && (!errors.Is(err, account.ErrTokenMalformed) || token != (account.Token{})) {
			t.Errorf("refused with %v", err)
		}
	})
}

// However a token or the key is printed by mistake, it does not show.
func TestRedaction(t *testing.T) {
	token := account.NewTokens(secret).For(verificationID)
	tokens := account.NewTokens(secret)
	for value, shown := range map[any]string{&token: "[token]", &tokens: "[secret]"} {
		for _, verb := range strings.Fields("%v %+v %#v %s %q %x %X %#x %d %c %U %b %o %t %e %99.3s") {
			if got := fmt.Sprintf(verb, value); got != shown {
				t.Errorf("%s of %s prints %s", verb, shown, got)
			}
		}
	}
	type holder struct {
		Token  account.Token
		Tokens account.Tokens
	}
	value := holder{token, tokens}
	encoded, err := json.Marshal(value)
	if err != nil || string(encoded) != `{"Token":"[token]","Tokens":"[secret]"}` {
		t.Errorf("JSON %s, %v", encoded, err)
	}
	var out bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("x", "token", token, "tokens", tokens, "holder", value)
	}
	fmt.Fprint(&out, token.String(), token.GoString(), tokens.String(), tokens.GoString())
	fmt.Fprint(&out, value, &value, []any{token, tokens})
	// Bytes come out as text, as hexadecimal or as a list of decimal numbers.
	for _, plain := range [][]byte{token[:], []byte(token.Encode()), secret} {
		for _, form := range []string{string(plain), fmt.Sprintf("%x", plain), strings.Trim(fmt.Sprintf("%d", plain[:8]), "[]")} {
			if strings.Contains(out.String(), form) {
				t.Errorf("printed %q", form)
			}
		}
	}
}

// The key stays hidden also where fmt calls no method.
func TestTheKeyIsHiddenInUnexportedFields(t *testing.T) {
	value := struct{ tokens account.Tokens }{account.NewTokens(secret)}
	decimal := strings.Trim(fmt.Sprintf("%d", secret[:8]), "[]")
	goSyntax := strings.Trim(fmt.Sprintf("%#v", secret[:8]), "[]byte{}")
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		printed := fmt.Sprintf(verb, value)
		for _, form := range []string{string(secret[:8]), decimal, goSyntax} {
			if strings.Contains(printed, form) {
				t.Errorf("%s printed %s", verb, printed)
			}
		}
	}
}
