package e2e_test

import (
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"postbus/internal/servertest"
)

// takeover is how soon the work of a killed process has to go on elsewhere.
const takeover = 10 * time.Second

// TestConsumerKilledBetweenTheMails kills the consumer when it has sent the first mail, and starts it again when there is
// a reason for the second.
func TestConsumerKilledBetweenTheMails(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSiteOn(t, openOffice(t))
	s.startApp(settings{"CONSUMERS": "none"})
	killed := s.startConsumer()
	s.signUp(anna)
	link := s.office.await(anna, verification).link
	killed.kill()
	s.confirm(link)
	s.startConsumer()
	s.office.awaitWithin(takeover, anna, welcome)
}

// TestConsumerKilledWhileItSends kills a consumer when the mail server has the mail and the consumer does not know that.
// Another process, which was waiting, takes over and sends the same mail again.
func TestConsumerKilledWhileItSends(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSiteOn(t, openOffice(t))
	s.startApp(settings{"CONSUMERS": "none"})
	killed := s.startConsumer()
	s.signUp(anna)
	s.office.await(anna, verification) // so it is at work
	s.startConsumer()

	release := s.office.holdBack()
	defer release()
	s.signUp(bert)
	s.office.await(bert, verification)
	killed.kill()
	release()
	both := s.office.awaitMany(takeover, 2, bert, verification)
	if both[0].id != both[1].id || both[0].link != both[1].link {
		t.Errorf("the repeated mail is another one:\n%+v\n%+v", both[0], both[1])
	}
	s.confirm(both[1].link)
	s.office.await(bert, welcome)
}

// TestPostgresComesBackElsewhere kills the private Postgres and takes its port. It is started again on another, and both
// programs find it there.
func TestPostgresComesBackElsewhere(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSite(t)
	s.startApp(settings{"CONSUMERS": "none"})
	s.startConsumer()
	before, err := url.Parse(s.databaseURL())
	if err != nil {
		t.Fatal(err)
	}
	s.killPostgres()
	var thief net.Listener
	until(t, "the port of Postgres is free", func() bool {
		thief, err = net.Listen("tcp", before.Host)
		return err == nil
	})
	defer thief.Close()
	go func() {
		for {
			conn, err := thief.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	// It may not have noticed yet that Postgres was killed, and says then that it cannot do this at the moment.
	until(t, "a sign-up is accepted again", func() bool {
		answer, err := s.askFor(anna)
		return err == nil && answer.status == http.StatusAccepted
	})
	s.confirm(s.office.await(anna, verification).link)
	s.office.await(anna, welcome)
	if after, err := url.Parse(s.databaseURL()); err != nil || after.Host == before.Host {
		t.Errorf("Postgres is at %v, where it was before (%v)", after.Host, err)
	}
}
