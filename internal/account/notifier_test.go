package account_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbus/internal/account"
	"postbus/internal/domain"
	"postbus/internal/domain/user"
	"postbus/internal/job"
)

// outbox is Mails that keeps what it is given, or fails.
type outbox struct {
	sent []sent
	err  error
}

type sent struct{ kind, to, link, key string }

func (o *outbox) keep(s sent) error {
	if o.err == nil {
		o.sent = append(o.sent, s)
	}
	return o.err
}

func (o *outbox) Verification(_ context.Context, to, link, key string) error {
	return o.keep(sent{"verification", to, link, key})
}

func (o *outbox) Welcome(_ context.Context, to, key string) error {
	return o.keep(sent{kind: "welcome", to: to, key: key})
}

func (o *outbox) AlreadyRegistered(_ context.Context, to, key string) error {
	return o.keep(sent{kind: "already registered", to: to, key: key})
}

func (f *fixture) notifier(mails account.Mails) *account.Notifier {
	f.t.Helper()
	n, err := account.NewNotifier(f.pool, mails, f.tokens, publicURL+"/")
	must(f.t, err)
	return n
}

// consume gives the latest event of the log to its consumer's handler, as the bus would.
func (f *fixture) consume() error {
	f.t.Helper()
	events := f.events()
	last := events[len(events)-1]
	ctx := domain.WithCause(f.t.Context(), domain.Cause{EventID: last.ID, Consumer: "mails", Correlation: "visit"})
	switch last.Type {
	case "user.registered":
		return f.service.MailVerification(ctx, lastEvent[user.Registered](f))
	case "user.verification_requested":
		return f.service.MailFurtherVerification(ctx, lastEvent[user.VerificationRequested](f))
	case "user.registration_repeated":
		return f.service.MailRepeatedRegistration(ctx, lastEvent[user.RegistrationRepeated](f))
	case "user.email_verified":
		return f.service.MailWelcome(ctx, lastEvent[user.EmailVerified](f))
	}
	f.t.Fatalf("no handler for %s", last.Type)
	return nil
}

// work gives the latest job to the notifier, as the work table would.
func (f *fixture) work(n *account.Notifier) error {
	f.t.Helper()
	var kind, args string
	f.scan([]any{&kind, &args}, `SELECT kind, args FROM postbus.jobs ORDER BY sequence DESC LIMIT 1`)
	switch kind {
	case "verification-email":
		return n.SendVerification(f.t.Context(), argsOf[account.VerificationEmail](f, args))
	case "repeated-registration-email":
		return n.SendRepeatedRegistration(f.t.Context(), argsOf[account.RepeatedRegistrationEmail](f, args))
	case "welcome-email":
		return n.SendWelcome(f.t.Context(), argsOf[account.WelcomeEmail](f, args))
	}
	f.t.Fatalf("no handler for %s", kind)
	return nil
}

func argsOf[A job.Args](f *fixture, encoded string) (args A) {
	f.t.Helper()
	decoder := json.NewDecoder(strings.NewReader(encoded))
	decoder.DisallowUnknownFields()
	must(f.t, decoder.Decode(&args))
	return args
}

// handle goes both steps of a mail for the latest event.
func (f *fixture) handle(n *account.Notifier) error {
	f.t.Helper()
	must(f.t, f.consume())
	return f.work(n)
}

func TestMailsOfAUsersLife(t *testing.T) {
	f := setUp(t)
	mails := &outbox{}
	n := f.notifier(mails)
	step := func(kind string) sent {
		t.Helper()
		mails.sent = nil
		must(t, f.handle(n))
		must(t, f.handle(n)) // a delivery of either may be repeated
		if len(mails.sent) != 2 || mails.sent[0] != mails.sent[1] {
			t.Fatalf("sent %+v, want one mail twice", mails.sent)
		}
		events := f.events()
		got := mails.sent[0]
		if got.kind != kind || got.to != "Anna@xn--bcher-kva.example" || got.key != events[len(events)-1].ID.String() {
			t.Errorf("sent %+v, want %s to the address as typed, with the event's id", got, kind)
		}
		return got
	}
	tokenOf := func(m sent) account.Token {
		t.Helper()
		text, found := strings.CutPrefix(m.link, "https://post.example/verify?token=")
		if !found {
			t.Fatalf("the link begins otherwise: %s", m.link)
		}
		token, err := account.ParseToken(text)
		must(t, err)
		return token
	}

	f.register("Anna@Bücher.example")
	first := tokenOf(step("verification"))
	f.letPass(time.Minute)
	f.resend("anna@bücher.example")
	second := tokenOf(step("verification"))
	f.inspect(first, account.LinkOpen)
	f.verify(second, account.LinkVerified)
	step("welcome")
	f.register("anna@bücher.example")
	step("already registered")
}

// TestMailIsEnqueuedOnce: for each event one job, in the queue of mails, that knows what it follows from; also when the
// consumer was moved back, while there is one.
func TestMailIsEnqueuedOnce(t *testing.T) {
	f := setUp(t)
	f.register("anna@example.com")
	for range 3 {
		must(t, f.consume())
	}
	id := f.events()[0].ID.String()
	want := "verification-email outgoing-mail " + id + " visit"
	row := `SELECT kind || ' ' || queue || ' ' || (metadata::json->>'causationid') || ' ' || (metadata::json->>'correlationid')
		FROM postbus.jobs`
	var got string
	f.scan([]any{&got}, row)
	if n := f.count(`SELECT count(*) FROM postbus.jobs`); n != 1 || got != want {
		t.Errorf("%d jobs, %q, want one, %q", n, got, want)
	}
	f.exec(`DELETE FROM postbus.inbox`)
	must(t, f.consume())
	if n := f.count(`SELECT count(*) FROM postbus.jobs`); n != 1 {
		t.Errorf("%d jobs", n)
	}
	f.exec(`UPDATE postbus.jobs SET state = 'completed', finalized_at = now()`)
	f.exec(`DELETE FROM postbus.inbox`)
	must(t, f.consume())
	if n := f.count(`SELECT count(DISTINCT args::json->>'event_id') FROM postbus.jobs`); n != 1 {
		t.Errorf("the jobs of one event are of %d mails", n)
	}
}

// A mail that has lost its sense is not sent, and the job is done.
func TestMailsThatAreNotSent(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(f *fixture)
		then    string
	}{
		{"expired", func(f *fixture) { f.register("a@example.com"); f.letPass(24 * time.Hour) }, ""},
		{"used", func(f *fixture) { f.register("a@example.com") }, `UPDATE email_verifications SET used_at = now()`},
		{"verified by another link", func(f *fixture) { f.register("a@example.com") }, `UPDATE users SET verified_at = now()`},
		{"verification gone", func(f *fixture) { f.register("a@example.com") }, `DELETE FROM email_verifications`},
		{"user gone before the verification", func(f *fixture) { f.register("a@example.com") }, `DELETE FROM users`},
		{"user gone before the welcome", func(f *fixture) { f.verified("a@example.com") }, `DELETE FROM users`},
		{"user gone before the notice", func(f *fixture) {
			f.verified("a@example.com")
			f.register("a@example.com")
		}, `DELETE FROM users`},
		{"resent and expired", func(f *fixture) {
			f.register("a@example.com")
			f.letPass(time.Minute)
			f.resend("a@example.com")
			f.letPass(24 * time.Hour)
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := setUp(t)
			mails := &outbox{}
			tt.prepare(f)
			if tt.then != "" {
				f.exec(tt.then)
			}
			if err := f.handle(f.notifier(mails)); err != nil {
				t.Errorf("handle: %v", err)
			}
			if len(mails.sent) != 0 {
				t.Errorf("sent %+v", mails.sent)
			}
		})
	}
}

func TestMailsThatFail(t *testing.T) {
	f := setUp(t)
	refused := errors.New("refused")
	n := f.notifier(&outbox{err: refused})
	f.register("anna@example.com")
	if err := f.handle(n); !errors.Is(err, refused) {
		t.Errorf("verification: %v, want the sender's error", err)
	}
	f.verify(f.lastToken(), account.LinkVerified)
	if err := f.handle(n); !errors.Is(err, refused) {
		t.Errorf("welcome: %v, want the sender's error", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.SendWelcome(ended, account.WelcomeEmail{EventID: uuid.Max}); !errors.Is(err, context.Canceled) {
		t.Errorf("without a database: %v, want an error so that the job is tried again", err)
	}
}

// Two programs with different keys: the mail waits until they agree, since its link would lead nowhere.
func TestVerificationWaitsForTheRightKey(t *testing.T) {
	f := setUp(t)
	mails := &outbox{}
	other, err := account.NewNotifier(f.pool, mails, account.NewTokens([]byte("another key of at least 32 bytes!")), publicURL)
	must(t, err)
	wrong := func() {
		t.Helper()
		if err := f.handle(other); !errors.Is(err, account.ErrSecretDiffers) || len(mails.sent) != 0 {
			t.Errorf("with another key: %v and %+v, want ErrSecretDiffers and no mail", err, mails.sent)
		}
	}
	f.register("anna@example.com")
	wrong()
	f.letPass(time.Minute)
	f.resend("anna@example.com")
	wrong()
	must(t, f.handle(f.notifier(mails)))
	if want := publicURL + "/verify?token=" + f.lastToken().Encode(); len(mails.sent) != 1 || mails.sent[0].link != want {
		t.Errorf("with the right key: %+v, want one mail with the link", mails.sent)
	}
	f.exec(`UPDATE email_verifications SET used_at = now()`)
	must(t, f.handle(other)) // a mail that is not needed any more waits for nothing
}

func TestHandlersNeedAnEvent(t *testing.T) {
	f := setUp(t)
	mails := &outbox{}
	n := f.notifier(mails)
	f.verified("anna@example.com")
	for name, err := range map[string]error{
		"registered":        f.service.MailVerification(t.Context(), user.Registered{}),
		"requested":         f.service.MailFurtherVerification(t.Context(), user.VerificationRequested{}),
		"repeated":          f.service.MailRepeatedRegistration(t.Context(), user.RegistrationRepeated{}),
		"verified":          f.service.MailWelcome(t.Context(), lastEvent[user.EmailVerified](f)),
		"verification mail": n.SendVerification(t.Context(), account.VerificationEmail{}),
		"notice":            n.SendRepeatedRegistration(t.Context(), account.RepeatedRegistrationEmail{}),
		"welcome mail":      n.SendWelcome(t.Context(), account.WelcomeEmail{}),
	} {
		if !errors.Is(err, account.ErrNoEvent) {
			t.Errorf("%s: %v, want ErrNoEvent", name, err)
		}
	}
	if jobs := f.count(`SELECT count(*) FROM postbus.jobs`); len(mails.sent) != 0 || jobs != 0 {
		t.Errorf("sent %+v, %d jobs", mails.sent, jobs)
	}
}

func TestNewNotifierRefuses(t *testing.T) {
	tokens := account.NewTokens(secret)
	for _, url := range []string{
		"", "example.com", "//example.com", "ftp://example.com", "https://", "https://:8080", "https://example.com?x=1",
		"https://example.com?", "https://example.com/#x", "https://user:word@example.com", "https://exa mple.com",
		"javascript:alert(1)",
	} {
		if _, err := account.NewNotifier(nil, nil, tokens, url); !errors.Is(err, account.ErrPublicURL) {
			t.Errorf("%q: %v, want ErrPublicURL", url, err)
		}
	}
	for _, url := range []string{"http://127.0.0.1:8080", "http://[::1]:8080", publicURL, publicURL + "/"} {
		if _, err := account.NewNotifier(nil, nil, tokens, url); err != nil {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := account.NewNotifier(nil, nil, account.Tokens{}, publicURL); !errors.Is(err, account.ErrSecretShort) {
		t.Errorf("without a key: %v, want ErrSecretShort", err)
	}
}
