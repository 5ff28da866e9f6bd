package e2e_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"postbus/internal/natstest"
	"postbus/internal/servertest"
)

// TestBrokerByOneSetting: a sign-up's mails come over NATS, with the broker away at first, and the programs say what there is to
// say. The consumers go back when they are told to, not by themselves.
func TestBrokerByOneSetting(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	server := natstest.Start(t)
	server.Kill()
	s := newSite(t)
	s.env["BROKER_URL"] = server.URL()
	web := s.startApp(nil)
	if said := web.out.String(); !strings.Contains(said, "the broker at "+server.URL()+" does not answer yet; events wait for it in Postgres") {
		t.Errorf("the app says\n%s", said)
	} else if !strings.Contains(said, "\n  broker     "+server.URL()+"\n") {
		t.Errorf("the app does not name the broker:\n%s", said)
	}
	s.signUp(anna)
	list := s.start(consumer, nil, "--list")
	list.exits(0)
	if got := list.out.String(); !regexp.MustCompile(`relay:user +user +[1-9]`).MatchString(got) {
		t.Errorf("with the broker away --list says\n%s", got)
	}
	server.Start()
	s.confirm(s.office.await(anna, verification).link)
	s.office.await(anna, welcome)
	until(t, "--list says that nothing waits", func() bool {
		list := s.start(consumer, nil, "--list")
		list.exits(0)
		return regexp.MustCompile(`(?m)^relay:user +user +0 +- +0 +0 +\S+/\d+\S* .*all, to the broker$`).MatchString(list.out.String())
	})
	until(t, "everything is noted", func() bool {
		return s.texts(`select count(*)::text from postbus_inbound.topic_user`)[0] == s.texts(`select count(*)::text from postbus.topic_user`)[0]
	})
	web.stop(os.Interrupt)

	delete(s.env, "BROKER_URL")
	refused := s.start(app, nil)
	refused.says(&refused.err, "the consumers of this database read from a broker; set BROKER_URL as it was")
	refused.exits(1)
	unlisted := s.start(consumer, nil, "--list")
	unlisted.says(&unlisted.err, "the consumers of this database read from a broker")
	unlisted.exits(1)
	left := s.start(consumer, nil, "--leave-broker", "--apply")
	left.says(&left.out, "the consumers read the application's Postgres")
	left.exits(0)
	s.startApp(nil)
	s.signUp(bert)
	s.office.await(bert, verification)
	if n := len(s.office.of("", "")); n != 3 {
		t.Errorf("%d letters, want 3", n)
	}
}

// TestBrokerIsJoinedAndLeft while the programs run, one after the other restarted with the setting; the app is not. A broker that is
// away can be left. Each mail comes once.
func TestBrokerIsJoinedAndLeft(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	const carl, dora = "carl@example.com", "dora@example.com"
	server := natstest.Start(t)
	s := newSite(t)
	s.startApp(settings{"CONSUMERS": "none"})
	first := s.startConsumer()
	s.signUp(anna)
	link := s.office.await(anna, verification).link
	s.env["BROKER_URL"] = server.URL()
	second := s.startConsumer()
	second.says(&second.out, "have it carry the events with: go run ./cmd/consumer --join-broker --apply")
	first.stop(os.Interrupt)
	s.confirm(link)
	s.office.await(anna, welcome)

	told := s.start(consumer, nil, "--join-broker")
	told.says(&told.out, "verification-email would take along what it has left by then; now ")
	told.says(&told.out, "nothing was changed; add --apply to do it")
	told.exits(0)
	joined := s.start(consumer, nil, "--join-broker", "--apply")
	s.signUp(bert)
	joined.says(&joined.out, "the consumers read over nats, prefix postbus\n")
	joined.says(&joined.out, "and all of them have arrived\n")
	joined.exits(0)
	s.confirm(s.office.await(bert, verification).link)
	s.office.await(bert, welcome)
	other := s.start(consumer, settings{"BROKER_URL": server.URL() + "?prefix=other"}) // it would leave what the first one has
	other.says(&other.err, "the consumers read over nats, prefix postbus, and BROKER_URL names nats, prefix other; ")
	other.exits(1)

	server.Kill()
	s.signUp(carl)
	left := s.start(consumer, nil, "--leave-broker", "--apply")
	left.says(&left.out, "the consumers read the application's Postgres\n")
	left.exits(0)
	s.confirm(s.office.await(carl, verification).link)
	s.office.await(carl, welcome)
	delete(s.env, "BROKER_URL")
	third := s.startConsumer()
	second.stop(os.Interrupt)
	s.signUp(dora)
	s.office.await(dora, verification)
	third.stop(os.Interrupt)
	if n := len(s.office.of("", "")); n != 7 {
		t.Errorf("%d letters, want 7", n)
	}
}
