package account_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"postbus/internal/account"
	"postbus/internal/domain/user"
)

func TestNewRefusesAShortSecret(t *testing.T) {
	for _, tokens := range []account.Tokens{{}, account.NewTokens(nil), account.NewTokens(make([]byte, 31))} {
		if _, err := account.New(nil, nil, tokens); !errors.Is(err, account.ErrSecretShort) {
			t.Errorf("error %v, want ErrSecretShort", err)
		}
	}
	if _, err := account.New(nil, nil, account.NewTokens(make([]byte, 32))); err != nil {
		t.Errorf("a key of 32 bytes is refused: %v", err)
	}
}

func TestRegisterUnknownAddress(t *testing.T) {
	f := setUp(t)
	f.register(" Anna.Smit@Bücher.Example ")

	var userID, verificationID uuid.UUID
	var email, canonical string
	var registeredAt time.Time
	var verified, recent, day bool
	f.scan([]any{&userID, &email, &canonical, &registeredAt, &verified, &verificationID, &recent, &day}, `
		SELECT u.id, u.email, u.email_canonical, u.registered_at, u.verified_at IS NOT NULL, v.id,
			u.registered_at BETWEEN now() - interval '1 minute' AND now() AND v.created_at = u.registered_at,
			v.expires_at - v.created_at = interval '24 hours' AND v.used_at IS NULL
		FROM users u JOIN email_verifications v ON v.user_id = u.id`)
	if email != "Anna.Smit@xn--bcher-kva.example" || canonical != "anna.smit@xn--bcher-kva.example" {
		t.Errorf("stored %q and %q", email, canonical)
	}
	if verified || !recent || !day {
		t.Errorf("verified %v, times by the database's clock %v, open for 24 hours %v", verified, recent, day)
	}
	if userID.Version() != 7 || verificationID.Version() != 7 {
		t.Errorf("ids of versions %d and %d, want 7", userID.Version(), verificationID.Version())
	}

	f.wantEvents("registered")
	want := user.Registered{UserID: userID, VerificationID: verificationID, RegisteredAt: registeredAt.UTC()}
	if got := lastEvent[user.Registered](f); got != want {
		t.Errorf("event %+v, want %+v", got, want)
	}
	if key := f.events()[0].Key; key != userID.String() {
		t.Errorf("the event's key is %q, want the user's id", key)
	}
}

func TestRegisterUnverifiedAddress(t *testing.T) {
	f := setUp(t)
	first := f.registered("Anna@example.com")
	f.letPass(time.Minute)
	f.register("ANNA@EXAMPLE.COM")

	f.wantEvents("registered", "verification_requested")
	var email string
	f.scan([]any{&email}, `SELECT email FROM users`)
	if email != "Anna@example.com" {
		t.Errorf("mail goes to %q, want the address as it was typed first", email)
	}
	second := f.lastToken()
	if first == second {
		t.Error("the second verification has the first one's token")
	}
	var verificationID uuid.UUID
	f.scan([]any{&verificationID}, `SELECT id FROM email_verifications ORDER BY id DESC LIMIT 1`)
	if got := lastEvent[user.VerificationRequested](f); got.VerificationID != verificationID {
		t.Errorf("the event names verification %s, want %s", got.VerificationID, verificationID)
	}
	f.inspect(first, account.LinkOpen) // a mail that is late still serves
	f.inspect(second, account.LinkOpen)
}

func TestRegisterVerifiedAddress(t *testing.T) {
	f := setUp(t)
	f.verified("anna@example.com")
	f.letPass(24 * time.Hour)

	for range 3 { // one mail, however often it is tried
		f.register("Anna@example.com")
	}
	f.letPass(time.Hour - time.Minute)
	f.register("anna@example.com")
	f.wantEvents("registered", "email_verified", "registration_repeated")
	f.letPass(time.Minute)
	f.register("anna@example.com")
	f.wantEvents("registered", "email_verified", "registration_repeated", "registration_repeated")

	if n := f.count(`SELECT count(*) FROM users JOIN email_verifications ON user_id = users.id`); n != 1 {
		t.Errorf("%d users with a verification each, want one", n)
	}
	if f.count(`SELECT count(*) FROM users WHERE verified_at IS NOT NULL`) != 1 {
		t.Error("the user is not verified any more")
	}
}

func TestResend(t *testing.T) {
	f := setUp(t)
	f.resend("anna@example.com")
	if f.count(`SELECT count(*) FROM users`) != 0 {
		t.Error("an unknown address was registered")
	}
	f.wantEvents()

	f.register("anna@example.com")
	f.letPass(time.Minute)
	f.resend("ANNA@example.com")
	f.wantEvents("registered", "verification_requested")

	f.verify(f.lastToken(), account.LinkVerified)
	f.letPass(time.Hour)
	f.resend("anna@example.com")
	f.wantEvents("registered", "verification_requested", "email_verified")
}

// One address is sent one verification mail a minute, five an hour, twenty a day, whoever asks and by which way.
func TestVerificationLimits(t *testing.T) {
	for name, ask := range map[string]func(f *fixture){
		"register": func(f *fixture) { f.register("anna@example.com") },
		"resend":   func(f *fixture) { f.resend("Anna@Example.com") },
	} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			f.register("anna@example.com")
			mails := func() int { return len(f.events()) }
			want := func(n int, when string) {
				t.Helper()
				if got := mails(); got != n {
					t.Fatalf("%s: %d mails, want %d", when, got, n)
				}
				if got := f.count(`SELECT count(*) FROM email_verifications`); got != n {
					t.Fatalf("%s: %d verifications, want %d", when, got, n)
				}
			}
			ask(f)
			want(1, "at once")
			f.letPass(30 * time.Second) // far from the minute, for machines that are slow
			ask(f)
			want(1, "before a minute has passed")
			f.letPass(30 * time.Second)
			ask(f)
			want(2, "after a minute")
			for range 10 {
				f.letPass(time.Minute)
				ask(f)
			}
			want(5, "within the first hour")
			for hour := 2; hour <= 4; hour++ {
				f.letPass(time.Hour)
				for range 10 {
					ask(f)
					f.letPass(time.Minute)
				}
			}
			want(20, "within four hours")
			f.letPass(10 * time.Hour)
			ask(f)
			want(20, "within the day")
			f.letPass(11 * time.Hour)
			ask(f)
			want(21, "when the first ones are a day old")
		})
	}
}

// The limits are an address's own.
func TestLimitsDoNotReachOthers(t *testing.T) {
	f := setUp(t)
	f.register("anna@example.com")
	f.register("anna@example.com")
	f.register("bob@example.com")
	f.wantEvents("registered", "registered")
}

// What tells known and unknown addresses apart is not the work: Register sends the same statements for each, in one
// transaction with one event.
func TestRegisterDoesTheSameWork(t *testing.T) {
	f := setUp(t)
	f.verified("verified@example.com")
	f.register("unverified@example.com")
	f.letPass(time.Hour)

	for _, email := range []string{"unknown@example.com", "unverified@example.com", "verified@example.com"} {
		before := len(f.events())
		f.trace.take()
		f.register(email)
		statements, codes := f.trace.take()
		if events := len(f.events()) - before; events != 1 {
			t.Errorf("%s: %d events, want 1", email, events)
		}
		for i, s := range statements {
			if s == "UPDATE" { // the verified user's note is an UPDATE where the others' verification is an INSERT
				statements[i] = "INSERT"
			}
		}
		if want := []string{"begin", "INSERT", "INSERT", "INSERT", "commit"}; !slices.Equal(statements, want) {
			t.Errorf("%s: the statements are %q, want %q", email, statements, want)
		}
		if len(codes) != 0 {
			t.Errorf("%s: SQLSTATEs %q", email, codes)
		}
	}
}

func TestSimultaneousRegistrations(t *testing.T) {
	f := setUp(t)
	spellings := []string{"anna@example.com", "Anna@Example.com", "ANNA@EXAMPLE.COM"}
	together(24, func(i int) {
		if err := f.service.Register(t.Context(), address(t, spellings[i%len(spellings)])); err != nil {
			t.Errorf("register: %v", err)
		}
	})
	if n := f.count(`SELECT count(*) FROM users`); n != 1 {
		t.Errorf("%d users, want 1", n)
	}
	f.wantEvents("registered")
}

// Counting is exact also when nobody who counts has committed: the log is locked, so that each call gets as far as it can
// before another ends.
func TestSimultaneousRequestsCountEachOther(t *testing.T) {
	f := setUp(t)
	f.register("anna@example.com")
	f.letPass(time.Minute)
	anna := address(t, "anna@example.com")
	release := f.hold(`LOCK TABLE postbus.topic_user IN SHARE MODE`)
	calls := []func(context.Context, user.Address) error{f.service.Resend, f.service.Register, f.service.Resend}
	done := make(chan error, len(calls))
	for _, call := range calls {
		go func() { done <- call(t.Context(), anna) }()
	}
	f.untilWaiting(len(calls))
	release()
	for range calls {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	f.wantEvents("registered", "verification_requested")
}

// The second of two registrations of a new address arrives at the index while the first has not committed.
func TestRegisterWaitsForTheOtherRegistration(t *testing.T) {
	for name, tt := range map[string]struct {
		last   string
		events []string
	}{
		"the other succeeds": {`SELECT`, nil}, // within the minute: no second mail
		"the other fails":    {`DELETE FROM users`, []string{"registered"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			release := f.hold(
				`INSERT INTO users (id, email, email_canonical) VALUES (gen_random_uuid(), 'a@example.com', 'a@example.com')`,
				`INSERT INTO email_verifications (id, user_id, token_hash, expires_at)
					SELECT gen_random_uuid(), id, sha256('x'), now() + interval '1 hour' FROM users`,
				tt.last)
			done := make(chan error, 1)
			go func() { done <- f.service.Register(t.Context(), address(t, "A@example.com")) }()
			f.untilWaiting(1)
			release()
			must(t, <-done)
			f.wantEvents(tt.events...)
			if n := f.count(`SELECT count(*) FROM users`); n != 1 {
				t.Errorf("%d users, want 1", n)
			}
		})
	}
}

// Rows and events come together or not at all.
func TestRegisterLeavesNothingBehind(t *testing.T) {
	f := setUp(t)
	f.exec(`ALTER TABLE postbus.topic_user ADD CONSTRAINT full_disk CHECK (false)`)
	err := f.service.Register(t.Context(), address(t, "anna@example.com"))
	if err == nil || strings.Contains(err.Error(), "anna") {
		t.Errorf("error %v, want one without the address", err)
	}
	if f.count(`SELECT count(*) FROM users`) != 0 || f.count(`SELECT count(*) FROM email_verifications`) != 0 {
		t.Error("rows were stored without their event")
	}
}

func TestTheZeroAddressIsNoUser(t *testing.T) {
	f := setUp(t)
	if err := f.service.Register(t.Context(), user.Address{}); err == nil {
		t.Error("the zero address was registered")
	}
	if f.count(`SELECT count(*) FROM users`) != 0 {
		t.Error("the zero address is stored")
	}
}

// Without a database every call fails, and says so.
func TestWithoutADatabase(t *testing.T) {
	f := setUp(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	anna := address(t, "anna@example.com")
	for name, call := range map[string]func() error{
		"register": func() error { return f.service.Register(ctx, anna) },
		"resend":   func() error { return f.service.Resend(ctx, anna) },
		"inspect":  func() error { _, err := f.service.Inspect(ctx, account.Token{}); return err },
		"verify":   func() error { _, err := f.service.Verify(ctx, account.Token{}); return err },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want an error that is context.Canceled", name, err)
		}
	}
}

// The tables refuse what the code should never write, whoever writes it.
func TestConstraints(t *testing.T) {
	f := setUp(t)
	f.register("anna@example.com")
	const (
		insertUser = `INSERT INTO users (id, email, email_canonical) VALUES (gen_random_uuid(), `
		insertLink = `INSERT INTO email_verifications (id, user_id, token_hash, expires_at) SELECT gen_random_uuid(), id, `
	)
	for name, tt := range map[string]struct{ sql, constraint string }{
		"empty address":  {insertUser + `'', 'a@b.nl')`, "users_email_check"},
		"long address":   {insertUser + `repeat('a', 255), 'a@b.nl')`, "users_email_check"},
		"long key":       {insertUser + `'a@b.nl', repeat('a', 255))`, "users_email_canonical_check"},
		"upper-case key": {insertUser + `'a@b.nl', 'A@b.nl')`, "users_email_canonical_check"},
		"key twice":      {insertUser + `'a@b.nl', 'anna@example.com')`, "users_email_canonical_key"},
		"short hash":     {insertLink + `'x', now() + interval '1 hour' FROM users`, "email_verifications_token_hash_check"},
		"never open":     {insertLink + `sha256('x'), now() FROM users`, "email_verifications_check"},
		"hash twice": {
			insertLink + `v.token_hash, now() + interval '1 hour'
				FROM users CROSS JOIN (SELECT token_hash FROM email_verifications) v`,
			"email_verifications_token_hash_key",
		},
	} {
		_, err := f.pool.Exec(t.Context(), tt.sql)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.ConstraintName != tt.constraint {
			t.Errorf("%s: %v, want a violation of %s", name, err, tt.constraint)
		}
	}
}

func TestLinkStateNames(t *testing.T) {
	for state, want := range map[account.LinkState]string{
		account.LinkUnknown: "unknown", account.LinkOpen: "open", account.LinkVerified: "verified",
		account.LinkUsed: "used", account.LinkExpired: "expired", 99: "LinkState(99)",
	} {
		if got := state.String(); got != want {
			t.Errorf("state %d is %q, want %q", int(state), got, want)
		}
	}
}
