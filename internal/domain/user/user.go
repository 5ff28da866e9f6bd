package user

import (
	"time"

	"github.com/google/uuid"

	"postbus/internal/domain"
)

// User is the aggregate. It records what happens to it; whoever changes it lets a Unit of Work track it. It is not safe
// for concurrent use: a transaction has its own, and the row's lock is what keeps two of them apart.
type User struct {
	id           uuid.UUID
	address      Address
	registeredAt time.Time
	verifiedAt   time.Time // zero until verified
	events       domain.Recorder
}

// State is a user as it is stored.
type State struct {
	ID           uuid.UUID
	Address      Address
	RegisteredAt time.Time
	VerifiedAt   time.Time // zero for a user who is not verified
}

// Register makes a new, unverified user whose address is to be verified by verificationID, and records Registered.
func Register(id uuid.UUID, address Address, verificationID uuid.UUID, at time.Time) *User {
	u := &User{id: id, address: address, registeredAt: at.UTC()}
	u.events.Record(Registered{UserID: id, VerificationID: verificationID, RegisteredAt: u.registeredAt})
	return u
}

// Restore makes the user that was stored as s. It records nothing.
func Restore(s State) *User {
	u := &User{id: s.ID, address: s.Address, registeredAt: s.RegisteredAt.UTC()}
	if !s.VerifiedAt.IsZero() {
		u.verifiedAt = s.VerifiedAt.UTC()
	}
	return u
}

// RequestVerification records VerificationRequested for a further verification of the address. A verified user has
// nothing left to verify: ErrAlreadyVerified, and nothing is recorded.
func (u *User) RequestVerification(verificationID uuid.UUID) error {
	if u.Verified() {
		return ErrAlreadyVerified
	}
	u.events.Record(VerificationRequested{UserID: u.id, VerificationID: verificationID})
	return nil
}

// RegisterAgain records RegistrationRepeated: somebody tried to register this user's address. It is for verified users;
// for others it returns ErrNotVerified and records nothing, since they are helped by another verification.
func (u *User) RegisterAgain() error {
	if !u.Verified() {
		return ErrNotVerified
	}
	u.events.Record(RegistrationRepeated{UserID: u.id})
	return nil
}

// VerifyEmail marks the address as the user's own and records EmailVerified. The second time it returns
// ErrAlreadyVerified, changes nothing and records nothing.
func (u *User) VerifyEmail(at time.Time) error {
	if u.Verified() {
		return ErrAlreadyVerified
	}
	u.verifiedAt = at.UTC()
	u.events.Record(EmailVerified{UserID: u.id, VerifiedAt: u.verifiedAt})
	return nil
}

// ID identifies the user for good; it is the key of all its events.
func (u *User) ID() uuid.UUID { return u.id }

// Address is where the user's mail goes, as the user typed it.
func (u *User) Address() Address { return u.address }

// Verified reports whether the user has shown to own the address.
func (u *User) Verified() bool { return !u.verifiedAt.IsZero() }

// State gives the user as it is to be stored.
func (u *User) State() State {
	return State{ID: u.id, Address: u.address, RegisteredAt: u.registeredAt, VerifiedAt: u.verifiedAt}
}

// Recorded gives the recorder of the user's events to the Unit of Work.
func (u *User) Recorded() *domain.Recorder { return &u.events }
