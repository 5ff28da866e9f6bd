package bus

import (
	"errors"
	"fmt"
	"runtime"
)

var (
	// ErrUnknownType is returned for an event whose type is not in the catalogue, or is there in another version: it cannot
	// be published, since nobody could read it. A stored one waits for a program that knows it.
	ErrUnknownType = errors.New("event type is not in the catalogue")
	// ErrEventShape is returned when an event type or a handler is declared in a way that cannot work. It is a
	// programmer's mistake and comes up while wiring.
	ErrEventShape = errors.New("event type cannot be used")
	// ErrDuplicate is returned when a name is taken twice: an event type, a handler's name, a consumer.
	ErrDuplicate = errors.New("declared twice")
	// ErrPolicy is returned for a consumer's policy that cannot be kept. It comes up while wiring.
	ErrPolicy = errors.New("policy cannot be kept")
	// ErrDeadline is the cause with which the context of a handler ends that has run for longer than its policy allows.
	ErrDeadline = errors.New("handler overran its deadline")
	// ErrUndecodable is returned for a stored message that does not fit the event type it names.
	ErrUndecodable = errors.New("message cannot be decoded")
)

// LimitError tells that an event is larger than may be published. It comes before the commit; nothing was stored.
type LimitError struct {
	Limit string // the limit's name, such as "payloadBytesMax"
	Max   int
	Got   int
	Type  string // the event's type, or "" when the limit is not one event's
}

// Error names the limit and by how much it was passed.
func (e *LimitError) Error() string {
	if e.Type == "" {
		return fmt.Sprintf("%s is %d, got %d", e.Limit, e.Max, e.Got)
	}
	return fmt.Sprintf("%s is %d, %s has %d", e.Limit, e.Max, e.Type, e.Got)
}

// HandlerError tells which in-process handler failed on which event type. It unwraps to the handler's own error, a
// *PanicError when it panicked.
type HandlerError struct {
	Handler string
	Type    string
	Err     error
}

// Error names the handler and the event type.
func (e *HandlerError) Error() string {
	return fmt.Sprintf("handler %s of %s: %v", e.Handler, e.Type, e.Err)
}

// Unwrap returns the handler's error.
func (e *HandlerError) Unwrap() error { return e.Err }

// PanicError is a handler's panic turned into an error, with the stack it happened on.
type PanicError struct {
	Value any
	Stack []byte
}

// Error names the value's type only: the value may hold a payload. A panic of the runtime's own says what it is.
func (e *PanicError) Error() string {
	if err, ok := e.Value.(runtime.Error); ok {
		return "panic: " + err.Error()
	}
	return fmt.Sprintf("panic with a %T", e.Value)
}
