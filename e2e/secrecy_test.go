package e2e_test

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// typedName is what a person typed before the at sign. It is found nowhere but in the users table.
const typedName = "Zwaantje.Marker"

// TestNothingTypedIsLogged goes all the ways at the finest log level and looks for the address and the link's token in
// whatever the processes have written, the private Postgres included; and for the token in every table.
func TestNothingTypedIsLogged(t *testing.T) {
	parallel(t)
	s := newSite(t)
	s.env["LOG_LEVEL"] = "trace"
	web := s.startApp(settings{"CONSUMERS": "none"})
	worker := s.startConsumer()

	address := typedName + "@Example.com"
	s.signUpByForm(address)
	s.office.hangUps.Store(1)
	s.signUp(address + " ")
	sent := s.office.letters.await(t, "the mail", patience, func(all []letter) bool { return len(all) > 0 })[0]
	token := tokenOf(sent.link)
	s.refuse(address, token)
	s.confirm(sent.link)
	s.wantUsed(sent.link)
	s.office.await(sent.to, welcome)
	s.signUp(address)
	s.office.await(sent.to, alreadyRegistered)

	dump := strings.ToLower(s.dump())
	written := map[string]string{}
	for _, p := range []*process{web, worker} {
		p.stop(os.Interrupt)
		written[p.String()] = p.out.String() + p.err.String()
	}
	log, err := os.ReadFile(filepath.Join(s.dir, "postgres", "postgres.log"))
	if err != nil {
		t.Fatal(err)
	}
	written["postgres"] = string(log)
	s.wantUnwritten(written, token)
	s.wantUnstored(dump, token)
}

// refuse sends what is refused, at every door that takes an address or a token.
func (s *site) refuse(address, token string) {
	s.t.Helper()
	similar := "A" + token[1:]
	if similar == token {
		similar = "B" + token[1:]
	}
	for _, request := range []struct {
		method, path, contentType, body string
		status                          int
	}{
		{http.MethodPost, "/users", typeJSON, `{"email":"` + typedName + `"}`, http.StatusUnprocessableEntity},
		{http.MethodPost, "/users", typeForm, url.Values{"email": {address + "\r\nBcc: " + address}}.Encode(), http.StatusUnprocessableEntity},
		{http.MethodPost, "/users", typeJSON, `{"` + typedName + `":1}`, http.StatusBadRequest},
		{http.MethodPost, "/users", typedName, address, http.StatusUnsupportedMediaType},
		{http.MethodPost, "/verify/resend", typeForm, url.Values{"email": {address}}.Encode(), http.StatusAccepted},
		{http.MethodGet, "/" + url.PathEscape(address) + "?" + token, "", "", http.StatusNotFound},
		{http.MethodGet, "/verify?token=" + token + "x", "", "", http.StatusBadRequest},
		{http.MethodGet, "/verify?token=" + similar, "", "", http.StatusNotFound},
		{http.MethodPost, "/verify", typeForm, url.Values{"token": {token, token}}.Encode(), http.StatusBadRequest},
	} {
		a, err := s.do(request.method, s.url()+request.path, request.contentType, request.body)
		if err != nil || a.status != request.status {
			s.t.Errorf("%s %s answers %v, %v; want %d", request.method, request.path, a, err, request.status)
		}
	}
}

// forms are the ways in which a token may have been written, in lower case.
func forms(token string) []string {
	raw, _ := base64.RawURLEncoding.DecodeString(token)
	all := []string{
		token, base64.StdEncoding.EncodeToString(raw), string(raw), hex.EncodeToString(raw), hex.EncodeToString([]byte(token)),
	}
	for i, form := range all {
		all[i] = strings.ToLower(form)
	}
	return all
}

func (s *site) wantUnwritten(written map[string]string, token string) {
	s.t.Helper()
	hidden := append(forms(token), strings.ToLower(typedName))
	for who, text := range written {
		if len(text) == 0 {
			s.t.Errorf("%s has written nothing", who)
		}
		for line := range strings.Lines(strings.ToLower(text)) {
			if slices.ContainsFunc(hidden, func(secret string) bool { return strings.Contains(line, secret) }) {
				s.t.Errorf("%s has written what was typed, or the token:\n%s", who, line)
			}
		}
	}
}

func (s *site) wantUnstored(dump, token string) {
	s.t.Helper()
	name := strings.ToLower(typedName)
	if !strings.Contains(dump, "public.users (") || !strings.Contains(dump, name) || !strings.Contains(dump, "user.email_verified") {
		s.t.Errorf("the dump has not the rows that it is searched in:\n%s", dump)
	}
	for line := range strings.Lines(dump) {
		if slices.ContainsFunc(forms(token), func(form string) bool { return strings.Contains(line, form) }) {
			s.t.Errorf("the token is stored: %s", line)
		}
		if !strings.HasPrefix(line, "public.users ") &&
			(strings.Contains(line, name) || strings.Contains(line, hex.EncodeToString([]byte(typedName)))) {
			s.t.Errorf("the address is stored outside of users: %s", line)
		}
	}
}
