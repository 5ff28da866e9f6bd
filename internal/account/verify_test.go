package account_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postbus/internal/account"
	"postbus/internal/bus"
	"postbus/internal/domain/user"
	"postbus/internal/uow"
)

func TestVerify(t *testing.T) {
	f := setUp(t)
	token := f.registered("anna@example.com")
	other := f.registered("bob@example.com")

	before := f.dump()
	for range 3 {
		f.inspect(token, account.LinkOpen)
	}
	if f.dump() != before {
		t.Error("to inspect a link changed the database")
	}
	f.verify(token, account.LinkVerified)
	f.wantEvents("registered", "registered", "email_verified")
	var state struct {
		email         string
		at            time.Time
		recent, equal bool
	}
	f.scan([]any{&state.email, &state.at, &state.recent, &state.equal}, `
		SELECT email, verified_at, verified_at BETWEEN now() - interval '1 minute' AND now(), verified_at = used_at
		FROM users u JOIN email_verifications v ON v.user_id = u.id WHERE verified_at IS NOT NULL`)
	if state.email != "anna@example.com" || !state.recent || !state.equal {
		t.Errorf("verified %+v", state)
	}
	if got := lastEvent[user.EmailVerified](f); !got.VerifiedAt.Equal(state.at) {
		t.Errorf("the event says %s, the user %s", got.VerifiedAt, state.at)
	}

	after := f.dump()
	f.verify(token, account.LinkUsed)
	f.inspect(token, account.LinkUsed)
	if f.dump() != after {
		t.Error("a used link changed the database")
	}
	f.inspect(other, account.LinkOpen)
}

func TestVerifyUnknownToken(t *testing.T) {
	f := setUp(t)
	f.register("anna@example.com")
	before := f.dump()
	for _, token := range []account.Token{{}, {1, 2, 3}, account.NewTokens(make([]byte, 32)).For([16]byte{1})} {
		f.inspect(token, account.LinkUnknown)
		f.verify(token, account.LinkUnknown)
	}
	if f.dump() != before {
		t.Error("an unknown token changed the database")
	}
}

func TestVerifyExpired(t *testing.T) {
	f := setUp(t)
	token := f.registered("anna@example.com")
	f.letPass(24*time.Hour - time.Minute)
	f.inspect(token, account.LinkOpen)
	f.letPass(time.Minute)
	before := f.dump()
	f.inspect(token, account.LinkExpired)
	f.verify(token, account.LinkExpired)
	if f.dump() != before {
		t.Error("an expired link changed the database")
	}
	f.wantEvents("registered")

	f.resend("anna@example.com")
	f.verify(f.lastToken(), account.LinkVerified)
	f.inspect(token, account.LinkUsed) // nothing left to worry about
	f.verify(token, account.LinkUsed)
	f.wantEvents("registered", "verification_requested", "email_verified")
}

func TestVerifyByAnotherLink(t *testing.T) {
	f := setUp(t)
	first := f.registered("anna@example.com")
	f.letPass(time.Minute)
	f.resend("anna@example.com")
	second := f.lastToken()

	f.verify(first, account.LinkVerified)
	f.inspect(second, account.LinkUsed)
	f.verify(second, account.LinkUsed)
	f.verify(second, account.LinkUsed)
	f.wantEvents("registered", "verification_requested", "email_verified")
}

func TestVerifyDeletedUser(t *testing.T) {
	f := setUp(t)
	token := f.registered("anna@example.com")
	f.exec(`DELETE FROM users`)
	f.inspect(token, account.LinkUnknown)
	f.verify(token, account.LinkUnknown)
	if f.count(`SELECT count(*) FROM email_verifications`) != 0 {
		t.Error("the verifications of a deleted user are still there")
	}
}

func TestFiftySimultaneousVerifications(t *testing.T) {
	f := setUp(t)
	token := f.registered("anna@example.com")
	var verified, used atomic.Int32
	together(50, func(int) {
		state, err := f.service.Verify(t.Context(), token)
		switch {
		case err != nil:
			t.Errorf("verify: %v", err)
		case state == account.LinkVerified:
			verified.Add(1)
		case state == account.LinkUsed:
			used.Add(1)
		}
	})
	if verified.Load() != 1 || used.Load() != 49 {
		t.Errorf("verified %d times and used %d times, want 1 and 49", verified.Load(), used.Load())
	}
	f.wantEvents("registered", "email_verified")
}

// Several links of one user at once, too: one of them verifies.
func TestSimultaneousLinksOfOneUser(t *testing.T) {
	f := setUp(t)
	tokens := []account.Token{f.registered("anna@example.com")}
	for range 3 {
		f.letPass(time.Minute)
		f.resend("anna@example.com")
		tokens = append(tokens, f.lastToken())
	}
	var verified atomic.Int32
	together(4*len(tokens), func(i int) {
		state, err := f.service.Verify(t.Context(), tokens[i%len(tokens)])
		if err != nil || state != account.LinkVerified && state != account.LinkUsed {
			t.Errorf("verify: %v, %v", state, err)
		}
		if state == account.LinkVerified {
			verified.Add(1)
		}
	})
	if verified.Load() != 1 {
		t.Errorf("verified %d times, want once", verified.Load())
	}
	again := "verification_requested"
	f.wantEvents("registered", again, again, again, "email_verified")
}

// All that write wait for the user's row before they have locked anything else of the user, so none of them can be in
// another's way.
func TestLocksAreTakenInOneOrder(t *testing.T) {
	f := setUp(t)
	token := f.registered("anna@example.com")
	f.letPass(time.Minute)
	anna := address(t, "anna@example.com")
	calls := []func(ctx context.Context) error{
		func(ctx context.Context) error { _, err := f.service.Verify(ctx, token); return err },
		func(ctx context.Context) error { return f.service.Resend(ctx, anna) },
		func(ctx context.Context) error { return f.service.Register(ctx, anna) },
	}
	release := f.hold(`SELECT FROM users FOR UPDATE`)
	f.trace.take()
	done := make(chan error, len(calls))
	for _, call := range calls {
		go func() { done <- call(t.Context()) }()
	}
	f.untilWaiting(len(calls))
	f.exec(`SELECT FROM email_verifications FOR UPDATE NOWAIT`) // fails when one of those who wait holds a verification
	release()
	for range calls {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, codes := f.trace.take(); len(codes) != 0 {
		t.Errorf("SQLSTATEs %q, want no deadlock", codes)
	}
}

// A failing in-process handler does not undo what has been committed, and the caller can tell.
func TestVerifyWithAFailingHandler(t *testing.T) {
	f := setUp(t)
	token := f.registered("anna@example.com")
	broken := errors.New("broken")
	must(t, bus.Register(f.bus, "broken", func(context.Context, user.EmailVerified) error { return broken }))

	state, err := f.service.Verify(t.Context(), token)
	var dispatch *uow.DispatchError
	if state != account.LinkVerified || !errors.As(err, &dispatch) || !errors.Is(err, broken) {
		t.Errorf("verify: %v, %v; want LinkVerified with a DispatchError", state, err)
	}
	f.inspect(token, account.LinkUsed)
}

func TestVerifyThatFailsConsumesNothing(t *testing.T) {
	f := setUp(t)
	token := f.registered("anna@example.com")
	f.exec(`ALTER TABLE postbus.topic_user ADD CONSTRAINT full_disk CHECK (false) NOT VALID`)
	if state, err := f.service.Verify(t.Context(), token); err == nil || state != account.LinkUnknown {
		t.Errorf("verify: %v, %v; want an error", state, err)
	}
	f.exec(`ALTER TABLE postbus.topic_user DROP CONSTRAINT full_disk`)
	f.inspect(token, account.LinkOpen)
	f.verify(token, account.LinkVerified)
}

// Whoever reads the database, or a copy of it, finds no link and no secret in it, and no address in the log.
func TestTheDatabaseHasNoToken(t *testing.T) {
	f := setUp(t)
	tokens := []account.Token{f.registered("anna@example.com")}
	must(t, f.consume())
	f.letPass(time.Minute)
	f.resend("anna@example.com")
	must(t, f.consume())
	tokens = append(tokens, f.lastToken())
	f.verify(tokens[0], account.LinkVerified)
	must(t, f.consume())
	f.register("anna@example.com")
	must(t, f.consume())
	f.wantEvents("registered", "verification_requested", "email_verified", "registration_repeated")
	if n := f.count(`SELECT count(*) FROM postbus.jobs`); n != 4 {
		t.Errorf("%d jobs of mails", n)
	}

	dump := strings.ToLower(f.dump())
	if !strings.Contains(dump, "anna@example.com") || !strings.Contains(dump, hex.EncodeToString([]byte(`"user_id"`))) {
		t.Fatal("the dump has not the rows that it is searched for")
	}
	hidden := map[string]string{"secret key": string(secret)}
	for _, token := range tokens {
		hidden["token "+token.Encode()[:4]] = token.Encode()
		hidden["raw token "+token.Encode()[:4]] = string(token[:])
		hidden["standard base64 of token "+token.Encode()[:4]] = base64.StdEncoding.EncodeToString(token[:])
	}
	for name, text := range hidden {
		for _, form := range []string{text, hex.EncodeToString([]byte(text))} {
			if strings.Contains(dump, strings.ToLower(form)) {
				t.Errorf("the database has the %s in the clear", name)
			}
		}
	}
	for line := range strings.Lines(dump) {
		for _, personal := range []string{"anna", hex.EncodeToString([]byte("anna"))} {
			if strings.HasPrefix(line, "postbus.") && strings.Contains(line, personal) {
				t.Errorf("the log has the address: %s", line)
			}
		}
	}
}
