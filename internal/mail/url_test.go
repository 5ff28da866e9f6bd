package mail

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	tests := []struct {
		in, print      string
		user, password string
	}{
		{"smtp://localhost:1025", "clear text to localhost:1025", "", ""},
		{"smtp://LOCALHOST:1025", "clear text to localhost:1025", "", ""},
		{"smtp://127.0.0.1:1025/", "clear text to 127.0.0.1:1025", "", ""},
		{"smtp://127.8.9.1", "clear text to 127.8.9.1:25", "", ""},
		{"smtp://[::1]:1025", "clear text to [::1]:1025", "", ""},
		{"smtps://mail.example.com", "implicit TLS to mail.example.com:465", "", ""},
		{"smtps://u%40x:p%40ss%2Fw%3A@mail.example.com:4650", "implicit TLS to mail.example.com:4650", "u@x", "p@ss/w:"},
		{"smtp+starttls://u:p@192.0.2.1", "STARTTLS to 192.0.2.1:587", "u", "p"},
	}
	for _, test := range tests {
		s, err := ParseURL(test.in)
		if err != nil || s.String() != test.print {
			t.Errorf("%q: %v, %v", test.in, s, err)
			continue
		}
		if test.user == "" {
			if s.login != nil {
				t.Errorf("%q has a login", test.in)
			}
			continue
		}
		if s.login == nil {
			t.Errorf("%q has no login", test.in)
		} else if user, password := s.login(); user != test.user || password != test.password {
			t.Errorf("%q: login %q, %q", test.in, user, password)
		}
	}
}

const secret = "hunter2secret"

var badURLs = []struct {
	in   string
	want error
}{
	{"", errURLScheme},
	{"localhost:1025", errURL},
	{"http://localhost:1025", errURLScheme},
	{"smtp:localhost", errURL},
	{"smtp://", errURL},
	{"smtp://mailcatcher:1025", errURLClearText},
	{"smtp://192.0.2.1:25", errURLClearText},
	{"smtp://0.0.0.0:25", errURLClearText},
	{"smtp://localhost.example.com:25", errURLClearText},
	{"smtp://127.0.0.1.nip.example:25", errURLClearText},
	{"smtp://2130706433:25", errURLClearText},
	{"smtp://user:" + secret + "@localhost:25", errURLClearPassword},
	{"smtps://user:" + secret + "@mail.example.com:0", errURLPort},
	{"smtps://user:" + secret + "@mail.example.com:65536", errURLPort},
	{"smtps://user:" + secret + "@mail.example.com:port", errURL},
	{"smtps://user:" + secret + "@mail.example.com/inbox", errURL},
	{"smtps://user:" + secret + "@mail.example.com?x=y", errURL},
	{"smtps://user:" + secret + "@mail.example.com?", errURL},
	{"smtps://user:" + secret + "@mail.example.com#x", errURL},
	{"smtps://user:" + secret + "/x@mail.example.com", errURL},
	{"smtps://user:" + secret + "%@mail.example.com", errURL},
	{"smtps://user:" + secret + " @mail.example.com", errURL},
	{"smtps://user:" + secret + "%0d%0aX@mail.example.com", errURLCredentials},
	{"smtps://user:" + secret + "@mail_1.example.com", errURL},
	{"smtps://user:" + secret + "@mail.example.com\r\n", errURL},
	{"smtps://user@mail.example.com", errURLCredentials},
	{"smtps://:" + secret + "@mail.example.com", errURLCredentials},
	{"smtps://user:@mail.example.com", errURLCredentials},
	{"smtps://bücher.example", errURL},
}

func TestParseURLRefusesWithoutThePassword(t *testing.T) {
	for _, test := range badURLs {
		_, err := ParseURL(test.in)
		if !errors.Is(err, test.want) {
			t.Errorf("%q: %v", test.in, err)
			continue
		}
		if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", test.in, err)
		}
	}
	if !strings.Contains(errURLClearText.Error(), "this machine") {
		t.Error("the refusal of clear text does not say where it may go")
	}
}

func TestServerPrintsWithoutThePassword(t *testing.T) {
	server, err := ParseURL("smtps://someuser:" + secret + "@mail.example.com")
	if err != nil {
		t.Fatal(err)
	}
	inside := struct {
		server Server
		SMTP   *SMTP
	}{server, &SMTP{server: server}}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, value := range []any{server, &server, inside, *inside.SMTP, inside.SMTP} {
			if s := fmt.Sprintf(format, value); strings.Contains(s, secret) || strings.Contains(s, "someuser") {
				t.Errorf("%s shows the login: %s", format, s)
			}
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, test := range badURLs {
		f.Add(test.in)
	}
	f.Add("smtps://user:" + secret + "@mail.example.com:465")
	f.Add("smtp://[::1%25lo]:25")
	f.Fuzz(func(t *testing.T, s string) {
		server, err := ParseURL(s)
		if err != nil {
			if server.Host != "" || server.login != nil || (strings.Contains(s, secret) && strings.Contains(err.Error(), secret)) {
				t.Fatalf("%q: %v, %v", s, server, err)
			}
			return
		}
		if server.Security == ClearText && (!isLoopback(server.Host) || server.login != nil) {
			t.Fatalf("%q became %v", s, server)
		}
		if server.Port < 1 || server.Port > 65535 || strings.ContainsAny(server.Host, "\r\n\x00 /@") {
			t.Fatalf("%q became %v", s, server)
		}
	})
}
