package e2e_test

import (
	"regexp"
	"strings"
	"testing"
)

// TestMailServerComesLater signs up while nothing listens where the mail server should be.
func TestMailServerComesLater(t *testing.T) {
	parallel(t)
	s := newSiteOn(t, closedOffice(t))
	p := s.startApp(nil)
	s.signUp(anna)
	p.says(&p.err, "mail not delivered for now: connect")
	s.office.open()
	s.confirm(s.office.await(anna, verification).link)
	s.office.await(anna, welcome)
}

// TestMailServerHangsUp after the final dot, and answers nothing: the mail may have been taken or not, so it comes again.
func TestMailServerHangsUp(t *testing.T) {
	parallel(t)
	s := newSiteOn(t, openOffice(t))
	p := s.startApp(nil)
	s.office.hangUps.Store(2)
	s.signUp(anna)
	three := s.office.awaitMany(patience, 3, anna, verification)
	for _, repeated := range three[1:] {
		if repeated != three[0] {
			t.Errorf("the repeated mail is another one:\n%+v\n%+v", three[0], repeated)
		}
	}
	p.says(&p.err, "mail perhaps delivered: finish")
	s.confirm(three[0].link)
	s.office.await(anna, welcome)
	if n := len(s.office.of(anna, verification)); n != 3 {
		t.Errorf("the mail came %d times, want 3: it was taken the third time", n)
	}
}

// TestRefusedMailIsDead at once, and nobody else's is held up; the consumer's command line tells of it and has it tried again.
func TestRefusedMailIsDead(t *testing.T) {
	parallel(t)
	s := newSite(t)
	s.office.refuses.update(func(string) string { return "gone@example.org" })
	s.startApp(nil)
	s.signUp("gone@example.org")
	s.signUp("here@example.org")
	s.office.await("here@example.org", verification)
	group := regexp.MustCompile(`verification-email +[0-9a-f]{12} +1 +\S+ +user\.registered +permanent: .*550 5\.1\.1`)
	until(t, "the refused mail to be dead", func() bool {
		list := s.start(consumer, nil, "--dead=list")
		list.exits(0)
		return group.MatchString(list.out.String())
	})
	show := s.start(consumer, nil, "--dead=show", "--which=verification-email")
	show.exits(0)
	if said := show.out.String(); !strings.Contains(said, `"user_id"`) || strings.Contains(said, "gone@example.org") {
		t.Errorf("--dead=show says %s", said)
	}
	s.office.refuses.update(func(string) string { return "" })
	try := s.start(consumer, nil, "--dead=retry", "--which=verification-email", "--note=the box is back")
	try.exits(0)
	if said := try.out.String(); !strings.Contains(said, "would be done to 1") || len(s.office.of("gone@example.org", "")) > 0 {
		t.Errorf("without --apply it says %s", said)
	}
	s.start(consumer, nil, "--dead=retry", "--which=verification-email", "--note=the box is back", "--apply").exits(0)
	s.office.await("gone@example.org", verification)
}
