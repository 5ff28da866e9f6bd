package broker

import "fmt"

// URLError is a URL that cannot be used. It quotes nothing of it.
type URLError struct{ Problem string }

// Error is for a person, as what follows the setting's name.
func (e *URLError) Error() string { return e.Problem }

// RefusedError is what stands between a program and its broker and will stand there until somebody does something about it.
type RefusedError struct{ Reason string }

// Error is a sentence for a person, without a password.
func (e *RefusedError) Error() string { return e.Reason }

// GapError is returned when events of a partition were dropped by the broker before they were read. They can be sent again, but
// once later ones were read they arrive behind these: the order within a key does not hold for them.
type GapError struct {
	Partition string
	Events    uint64 // how many are missing, at most
}

// Error says what is missing and what can be done.
func (e *GapError) Error() string {
	return fmt.Sprintf("up to %d events of %s are gone from the broker and were not read; move the relay back to before them "+
		"to have them sent again, and say gap=skip in BROKER_URL", e.Events, e.Partition)
}
