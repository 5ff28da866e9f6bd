package e2e_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"postbus/internal/servertest"
)

// TestMailServerComesLater signs up while nothing listens where the mail server should be.
func TestMailServerComesLater(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSiteOn(t, closedOffice(t))
	p := s.startApp(nil)
	s.signUp(anna)
	p.says(&p.err, "mail not delivered for now: connect")
	p.says(&p.err, `"job failed, it will be tried again"`)
	s.office.open()
	s.confirm(s.office.await(anna, verification).link)
	s.office.await(anna, welcome)
}

// TestMailServerHangsUp after the final dot, and answers nothing: nobody knows whether the mail was taken. It does not come a
// second time by itself. The command line tells of it, and when somebody has decided so it comes again, as the same mail.
func TestMailServerHangsUp(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSiteOn(t, openOffice(t))
	p := s.startApp(nil)
	s.office.hangUps.Store(1)
	s.signUp(anna)
	first := s.office.await(anna, verification)
	p.says(&p.err, "mail perhaps delivered: finish")
	s.untilDead(`job:outgoing-mail +[0-9a-f]{16} +1 +\S+ +verification-email +permanent: .*mail perhaps delivered: finish`)
	if state := s.texts(`SELECT state FROM mail_ledger`); !slices.Equal(state, []string{"unknown"}) {
		t.Errorf("the ledger has %q", state)
	}
	s.signUp(bert) // whose mail is not held up
	s.office.await(bert, verification)
	if all := s.office.of(anna, verification); len(all) != 1 {
		t.Errorf("the mail came %d times by itself", len(all))
	}
	s.start(consumer, nil, "--dead=retry", "--which=job:outgoing-mail", "--apply").exits(0)
	if both := s.office.awaitMany(patience, 2, anna, verification); both[1] != first {
		t.Errorf("the repeated mail is another one:\n%+v\n%+v", first, both[1])
	}
	p.says(&p.err, "whether a mail was sent is not known, it is sent again")
	s.confirm(first.link)
	s.office.await(anna, welcome)
}

// untilDead waits until --dead=list has such a row.
func (s *site) untilDead(row string) {
	s.t.Helper()
	want := regexp.MustCompile(row)
	until(s.t, "the mail is dead", func() bool {
		list := s.start(consumer, nil, "--dead=list")
		list.exits(0)
		return want.MatchString(list.out.String())
	})
}

// TestRefusedMailIsDead at once, and nobody else's is held up; the consumer's command line tells of it and has it tried again.
func TestRefusedMailIsDead(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSite(t)
	s.office.refuses.update(func(string) string { return "gone@example.org" })
	p := s.startApp(nil)
	s.signUp("gone@example.org")
	s.signUp("here@example.org")
	s.office.await("here@example.org", verification)
	s.untilDead(`job:outgoing-mail +[0-9a-f]{16} +1 +\S+ +verification-email +permanent: .*550 5\.1\.1`)
	p.says(&p.err, `"job is dead"`)
	show := s.start(consumer, nil, "--dead=show", "--which=job:outgoing-mail")
	show.exits(0)
	if said := show.out.String(); !strings.Contains(said, `"user_id"`) || strings.Contains(said, "gone@example.org") ||
		!strings.Contains(said, `"version":"`) {
		t.Errorf("--dead=show says %s", said)
	}
	s.office.refuses.update(func(string) string { return "" })
	retry := []string{"--dead=retry", "--which=job:outgoing-mail", "--note=the box is back"}
	try := s.start(consumer, nil, retry...)
	try.exits(0)
	if said := try.out.String(); !strings.Contains(said, "retry would be done to 1 of job:outgoing-mail") ||
		len(s.office.of("gone@example.org", "")) > 0 {
		t.Errorf("without --apply it says %s", said)
	}
	s.start(consumer, nil, append(retry, "--apply")...).exits(0)
	s.office.await("gone@example.org", verification)
	notes := s.texts(`SELECT notes::text FROM postbus.jobs WHERE notes <> '[]'`)
	if len(notes) != 1 || !strings.Contains(notes[0], "retried") || !strings.Contains(notes[0], ": the box is back") {
		t.Errorf("the notes are %q", notes)
	}
}
