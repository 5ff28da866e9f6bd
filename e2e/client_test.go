package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

const (
	typeForm = "application/x-www-form-urlencoded"
	typeJSON = "application/json"
)

// answer is a whole response.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, last(a.body)) }

// do sends a request as if from an address that was never seen before, because of the limit on requests from one.
func (s *site) do(method, target, contentType, body string) (answer, error) {
	r, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	visitor := s.visitor.Add(1)
	r.Header.Set("X-Forwarded-For", fmt.Sprintf("10.0.%d.%d", visitor>>8&0xff, visitor&0xff))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	response, err := s.web.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return answer{status: response.StatusCode, header: response.Header, body: string(text)}, err
}

func (s *site) get(path string) answer {
	s.t.Helper()
	a, err := s.do(http.MethodGet, s.url()+path, "", "")
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *site) post(path, contentType, body string) answer {
	s.t.Helper()
	a, err := s.do(http.MethodPost, s.url()+path, contentType, body)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// askFor signs an address up once, over JSON, whatever comes of it.
func (s *site) askFor(email string) (answer, error) {
	body, err := json.Marshal(map[string]string{"email": email})
	if err != nil {
		return answer{}, err
	}
	return s.do(http.MethodPost, s.url()+"/users", typeJSON, string(body))
}

// signUp signs an address up as a program does.
func (s *site) signUp(email string) {
	s.t.Helper()
	a, err := s.askFor(email)
	if err != nil || a.status != http.StatusAccepted || !strings.Contains(a.body, `"status":"accepted"`) {
		s.t.Fatalf("sign-up answers %v, %v", a, err)
	}
}

// signUpByForm signs an address up as a browser does.
func (s *site) signUpByForm(email string) {
	s.t.Helper()
	a := s.post("/users", typeForm, url.Values{"email": {email}}.Encode())
	if a.status != http.StatusAccepted || !strings.Contains(a.body, "Check your inbox") {
		s.t.Fatalf("sign-up answers %v", a)
	}
}

var hiddenToken = regexp.MustCompile(`<input type="hidden" name="token" value="([A-Za-z0-9_-]{43})">`)

// follow opens a link, which changes nothing, and presses the button on the page.
func (s *site) follow(link string) answer {
	s.t.Helper()
	for range 2 {
		page, err := s.do(http.MethodGet, link, "", "")
		if err != nil || page.status != http.StatusOK || !strings.Contains(page.body, "Confirm your email address") {
			s.t.Fatalf("the link shows %v, %v", page, err)
		}
		found := hiddenToken.FindStringSubmatch(page.body)
		if len(found) != 2 || !strings.HasSuffix(link, "/verify?token="+found[1]) {
			s.t.Fatalf("the page has no form with the link's token: %v", page)
		}
	}
	return s.post("/verify", typeForm, url.Values{"token": {tokenOf(link)}}.Encode())
}

// confirm follows a link and wants it to be the first time.
func (s *site) confirm(link string) {
	s.t.Helper()
	if a := s.follow(link); a.status != http.StatusOK || !strings.Contains(a.body, "Address confirmed") {
		s.t.Fatalf("confirmation answers %v", a)
	}
}

// wantUsed makes sure that a link does nothing any more.
func (s *site) wantUsed(link string) {
	s.t.Helper()
	page, err := s.do(http.MethodGet, link, "", "")
	if err != nil || page.status != http.StatusGone || !strings.Contains(page.body, "Already confirmed") {
		s.t.Errorf("a used link shows %v, %v", page, err)
	}
	a := s.post("/verify", typeJSON, `{"token":"`+tokenOf(link)+`"}`)
	if a.status != http.StatusGone || !strings.Contains(a.body, `"link_used"`) {
		s.t.Errorf("confirmation of a used link answers %v", a)
	}
}

func tokenOf(link string) string {
	_, token, _ := strings.Cut(link, "?token=")
	return token
}
