package account

import "fmt"

// LinkState is what a verification link is worth at this moment.
type LinkState int

const (
	// LinkUnknown is a token that belongs to no verification: it was never made, or its user is gone.
	LinkUnknown LinkState = iota
	// LinkOpen may be confirmed.
	LinkOpen
	// LinkVerified was confirmed by this very call.
	LinkVerified
	// LinkUsed has nothing left to do: it was confirmed before, or its user was by another link.
	LinkUsed
	// LinkExpired was not confirmed in time.
	LinkExpired
)

// String names the state for logs and tests.
func (s LinkState) String() string {
	switch s {
	case LinkUnknown:
		return "unknown"
	case LinkOpen:
		return "open"
	case LinkVerified:
		return "verified"
	case LinkUsed:
		return "used"
	case LinkExpired:
		return "expired"
	}
	return fmt.Sprintf("LinkState(%d)", int(s))
}
