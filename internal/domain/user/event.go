package user

import (
	"time"

	"github.com/google/uuid"
)

// The types of this aggregate's events as they stand on the wire. They are durable: a change takes a new version.
const (
	typeRegistered            = "user.registered"
	typeVerificationRequested = "user.verification_requested"
	typeRegistrationRepeated  = "user.registration_repeated"
	typeEmailVerified         = "user.email_verified"
)

// Registered tells that a new, unverified user exists, together with the first verification of the address.
type Registered struct {
	UserID         uuid.UUID `json:"user_id"`
	VerificationID uuid.UUID `json:"verification_id"`
	RegisteredAt   time.Time `json:"registered_at"`
}

// EventType returns "user.registered".
func (Registered) EventType() string { return typeRegistered }

// EventKey returns the user's id.
func (e Registered) EventKey() string { return e.UserID.String() }

// VerificationRequested tells that an unverified user wants another verification mail.
type VerificationRequested struct {
	UserID         uuid.UUID `json:"user_id"`
	VerificationID uuid.UUID `json:"verification_id"`
}

// EventType returns "user.verification_requested".
func (VerificationRequested) EventType() string { return typeVerificationRequested }

// EventKey returns the user's id.
func (e VerificationRequested) EventKey() string { return e.UserID.String() }

// RegistrationRepeated tells that somebody tried to register the address of a verified user.
type RegistrationRepeated struct {
	UserID uuid.UUID `json:"user_id"`
}

// EventType returns "user.registration_repeated".
func (RegistrationRepeated) EventType() string { return typeRegistrationRepeated }

// EventKey returns the user's id.
func (e RegistrationRepeated) EventKey() string { return e.UserID.String() }

// EmailVerified tells that the user has shown to own the address. It happens once in a user's life.
type EmailVerified struct {
	UserID     uuid.UUID `json:"user_id"`
	VerifiedAt time.Time `json:"verified_at"`
}

// EventType returns "user.email_verified".
func (EmailVerified) EventType() string { return typeEmailVerified }

// EventKey returns the user's id.
func (e EmailVerified) EventKey() string { return e.UserID.String() }
