package e2e_test

import (
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
