package e2e_test

import (
	"html"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postbus/internal/servertest"
)

// TestWithoutMailServer is a first run with no settings but where: mail is read at /mailbox.
func TestWithoutMailServer(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSite(t)
	delete(s.env, "SMTP_URL")
	p := s.startApp(nil)
	want := regexp.MustCompile(`^postbus is running
  sign up    ` + s.url() + `/
  mailbox    ` + s.url() + `/mailbox   \(SMTP_URL is unset: mail stays here\)
  postgres   \d+\.\d+.*, private, created in \d+\.\d s, in .*/postgres
  consumers  verification-email, welcome-email, in this process
  jobs       default, outgoing-mail, in this process
  stop       Ctrl-C
$`)
	if said := p.out.String(); !want.MatchString(said) {
		t.Errorf("the app says\n%s\nwant\n%s", said, want)
	}
	if page := s.visit(s.url() + "/mailbox"); !strings.Contains(page, "No mail yet.") {
		t.Errorf("the mailbox is not empty at first:\n%s", page)
	}
	s.signUpByForm(anna)
	link := regexp.MustCompile(regexp.QuoteMeta(s.url()) + `/verify\?token=[A-Za-z0-9_-]{43}`).FindString(s.readMail(anna, verification))
	if link == "" {
		t.Fatal("the verification mail has no link")
	}
	s.confirm(link)
	if text := s.readMail(anna, welcome); !strings.Contains(text, "Welcome") {
		t.Errorf("the welcome mail says\n%s", text)
	}
	s.wantUsed(link)
	p.stop(os.Interrupt)
}

// TestMailboxBehindPublicName has an address that others use: the mails stay in their directory.
func TestMailboxBehindPublicName(t *testing.T) {
	parallel(t)
	s := newSiteOn(t, openOffice(t))
	delete(s.env, "SMTP_URL")
	p := s.startApp(settings{"PUBLIC_URL": "https://post.example"})
	mailbox := filepath.Join(s.dir, "mailbox")
	p.says(&p.out, "\n  mailbox    "+mailbox+" (not shown: PUBLIC_URL is not local)\n")
	s.signUp(anna)
	until(t, "the mail is in its directory", func() bool {
		files, err := filepath.Glob(filepath.Join(mailbox, "*.eml"))
		return err == nil && len(files) == 1
	})
	response, err := s.web.Get(s.url() + "/mailbox")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("/mailbox answers %d, want 404", response.StatusCode)
	}
}

// visit opens a page as a browser on this machine does, not through a proxy.
func (s *site) visit(address string) string {
	s.t.Helper()
	response, err := s.web.Get(address)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		s.t.Fatalf("%s answers %d, %v", address, response.StatusCode, err)
	}
	return string(text)
}

var letterLink = regexp.MustCompile(`href="(/mailbox/[0-9a-f]{32})"`)

// readMail waits until the newest mail in the mailbox is that one, and reads it: its page, its HTML and its text, which it
// returns.
func (s *site) readMail(to, subject string) string {
	s.t.Helper()
	path := ""
	until(s.t, "the mail is in the mailbox", func() bool {
		page := s.visit(s.url() + "/mailbox")
		found := letterLink.FindStringSubmatch(page)
		if found == nil || !strings.Contains(page, subject) || !strings.Contains(page, to) {
			return false
		}
		path = found[1]
		return true
	})
	if page := s.visit(s.url() + path); !strings.Contains(page, `src="`+path+`/html"`) || !strings.Contains(page, subject) {
		s.t.Errorf("the page of the mail shows\n%s", page)
	}
	if body := s.visit(s.url() + path + "/html"); !strings.Contains(body, "<html") {
		s.t.Errorf("the HTML of the mail is\n%s", body)
	}
	return html.UnescapeString(s.visit(s.url() + path + "?as=text"))
}
