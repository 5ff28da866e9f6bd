package user

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbus/internal/domain"
)

var (
	userID         = uuid.MustParse("0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")
	verificationID = uuid.MustParse("0198a1b2-c3d4-7e5f-8a9b-ffffffffffff")
	secondID       = uuid.MustParse("0198a1b2-c3d4-7e5f-8a9b-eeeeeeeeeeee")
	registeredAt   = time.Date(2026, 3, 29, 2, 30, 0, 123456000, time.FixedZone("CEST", 2*60*60))
	verifiedAt     = registeredAt.Add(time.Hour)
)

func TestRegisterRecordsRegistered(t *testing.T) {
	u := Register(userID, parse(t, "Anna@example.com"), verificationID, registeredAt)
	if u.ID() != userID || u.Address().String() != "Anna@example.com" || u.Verified() {
		t.Errorf("registered %+v", u.State())
	}
	recorded(t, u, Registered{UserID: userID, VerificationID: verificationID, RegisteredAt: registeredAt.UTC()})
}

func TestUnverifiedUser(t *testing.T) {
	u := Restore(State{ID: userID, Address: parse(t, "anna@example.com"), RegisteredAt: registeredAt})
	recorded(t, u)

	if err := u.RegisterAgain(); !errors.Is(err, ErrNotVerified) {
		t.Errorf("register again: %v, want ErrNotVerified", err)
	}
	for _, id := range []uuid.UUID{verificationID, secondID} {
		if err := u.RequestVerification(id); err != nil {
			t.Errorf("request verification: %v", err)
		}
	}
	if err := u.VerifyEmail(verifiedAt); err != nil {
		t.Errorf("verify email: %v", err)
	}
	recorded(t, u,
		VerificationRequested{UserID: userID, VerificationID: verificationID},
		VerificationRequested{UserID: userID, VerificationID: secondID},
		EmailVerified{UserID: userID, VerifiedAt: verifiedAt.UTC()},
	)
	if s := u.State(); !u.Verified() || !s.VerifiedAt.Equal(verifiedAt) || !s.RegisteredAt.Equal(registeredAt) {
		t.Errorf("verified %+v", s)
	}
}

func TestVerifiedUser(t *testing.T) {
	anna := parse(t, "anna@example.com")
	u := Restore(State{ID: userID, Address: anna, RegisteredAt: registeredAt, VerifiedAt: verifiedAt})
	before := u.State()

	if err := u.RequestVerification(verificationID); !errors.Is(err, ErrAlreadyVerified) {
		t.Errorf("request verification: %v, want ErrAlreadyVerified", err)
	}
	if err := u.VerifyEmail(verifiedAt.Add(time.Hour)); !errors.Is(err, ErrAlreadyVerified) {
		t.Errorf("verify email: %v, want ErrAlreadyVerified", err)
	}
	recorded(t, u)
	if err := u.RegisterAgain(); err != nil {
		t.Errorf("register again: %v", err)
	}
	recorded(t, u, RegistrationRepeated{UserID: userID})
	if u.State() != before {
		t.Errorf("the user changed from %+v to %+v", before, u.State())
	}
}

func TestRestoreGivesTheState(t *testing.T) {
	for _, s := range []State{
		{ID: userID, Address: parse(t, "anna@example.com"), RegisteredAt: registeredAt.UTC()},
		{ID: userID, Address: parse(t, "anna@example.com"), RegisteredAt: registeredAt.UTC(), VerifiedAt: verifiedAt.UTC()},
	} {
		if got := Restore(s).State(); got != s {
			t.Errorf("restored %+v, want %+v", got, s)
		}
	}
}

// recorded takes what u has recorded and compares it.
func recorded(t *testing.T, u domain.Source, want ...domain.Event) {
	t.Helper()
	got := u.Recorded().Take()
	if len(got) == 0 && len(want) == 0 {
		return
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("recorded %+v, want %+v", got, want)
	}
}
