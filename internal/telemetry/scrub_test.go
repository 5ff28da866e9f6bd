package telemetry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"

	"postbus/internal/servertest"
)

const (
	token = "q3Zr8Xk0m1Yb5vN7tPcD2wLsUaGhJfEo9iKxQyR_-A4" // as in a verification link
	id    = "01998f6e-3c1a-7d2e-9b40-5f6a7b8c9d0e"
)

func TestScrub(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"words", "append events: lock table users", "append events: lock table users"},
		{"uuid", id, id},
		{"uuid among words", "event " + id + " is late", "event " + id + " is late"},
		{"uuid with a prefix", "user-" + id, "user-" + id},
		{"identifier", "index email_verifications_user_id_created_at", "index email_verifications_user_id_created_at"},
		{"path", "open /var/lib/post bus/.postbus/secret.key: no", "open /var/lib/post bus/.postbus/secret.key: no"},
		{"host and port", "dial tcp 127.0.0.1:5432: connect: refused", "dial tcp 127.0.0.1:5432: connect: refused"},

		{"address", "550 <bob@example.org> unknown", "550 <[address]> unknown"},
		{"address and colon", "to bob@example.org: no", "to [address]: no"},
		{"header", "Bcc:bob@example.org", "Bcc:[address]"},
		{"quoted local part", `"a@x> ORCPT=b@y"@z`, `"[address]> [address]"[address]`},
		{"apostrophe", "o'brien+x@example.org", "[address]"},
		{"umlauts", "jürgen@müller.example", "[address]"},
		{"escaped", "bob%40example.org", "[address]"},
		{"full width", "bob＠example.org", "[address]"},
		{"zero width", "bo\u200bb@example.org", "[address]"},
		{"literal", "bob@[127.0.0.1]", "[address]"},
		{"only the sign", "a @ b", "a [address] b"},

		{"url", "see http://127.0.0.1:8080/mailbox now", "see http://127.0.0.1:8080/mailbox now"},
		{"link", "GET http://h/verify?token=" + token, "GET http://h/verify?[redacted]"},
		{"fragment", "http://h/p#" + token, "http://h/p?[redacted]"},
		{"userinfo", "postgres://u:pass@h:5432/db?sslmode=disable x", "postgres://h:5432/db?[redacted] x"},
		{"at sign in password", "postgres://u:p@ss@h/db", "postgres://h/db"},
		{"slash in password", "postgres://u:p/ss@h/db", "postgres://[redacted]"},
		{"question mark in password", "postgres://u:p?ss@h/db", "postgres://[redacted]"},
		{"cut before the host", "postgres://u:pass", "postgres://[redacted]"},
		{"IPv6", "http://[::1]:80/", "http://[::1]:80/"},

		{"dsn", "host=h password=hunter2 user=u", "host=h password=[redacted] user=u"},
		{"quoted dsn", "password = 'hunter 2' x", "password=[redacted] x"},
		{"setting", "SECRET_KEY=short", "SECRET_KEY=[redacted]"},
		{"json", `{"password":"hun\"ter2","a":1}`, `{"password":"[redacted]","a":1}`},
		{"bearer", "Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer [redacted]"},
		{"token", "no such token " + token, "no such token [token]"},
		{"hex", "hash 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "hash [token]"},
		{"base64", "key bm90IGEgcmVhbC9rZXkrbm90IGEgcmVhbA==", "key [token]"},
		{"jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "[token]"},

		{"postgres text", `insert: ERROR: key (a)=(bob) exists (SQLSTATE 23505)`, "insert: SQLSTATE 23505"},
		{"postgres in German", "insert: FEHLER: »bob« (SQLSTATE 23505)", "insert: SQLSTATE 23505"},
		{"line ends", "a\r\nb\x00c\x1b[31m", "a  bc[31m"},
		{"not UTF-8", "a\xffb", "a\ufffdb"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := scrub(tt.in); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestScrubBoundsWhatItReadsAndWrites(t *testing.T) {
	if got := scrub(strings.Repeat("wörd ", 500)); len(got) > textBytesMax || !strings.HasSuffix(got, "…") {
		t.Errorf("%d bytes, ends %q", len(got), got[len(got)-8:])
	}
	// A token on the edge of what is read must not come through as a half that is too short to be recognised.
	step := 7
	if servertest.InCI() {
		step = 1
	}
	for at := inputBytesMax - len(token); at <= inputBytesMax; at += step {
		addresses := strings.Repeat("a@b ", at/4) + strings.Repeat(" ", at%4) // shrinks, so that the edge is written
		if got := scrub(addresses + token); strings.Contains(got, token[:8]) {
			t.Fatalf("token at %d: %q", at, got)
		}
	}
	if got := scrub(strings.Repeat("x", 3*inputBytesMax)); got != "…" {
		t.Errorf("one endless word: %q", got)
	}
}

func TestScrubError(t *testing.T) {
	duplicate := &pgconn.PgError{
		Severity: "ERROR", Code: "23505", Message: "value hunter2 is taken", Detail: "Key (email)=(hunter2)",
		ConstraintName: "users_email_key",
	}
	_, parseURL := url.Parse("http://u:hunter2@h:" + strings.ToLower("PORT/"))
	_, parseInt := strconv.Atoi("hunter2")
	_, parseTime := time.Parse(time.RFC3339, "hunter2")
	_, parsePG := pgconn.ParseConfig("postgres://u:hun ter2@h:port/db")
	parseJSON := json.Unmarshal([]byte(`{"A": 47114711}`), &struct{ A string }{})
	tests := []struct {
		name string
		in   error
		want string
	}{
		{"plain", errors.New("no rows"), "no rows"},
		{"postgres", fmt.Errorf("insert user: %w", duplicate), "insert user: SQLSTATE 23505 users_email_key"},
		{"postgres without constraint", &pgconn.PgError{Severity: "FATAL", Code: "28P01", Message: "user hunter2"}, "SQLSTATE 28P01"},
		{"postgres, twice", errors.Join(duplicate, duplicate), "SQLSTATE 23505 users_email_key; SQLSTATE 23505 users_email_key"},
		{"postgres, reworded", reworded{duplicate}, "SQLSTATE 23505 users_email_key"},
		{"postgres, not wrapped", fmt.Errorf("insert user: %v", duplicate), "insert user: SQLSTATE 23505"}, //nolint:errorlint // on purpose
		{"url", fmt.Errorf("read setting: %w", parseURL), `read setting: parse: invalid port ":port" after host`},
		{"number", fmt.Errorf("read port: %w", parseInt), "read port: strconv.Atoi: invalid syntax"},
		{"time", parseTime, "malformed time"},
		{"postgres url", fmt.Errorf("open pool: %w", parsePG), "open pool: malformed Postgres URL"},
		{"json", parseJSON, "json: cannot unmarshal number into A"},
		{"broken", (*url.Error)(nil), "[panic in String]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := scrubError(tt.in)
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			if strings.Contains(got, "hunter2") || strings.Contains(got, "4711") {
				t.Error("leaks")
			}
		})
	}
}

// reworded uses the message of the error that it wraps, but not its text.
type reworded struct{ err *pgconn.PgError }

func (r reworded) Error() string { return "sorry, " + r.err.Message }
func (r reworded) Unwrap() error { return r.err }

func FuzzScrub(f *testing.F) {
	for _, seed := range []string{
		"", "plain", "bob@example.org", `"a@x> ORCPT=b@y"@z`, "http://u:p@h/x?token=" + token, "postgres://u:p@ss/@h",
		"password='x y", `{"token": "a\"b"}`, "Bearer " + token, id + token, "ERROR: x (SQLSTATE 23505)", "a\n\x00\u202eb",
		"\xff@\xfe", strings.Repeat("ab ", 4000), "%40%40", "＠", "x://[redacted]@", "eyJhbGciOiJIUzI1NiJ9.e30.a",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := scrub(in)
		if strings.ContainsAny(out, "@＠﹫") || strings.Contains(out, "%40") {
			t.Errorf("an at sign came through: %q", out)
		}
		if strings.ContainsFunc(out, unicode.IsControl) || !utf8.ValidString(out) {
			t.Errorf("not clean: %q", out)
		}
		if len(out) > textBytesMax {
			t.Errorf("%d bytes", len(out))
		}
		for _, run := range tokenPattern.FindAllString(uuidPattern.ReplaceAllString(out, " "), -1) {
			if strings.ToLower(run) != run || strings.ContainsAny(run, "0123456789") {
				t.Errorf("a token came through: %q", out)
			}
		}
	})
}

// A person at the terminal has to be able to read which file it is about; the rest is hidden as in a log line.
func TestSentence(t *testing.T) {
	const dir = "/tmp/f/Some_Long_Directory_Name_With_Capitals_2026"
	open := func(path string) error { return &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission} }
	for name, tt := range map[string]struct {
		err   error
		paths []string
		want  string
	}{
		"path of the error": {open(dir + "/" + token), nil, "open " + dir + "/" + token + ": permission denied"},
		"link":              {&os.LinkError{Op: "rename", Old: dir, New: dir + "2", Err: fs.ErrExist}, nil, "rename " + dir + " " + dir + "2: file already exists"},
		"path that is said": {errors.New("POSTBUS_DATA_DIR, which is " + dir + ", is not a directory"), []string{dir}, "POSTBUS_DATA_DIR, which is " + dir + ", is not a directory"},
		"below it":          {errors.New("look into " + dir + "/postgres: no"), []string{dir}, "look into " + dir + "/postgres: no"},
		"at sign":           {open("/home/ada@example.org/x"), nil, "open /home/ada@example.org/x: permission denied"},
		"control":           {open("/a\x1b[31m\nb"), nil, "open /a[31m b: permission denied"},
		"secrets beside":    {fmt.Errorf("send %s to bob@example.org: %w", token, open(dir)), nil, "send [token] to [address]: open " + dir + ": permission denied"},
		"short path":        {fmt.Errorf("token %s: %w", token, open(token[5:9])), []string{token[:5], "."}, "token [token]: open " + token[5:9] + ": permission denied"},
		"a URL's path":      {fmt.Errorf("get http://u:geheim@h%s?x: %w", dir, open(dir)), nil, "get http://h/tmp/f/[token]?[redacted] open " + dir + ": permission denied"},
		"postgres":          {errors.Join(&pgconn.PgError{Severity: "ERROR", Code: "23505", Message: "bob"}, open(dir)), nil, "SQLSTATE 23505; open " + dir + ": permission denied"},
		"forged mark":       {errors.New("\ue000 \ue001 \uf8ff"), []string{dir}, "  "},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Sentence(tt.err, tt.paths...); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}
