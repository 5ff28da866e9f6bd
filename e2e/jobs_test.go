package e2e_test

import (
	"os"
	"strings"
	"testing"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// TestJobsInADatabaseOfTheirOwn starts the app while the jobs' database is away. People sign up all the same, and when it is there
// everything is done.
func TestJobsInADatabaseOfTheirOwn(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSite(t)
	jobs := pgtest.Own(t)
	jobs.Stop()
	p := s.startApp(settings{"JOB_QUEUE_DATABASE_URL": jobs.URL()})
	for _, want := range []string{"  jobs in    at 127.0.0.1:", "  note       jobs wait: postgres at 127.0.0.1:"} {
		if !strings.Contains(p.out.String(), want) {
			t.Errorf("the start does not say %q:\n%s", want, p.out.String())
		}
	}
	s.signUp(anna)
	jobs.Start()
	s.confirm(s.office.await(anna, verification).link)
	s.office.await(anna, welcome)
	p.says(&p.err, "the database for jobs is there")
	p.stop(os.Interrupt)
	second := s.startApp(settings{"JOB_QUEUE_DATABASE_URL": jobs.URL()})
	if out := second.out.String(); !strings.Contains(out, ", database postbus\n") || strings.Contains(out, "jobs wait") {
		t.Errorf("the second start says\n%s", out)
	}
	second.stop(os.Interrupt)
}
