package account_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	netmail "net/mail"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	gosmtp "github.com/emersion/go-smtp"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"postbus/internal/account"
	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain/user"
	"postbus/internal/job"
	"postbus/internal/mail"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
	"postbus/internal/uow"
)

const (
	childURL  = "POSTBUS_TEST_MAIL_URL"  // makes this program the process that consumes and sends
	childSMTP = "POSTBUS_TEST_MAIL_SMTP" // through this server
	childStep = "POSTBUS_TEST_MAIL_STEP" // at which it kills itself
	childUser = "POSTBUS_TEST_MAIL_USER" // over whose mail
)

func TestMain(m *testing.M) {
	if os.Getenv(childURL) != "" {
		if err := sendMails(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // this is its main function
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// The steps at which a process dies between an event and the completion of its mail's job, with how many mails there may be.
// The server kills at those that only it knows of.
var killSteps = []struct {
	name  string
	mails []int
}{
	{"event received", []int{1}},
	{"job enqueued", []int{1}}, // and the event not acknowledged
	{"job taken", []int{1}},
	{"mail prepared", []int{1}}, // and the server not dialled
	{"server: MAIL", []int{1}},
	{"server: RCPT", []int{1}},
	{"all but the last byte", []int{1}}, // of which the ledger knows nothing
	{"last byte noted", []int{1}},       // and not sent
	{"server: last byte", []int{2}},     // which the server takes, and nobody hears its answer
	{"answered", []int{2}},              // and not noted
	{"noted", []int{1}},                 // and the job not completed
	{"completed", []int{1}},             // or nearly: it comes a moment later
}

// dieAt kills this process if the step is the one.
func dieAt(step string) {
	if os.Getenv(childStep) != step {
		return
	}
	die := func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	if step == "completed" {
		time.AfterFunc(time.Duration(os.Getpid()%8)*time.Millisecond, die)
		return
	}
	die()
	select {}
}

// deadly is a Sender that dies around the steps of another.
type deadly struct{ mail.Sender }

func (d deadly) Send(ctx context.Context, m mail.Message, last func(context.Context) error) error {
	if m.To != os.Getenv(childUser) {
		return d.Sender.Send(ctx, m, last)
	}
	dieAt("mail prepared")
	err := d.Sender.Send(ctx, m, func(ctx context.Context) error {
		dieAt("all but the last byte")
		err := last(ctx)
		dieAt("last byte noted")
		return err
	})
	if err == nil {
		dieAt("answered")
	}
	return err
}

// sendMails consumes events and runs the jobs that follow, until it is told to stop, or kills itself.
func sendMails() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pool, err := pgxpool.New(ctx, os.Getenv(childURL))
	if err != nil {
		return err
	}
	defer pool.Close()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	events, codec, err := openLog(ctx, pool, logger)
	if err != nil {
		return err
	}
	jobs, err := job.Open(pool, job.Config{}, logger)
	if err != nil {
		return err
	}
	tokens := account.NewTokens(secret)
	service, err := account.New(uow.NewManager(pool, events, codec, bus.New(logger)).WithJobs(jobs), pool, tokens)
	if err != nil {
		return err
	}
	smtp, err := mail.NewSMTP(os.Getenv(childSMTP))
	if err != nil {
		return err
	}
	post, err := mail.NewPost(mail.NewLedger(pool, deadly{smtp}, logger), publicURL)
	if err != nil {
		return err
	}
	notifier, err := account.NewNotifier(pool, post, tokens, publicURL)
	if err != nil {
		return err
	}
	mails, workers, err := deadlyHandlers(pool, service, notifier)
	if err != nil {
		return err
	}
	router, err := bus.NewRouter(codec, events, logger, watermill.NopLogger{})
	if err != nil {
		return err
	}
	queue, err := jobs.Subscriber(account.MailQueue, 1) // so no other mail is on its way when it dies
	if err != nil {
		return err
	}
	if err := errors.Join(router.Add(mails), router.AddQueue(account.MailQueue, queue, workers.Handler(), jobs, bus.Policy{})); err != nil {
		return err
	}
	return router.Run(ctx)
}

// deadlyHandlers are the handlers of the event and of the job, which die around what they do.
func deadlyHandlers(pool *pgxpool.Pool, service *account.Service, notifier *account.Notifier) (*bus.Consumer, *job.Workers, error) {
	mails, err := bus.NewConsumer("mails")
	if err != nil {
		return nil, nil, err
	}
	mine := func(ctx context.Context, userID any) bool {
		var email string
		err := pool.QueryRow(ctx, `SELECT email FROM users WHERE id = $1`, userID).Scan(&email)
		return err == nil && email == os.Getenv(childUser)
	}
	workers := job.NewWorkers()
	return mails, workers, errors.Join(
		bus.Handle(mails, func(ctx context.Context, e user.Registered) error {
			if !mine(ctx, e.UserID) {
				return service.MailVerification(ctx, e)
			}
			dieAt("event received")
			err := service.MailVerification(ctx, e)
			dieAt("job enqueued")
			return err
		}),
		job.Handle(workers, func(ctx context.Context, j account.VerificationEmail) error {
			if !mine(ctx, j.UserID) {
				return notifier.SendVerification(ctx, j)
			}
			dieAt("job taken")
			err := notifier.SendVerification(ctx, j)
			if err == nil {
				dieAt("noted")
				dieAt("completed")
			}
			return err
		}),
	)
}

func openLog(ctx context.Context, pool *pgxpool.Pool, logger *slog.Logger) (*postgres.Log, *bus.Codec, error) {
	catalogue, err := bus.NewCatalogue(bus.Define[user.Registered](1))
	if err != nil {
		return nil, nil, err
	}
	events, err := postgres.Open(pool, postgres.Config{}, logger)
	if err != nil {
		return nil, nil, err
	}
	err = events.Provision(ctx, catalogue.Topics(), []postgres.Subscription{{Consumer: "mails", Topic: "user"}})
	return events, bus.NewCodec(catalogue, "/postbus/test"), err
}

// TestKilledAnywhereTheMailIsThereOnce kills the process that sends a mail, at each step in turn between the event and the
// completion of the job, and starts it again. There is one mail, but where the server had taken it and nobody had noted
// that: there it is the same mail twice.
func TestKilledAnywhereTheMailIsThereOnce(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	url := pgtest.URL(t, account.Migrations(), mail.Migrations(), postgres.Migrations(postgres.DefaultSchema), job.Migrations(job.DefaultSchema))
	f := setUpOn(t, url)
	_, _, err := openLog(t.Context(), f.pool, slog.New(slog.DiscardHandler))
	must(t, err)
	post := openPostOffice(t)
	for i, step := range killSteps {
		email := fmt.Sprintf("user%d@example.org", i)
		f.register(email)
		child := startSending(t, url, post.address, step.name, email)
		var output bytes.Buffer
		child.Stderr = &output
		must(t, child.Start())
		post.expect(step.name, email, func() { _ = child.Process.Kill() })
		if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s: %v\n%s", step.name, err, output.String())
		}
		// The leases of what is gone have run out.
		f.exec(`WITH gone AS (DELETE FROM postbus.consumer_members),
				locked AS MATERIALIZED (SELECT FROM postbus.consumer_shares ORDER BY share FOR UPDATE)
			UPDATE postbus.consumer_shares SET lease_until = NULL, owner = NULL WHERE (SELECT count(*) FROM locked) > 0`)
		f.exec(`UPDATE postbus.job_workers SET lease_until = now() - interval '1 second'`)
	}
	last := startSending(t, url, post.address, "", "")
	var output bytes.Buffer
	last.Stderr = &output
	must(t, last.Start())
	for deadline := time.Now().Add(time.Minute); f.count(`SELECT count(*) FROM postbus.jobs WHERE state = 'completed'`) < len(killSteps); {
		<-time.After(10 * time.Millisecond) // it has no signal
		if time.Now().After(deadline) {
			t.Errorf("not all jobs are completed\n%s", f.dump())
			break
		}
	}
	must(t, last.Process.Signal(syscall.SIGTERM))
	if err := last.Wait(); err != nil {
		t.Errorf("%v\n%s", err, output.String())
	}
	for i, step := range killSteps {
		mails := post.of(fmt.Sprintf("user%d@example.org", i))
		if !slices.Contains(step.mails, len(mails)) {
			t.Errorf("killed at %q there are %d mails, want %d", step.name, len(mails), step.mails)
		}
		for _, m := range mails {
			if m != mails[0] || m.link == "" {
				t.Errorf("killed at %q the mails differ: %+v", step.name, mails)
			}
		}
	}
	if n := f.count(`SELECT count(*) FROM mail_ledger WHERE state = 'sent'`); n != len(killSteps) {
		t.Errorf("the ledger has %d as sent", n)
	}
	if n := f.count(`SELECT count(*) FROM postbus.jobs`); n != len(killSteps) {
		t.Errorf("%d jobs for %d events", n, len(killSteps))
	}
}

func startSending(t *testing.T, url, smtp, step, email string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childURL+"="+url, childSMTP+"=smtp://"+smtp, childStep+"="+step, childUser+"="+email)
	return cmd
}

// postOffice is a real SMTP server that keeps what it takes, and kills whoever talks to it when it was told to.
type postOffice struct {
	address string

	mu    sync.Mutex
	step  string
	email string
	kill  func()
	taken map[string][]taken
}

// taken is what tells one mail from another.
type taken struct{ id, link string }

func openPostOffice(t *testing.T) *postOffice {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &postOffice{address: listener.Addr().String(), taken: map[string][]taken{}}
	server := gosmtp.NewServer(gosmtp.BackendFunc(func(*gosmtp.Conn) (gosmtp.Session, error) { return &postSession{office: p}, nil }))
	server.Domain = "mail.test"
	server.ErrorLog = log.New(io.Discard, "", 0)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener) // ends with an error when it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		_ = listener.Close() // Close knows only a listener that Serve got to
		<-ended
	})
	return p
}

// expect has the process killed that comes to the step with a mail for the address.
func (p *postOffice) expect(step, email string, kill func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.email, p.kill = step, email, kill
}

// at kills if it is time to.
func (p *postOffice) at(step, email string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step != step || (email != "" && p.email != email) {
		return
	}
	p.step = ""
	p.kill()
}

func (p *postOffice) of(email string) []taken {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.taken[email])
}

type postSession struct {
	office *postOffice
	to     string
}

func (s *postSession) Mail(string, *gosmtp.MailOptions) error {
	s.office.at("server: MAIL", "")
	return nil
}

func (s *postSession) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	s.to = to
	s.office.at("server: RCPT", to)
	return nil
}

var (
	mailedLink = regexp.MustCompile(`https://post\.example/verify\?token=[A-Za-z0-9_-]{43}`)
	unwrapped  = strings.NewReplacer("=\r\n", "", "=\n", "", "=3D", "=") // enough of quoted-printable for a link
)

func (s *postSession) Data(r io.Reader) error {
	m, err := netmail.ReadMessage(r)
	if err != nil {
		return err // the other side is gone
	}
	body, err := io.ReadAll(m.Body)
	if err != nil {
		return err
	}
	s.office.mu.Lock()
	s.office.taken[s.to] = append(s.office.taken[s.to], taken{m.Header.Get("Message-Id"), mailedLink.FindString(unwrapped.Replace(string(body)))})
	s.office.mu.Unlock()
	s.office.at("server: last byte", s.to)
	return nil
}

func (s *postSession) Reset()        {}
func (s *postSession) Logout() error { return nil }
