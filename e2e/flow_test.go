package e2e_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"postbus/internal/servertest"
)

const (
	anna = "anna@example.com"
	bert = "bert@example.com"
)

// TestEmbedded is a person's first run, and the second.
func TestEmbedded(t *testing.T) {
	parallel(t)
	s := newSite(t)
	first := s.startApp(nil)
	s.wantFewLines(first)

	s.signUpByForm(anna)
	s.signUp(bert)
	links := []string{s.office.await(anna, verification).link, s.office.await(bert, verification).link}
	s.confirm(links[0])
	s.office.await(anna, welcome)
	s.confirm(links[1])
	s.office.await(bert, welcome)
	postgres := s.postgresPID()
	first.stop(os.Interrupt)
	s.wantNoPostgres(postgres)

	second := s.startApp(nil)
	if !strings.Contains(second.out.String(), ", private, started in ") {
		t.Errorf("the second run does not say that it started what was there:\n%s", second.out.String())
	}
	s.wantUsed(links[0])
	s.signUp(strings.ToUpper(anna))
	s.office.await(anna, alreadyRegistered)
	postgres = s.postgresPID()
	second.stop(syscall.SIGTERM)
	s.wantNoPostgres(postgres)

	if all := s.office.of("", ""); len(all) != 5 {
		t.Errorf("%d letters, want 5: two to confirm, two to welcome, one about the repetition: %+v", len(all), all)
	}
	if users := s.textsAlone(`SELECT email FROM users ORDER BY email`); !slices.Equal(users, []string{anna, bert}) {
		t.Errorf("users = %q, want %q and %q", users, anna, bert)
	}
}

// wantFewLines checks what a person sees of the app's start.
func (s *site) wantFewLines(p *process) {
	s.t.Helper()
	want := regexp.MustCompile(`^postbus is running
  sign up    ` + s.url() + `/
  postgres   \d+\.\d+.*, private, created in \d+\.\d s, in .*/postgres
  consumers  verification-email, welcome-email, in this process
  jobs       default, outgoing-mail, in this process
  stop       Ctrl-C
$`)
	if said := p.out.String(); !want.MatchString(said) {
		s.t.Errorf("the app says\n%s\nwant\n%s", said, want)
	}
	if p.err.String() != "" {
		s.t.Errorf("the app writes to stderr:\n%s", p.err.String())
	}
}

// TestSeparateConsumers is the same as two processes, and as three.
func TestSeparateConsumers(t *testing.T) {
	parallel(t)
	s := newSite(t)
	web := s.startApp(settings{"CONSUMERS": "none"})
	if !strings.Contains(web.out.String(), "  consumers  none here; start them with: go run ./cmd/consumer\n") {
		t.Errorf("the app does not say where the consumers are:\n%s", web.out.String())
	}
	s.signUp(anna) // before there is a consumer
	all := s.startConsumer()
	s.wantConsumerLines(all)
	s.confirm(s.office.await(anna, verification).link)
	s.office.await(anna, welcome)
	s.wantList()
	all.stop(os.Interrupt)

	s.signUp(bert)
	welcoming := s.startConsumer("--only", "welcome-email")
	if said := welcoming.out.String(); !strings.Contains(said, "  mail       waits for a process that runs job:outgoing-mail\n") ||
		!strings.Contains(said, "  consumers  welcome-email\n  jobs       none here\n") {
		t.Errorf("the consumer says\n%s", said)
	}
	verifying := s.startConsumer("--only=verification-email,job:outgoing-mail")
	s.confirm(s.office.await(bert, verification).link)
	s.office.await(bert, welcome)
	if n := len(s.office.of("", "")); n != 4 {
		t.Errorf("%d letters, want 4", n)
	}

	postgres := s.postgresPID()
	welcoming.stop(os.Interrupt)
	web.stop(os.Interrupt)
	if s.postgresPID() != postgres {
		t.Error("the private Postgres did not stay for the last process")
	}
	verifying.stop(os.Interrupt)
	s.wantNoPostgres(postgres)
}

// wantConsumerLines checks what a person sees of a consumer's start beside an app.
func (s *site) wantConsumerLines(p *process) {
	s.t.Helper()
	want := regexp.MustCompile(`^postbus consumer is running
  links      ` + s.url() + `
  mail       clear text to ` + s.office.addr + `
  consumers  verification-email, welcome-email
  jobs       default, outgoing-mail
  postgres   \d+\.\d+.*, private, adopted, in .*/postgres
  stop       Ctrl-C
$`)
	if said := p.out.String(); !want.MatchString(said) {
		s.t.Errorf("the consumer says\n%s\nwant\n%s", said, want)
	}
}

// wantList waits until --list says that a consumer process has handled everything.
func (s *site) wantList() {
	s.t.Helper()
	want := regexp.MustCompile(`^CONSUMER +TOPIC +WAITING +OLDEST +PARKED +DEAD +RUNS IN +TYPES
verification-email +user +0 +- +0 +0 +\S+/\d+/\S+ +user\.registered, user\.verification_requested, user\.registration_repeated
welcome-email +user +0 +- +0 +0 +\S+/\d+/\S+ +user\.email_verified
job:default +- +0 +- +0 +0 +\S+/\d+, resting +-
job:outgoing-mail +- +0 +- +0 +0 +\S+/\d+, resting +-
$`)
	until(s.t, "--list says that nothing waits", func() bool {
		list := s.start(consumer, nil, "--list")
		list.exits(0)
		return want.MatchString(list.out.String())
	})
}

// TestConsumerAsksTheApp has an app elsewhere than usual, and a consumer that was not told: its links lead to the app.
func TestConsumerAsksTheApp(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSite(t)
	s.startApp(settings{"CONSUMERS": "none"})
	addr := s.env["HTTP_ADDR"]
	delete(s.env, "HTTP_ADDR")
	delete(s.env, "SMTP_URL")
	p := s.startConsumer()
	for _, line := range []string{
		"  links      http://" + addr + "\n",
		"  mail       stays in " + s.dir + "/mailbox (SMTP_URL is unset)\n",
	} {
		if said := p.out.String(); !strings.Contains(said, line) {
			t.Errorf("the consumer says\n%s\nwant a line\n%s", said, line)
		}
	}
	told := s.start(consumer, settings{"PUBLIC_URL": "https://post.example"})
	told.says(&told.out, "  links      https://post.example\n")
}

// TestTwoAppsAtOnce starts two apps at the same instant where there is nothing yet.
func TestTwoAppsAtOnce(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSite(t)
	other := &site{t: t, dir: s.dir, addr: "127.0.0.1:" + freePort(t), env: s.env, office: s.office, web: s.web}
	apps := []*process{s.start(app, nil), other.start(app, settings{"HTTP_ADDR": other.addr})}
	created, adopted := 0, 0
	for _, p := range apps {
		p.says(&p.out, "  stop       Ctrl-C\n")
		created += strings.Count(p.out.String(), ", private, created in ")
		adopted += strings.Count(p.out.String(), ", private, adopted, in ")
	}
	if created != 1 || adopted != 1 {
		t.Errorf("%d apps made the private Postgres and %d adopted it, want one each", created, adopted)
	}

	var both sync.WaitGroup
	both.Go(func() { s.signUp(anna) })
	both.Go(func() { other.signUp(bert) })
	both.Wait()
	s.confirm(s.office.await(anna, verification).link)
	s.confirm(s.office.await(bert, verification).link)
	s.office.await(anna, welcome)
	s.office.await(bert, welcome)

	postgres := s.postgresPID()
	apps[0].stop(os.Interrupt)
	other.signUp("carl@example.com")
	s.office.await("carl@example.com", verification)
	apps[1].stop(os.Interrupt)
	s.wantNoPostgres(postgres)
}
