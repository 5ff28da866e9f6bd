package e2e_test

import (
	"net/http"
	"strings"
	"testing"
)

// TestForgedHostIsNotInTheMail: links begin with PUBLIC_URL, whatever host a request names.
func TestForgedHostIsNotInTheMail(t *testing.T) {
	parallel(t)
	s := newSite(t)
	s.startApp(nil)
	r, err := http.NewRequest(http.MethodPost, s.url()+"/users", strings.NewReader(`{"email":"`+anna+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "evil.example"
	r.Header.Set("Content-Type", typeJSON)
	r.Header.Set("X-Forwarded-Host", "evil.example")
	response, err := s.web.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Error(err)
	}
	l := s.office.await(anna, verification)
	if response.StatusCode != http.StatusAccepted || !strings.HasPrefix(l.link, s.url()+"/verify?") ||
		strings.Contains(l.text+l.html, "evil.example") {
		t.Errorf("%d; the mail says %s", response.StatusCode, l.text)
	}
}
