package mail

import (
	"context"
	"errors"
	"fmt"
	"net/textproto"
	"os"
	"regexp"
)

// The ways in which a mail is not delivered. Every error of a Send matches exactly one of them with errors.Is, except
// errors of the local mailbox's disk and of a Message that no program of ours would write.
var (
	// ErrTemporary: the mail is not delivered, and a later attempt may succeed. The server is away, slow or busy, or
	// does not accept us: a wrong password or certificate is a matter of settings and no reason to give the mail up.
	ErrTemporary = errors.New("mail not delivered for now")
	// ErrRefused: the server will not take this mail for this person (a 5xx reply to the recipient or to the content),
	// or the recipient is no address (then it is ErrRecipient as well). Repeating it is useless.
	ErrRefused = errors.New("mail refused")
	// ErrUnsure: the connection was lost after the final dot, before the reply; the server may have the mail. Whether to
	// repeat it is for somebody to decide who can ask: a server that takes each mail and never says so would get it
	// again and again.
	ErrUnsure = errors.New("mail perhaps delivered")
)

// ErrRecipient comes when the recipient cannot be a plain address; nothing was sent or stored.
var ErrRecipient = errors.New("the recipient is not an address that mail can be sent to")

// ErrNotFound comes from Mailbox.Read when there is no such mail (any more), or when the id is not one of List's.
var ErrNotFound = errors.New("no such mail in the local mailbox")

// Step is the part of an SMTP session in which a delivery ended.
type Step string

// The steps in their order.
const (
	StepConnect   Step = "connect"   // dial, greeting, EHLO and TLS
	StepSignIn    Step = "sign in"   // AUTH
	StepSender    Step = "sender"    // MAIL FROM
	StepRecipient Step = "recipient" // RCPT TO
	StepContent   Step = "content"   // DATA up to the final dot
	StepFinish    Step = "finish"    // the reply to the final dot
)

// DeliveryError says how an attempt over SMTP ended. errors.Is finds one of ErrTemporary, ErrRefused and ErrUnsure in
// it, and context.Canceled or context.DeadlineExceeded when time or the caller ended the attempt.
type DeliveryError struct {
	Step   Step
	Code   int    // the server's reply code; 0 when there was no reply
	Status string // the enhanced status, as in "5.1.1"; empty when the server gave none
	kind   error
	cause  error // never a server's words
}

// Error is one line without the recipient's address and without the server's words.
func (e *DeliveryError) Error() string {
	switch {
	case e.Code != 0 && e.Status != "":
		return fmt.Sprintf("%v: %s: server replied %d %s", e.kind, e.Step, e.Code, e.Status)
	case e.Code != 0:
		return fmt.Sprintf("%v: %s: server replied %d", e.kind, e.Step, e.Code)
	default:
		return fmt.Sprintf("%v: %s: %v", e.kind, e.Step, e.cause)
	}
}

// Unwrap gives the kind of the failure, and its cause when there was no reply.
func (e *DeliveryError) Unwrap() []error {
	if e.cause == nil {
		return []error{e.kind}
	}
	return []error{e.kind, e.cause}
}

var (
	errConnectionLost = errors.New("connection lost")
	errNotSMTP        = errors.New("the answer is not SMTP")
	errNoAuth         = errors.New("the server offers neither AUTH PLAIN nor AUTH LOGIN")
	errNoSMTPUTF8     = errors.New("the server does not take addresses with characters beyond ASCII")
	errNotLoopback    = errors.New("clear text goes to this machine only, and the name led elsewhere")
)

// heldBackError is why the final dot was not sent, for a reason that is not the server's.
type heldBackError struct{ err error }

func (e *heldBackError) Error() string { return "held back: " + e.err.Error() }
func (e *heldBackError) Unwrap() error { return e.err }

var enhancedStatus = regexp.MustCompile(`^[245]\.\d{1,3}\.\d{1,3}\b`)

// newDeliveryError classifies what ended a step. ctx is the attempt's own: once it is done, whatever error came up is
// its consequence, since its end closes the connection.
func newDeliveryError(ctx context.Context, step Step, err error) *DeliveryError {
	e := &DeliveryError{Step: step, kind: ErrTemporary}
	if reply, ok := errors.AsType[*textproto.Error](err); ok {
		e.Code, e.Status = reply.Code, enhancedStatus.FindString(reply.Msg)
		aboutThisMail := step == StepRecipient || step == StepContent || step == StepFinish
		switch {
		case reply.Code >= 500 && aboutThisMail:
			e.kind = ErrRefused
		case reply.Code < 400 && step == StepFinish:
			e.kind = ErrUnsure
		}
		return e
	}
	if step == StepFinish {
		e.kind = ErrUnsure
	}
	if errors.Is(err, errNoSMTPUTF8) {
		e.kind = ErrRefused
	}
	e.cause = cause(ctx, step, err)
	return e
}

// cause picks what may be shown of an error that is not a reply. While connecting no recipient and no password has been
// spoken of, so the network's and TLS's own words are harmless and useful; later only our own are used.
func cause(ctx context.Context, step Step, err error) error {
	_, notSMTP := errors.AsType[textproto.ProtocolError](err)
	_, heldBack := errors.AsType[*heldBackError](err)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return os.ErrDeadlineExceeded
	case notSMTP:
		return errNotSMTP
	case errors.Is(err, errNoAuth), errors.Is(err, errNoSMTPUTF8), step == StepConnect, heldBack:
		return err
	default:
		return errConnectionLost
	}
}
