package e2e_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"postbus/internal/servertest"
)

const (
	triesMax = 200                    // of one sign-up
	triesGap = 100 * time.Millisecond // between them
)

// seed repeats the plan of a run that failed. When exactly a process dies is up to the machine all the same.
var seed = flag.Uint64("seed", 0, "of TestKilledAtRandom; 0 is another one each time")

// TestKilledAtRandom kills the app, the consumer and once the private Postgres, while people sign up. What has to hold in
// the end:
//
//   - Whoever was told 202 is a user. Whoever is a user has asked; it may be that the answer was lost.
//   - Each user has a verification mail, perhaps several, and nobody else has one.
//   - Mails with one Message-ID have one link, and each user's link works.
func TestKilledAtRandom(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	const people = 100
	seed := *seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	c := &chaos{site: newSite(t), dice: rand.New(rand.NewPCG(seed, 0))}
	c.web = c.start(app, settings{"CONSUMERS": "none"})
	c.worker = c.start(consumer, nil)

	began := time.Now()
	signedUp := c.signUpMany(people)
	kills := c.wreak(people)
	signedUp.Wait()
	t.Logf("seed %d: %d kills; the last of %d people was accepted after %v", seed, kills, people, time.Since(began))
	c.wantEverybodyServed()
	t.Logf("the last mail came after %v, there were %d", time.Since(began), len(c.office.of("", "")))

	postgres := c.postgresPID()
	c.web.stop(os.Interrupt)
	c.worker.stop(os.Interrupt)
	c.wantNoPostgres(postgres)
}

// chaos is a site whose processes die.
type chaos struct {
	*site
	dice        *rand.Rand // the test's own goroutine's, as are the processes
	web, worker *process
	asked       []string
	accepted    watched[[]string]
}

// signUpMany has people sign up, three at a time, who try until they are accepted, and further ones who try only once.
func (c *chaos) signUpMany(people int) *sync.WaitGroup {
	type person struct {
		email string
		tries int
	}
	var all []person
	for i := range people {
		all = append(all, person{fmt.Sprintf("person-%d@example.com", i), triesMax})
		if i%5 == 0 {
			all = append(all, person{fmt.Sprintf("hasty-%d@example.com", i), 1})
		}
	}
	queue := make(chan person, len(all))
	for _, p := range all {
		c.asked = append(c.asked, p.email)
		queue <- p
	}
	close(queue)
	var done sync.WaitGroup
	for range 3 {
		done.Go(func() {
			for p := range queue {
				if !c.insist(p.email, p.tries) && p.tries > 1 {
					c.t.Errorf("%s was not accepted in %d tries", p.email, p.tries)
				}
			}
		})
	}
	return &done
}

// insist asks until it is told 202. The only other answers are none, and "not now".
func (c *chaos) insist(email string, tries int) (accepted bool) {
	for range tries {
		a, err := c.askFor(email)
		switch {
		case err != nil || a.status == http.StatusServiceUnavailable:
			<-time.After(triesGap)
		case a.status == http.StatusAccepted:
			c.accepted.update(func(all []string) []string { return append(all, email) })
			return true
		default:
			c.t.Errorf("sign-up answers %v", a)
			return false
		}
	}
	return false
}

// kill is something that dies when there are so many accepted people, or so many mails.
type kill struct {
	accepted, mails int
	do              func()
}

// wreak kills until its plan is through, and returns how often. The plan counts what has been achieved, so that each
// killed process has done something; some are killed again while they start.
func (c *chaos) wreak(people int) (kills int) {
	plan := c.plan(people)
	kills = len(plan)
	deadline := time.After(patience) // of the next one
	for len(plan) > 0 {
		accepted, moreAccepted := c.accepted.get()
		mails, moreMails := c.office.letters.get()
		due := slices.IndexFunc(plan, func(k kill) bool { return k.accepted <= len(accepted) && k.mails <= len(mails) })
		if due >= 0 {
			c.pause(100 * time.Millisecond) // anywhere in a request
			plan[due].do()
			plan = slices.Delete(plan, due, due+1)
			deadline = time.After(patience)
			continue
		}
		select {
		case <-moreAccepted:
		case <-moreMails:
		case <-deadline:
			c.t.Fatalf("%d kills are left, with %d people accepted and %d mails", len(plan), len(accepted), len(mails))
		}
	}
	return kills
}

func (c *chaos) plan(people int) (plan []kill) {
	// at draws a number from the i-th of n equal parts of people.
	at := func(i, n int) int { return (i*people + c.dice.IntN(people)) / n }
	const apps, consumers = 8, 3 // a killed consumer's work goes on after its lease, so each of these takes 6 s
	for i := range apps {
		plan = append(plan, kill{accepted: at(i, apps), do: c.killApp})
	}
	for i := range consumers {
		plan = append(plan, kill{mails: 1 + at(i, consumers), do: c.killConsumer})
	}
	return append(plan,
		kill{accepted: at(2, 4), do: c.killApp},
		kill{accepted: at(1, 4), do: c.killConsumer},
		kill{accepted: at(1, 2), do: c.killPostgres})
}

// pause lets chance have a part in when something dies.
func (c *chaos) pause(most time.Duration) { <-time.After(time.Duration(c.dice.Int64N(int64(most)))) }

func (c *chaos) killApp() {
	c.end(c.web)
	c.web = c.start(app, settings{"CONSUMERS": "none"})
	if c.dice.IntN(4) == 0 {
		c.pause(300 * time.Millisecond)
		c.end(c.web)
		c.web = c.start(app, settings{"CONSUMERS": "none"})
	}
}

func (c *chaos) killConsumer() {
	c.end(c.worker)
	c.worker = c.start(consumer, nil)
}

// end kills a process, which has to be there until then.
func (c *chaos) end(p *process) {
	c.t.Helper()
	p.kill()
	if !p.signalled(syscall.SIGKILL) {
		c.t.Errorf("%s ended by itself: %v", p, p.cmd.ProcessState)
	}
}

// killPostgres leaves it to the programs to notice. They run by then: at a start, a Postgres that goes away is an error.
func (c *chaos) killPostgres() {
	c.web.says(&c.web.out, "  stop       Ctrl-C\n")
	c.worker.says(&c.worker.out, "  stop       Ctrl-C\n")
	c.site.killPostgres()
}

func (c *chaos) wantEverybodyServed() {
	c.t.Helper()
	users := c.texts(`SELECT email FROM users`)
	accepted, _ := c.accepted.get()
	for _, email := range accepted {
		if !slices.Contains(users, email) {
			c.t.Errorf("%s was accepted and is no user", email)
		}
	}
	for _, email := range users {
		if !slices.Contains(c.asked, email) {
			c.t.Errorf("%s is a user and has not asked", email)
		}
	}
	first := map[string]letter{} // by recipient
	links := map[string]string{} // by Message-ID
	c.office.letters.await(c.t, "a mail to each user", patience, func(all []letter) bool {
		for _, l := range all {
			first[l.to] = l
		}
		return !slices.ContainsFunc(users, func(email string) bool { return first[email].link == "" })
	})
	for _, l := range c.office.of("", "") {
		if before, repeated := links[l.id]; l.subject != verification || repeated && before != l.link {
			c.t.Errorf("a mail that should not be, or not with another link than %s: %+v", before, l)
		}
		links[l.id] = l.link
		if !slices.Contains(users, l.to) {
			c.t.Errorf("%s has a mail and is no user", l.to)
		}
	}
	for _, email := range users {
		if page, err := c.do(http.MethodGet, first[email].link, "", ""); err != nil || page.status != http.StatusOK {
			c.t.Errorf("the link of %s shows %v, %v", email, page, err)
		}
	}
}
