package user

import "errors"

var (
	// ErrAlreadyVerified is returned when a verified user is to be verified, or asked to verify, once more.
	ErrAlreadyVerified = errors.New("user is verified already")

	// ErrNotVerified is returned when something that only a verified user can do is asked of one who is not.
	ErrNotVerified = errors.New("user is not verified")
)

// AddressError tells why a text is not an email address that mail can be sent to.
type AddressError struct {
	// Reason is a sentence for the person who typed the address. It never contains any of what was typed, so that it
	// may be shown, logged and counted.
	Reason string
}

// Error gives the reason, and nothing of what was typed.
func (e *AddressError) Error() string { return "refused email address: " + e.Reason }
