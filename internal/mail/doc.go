// Package mail writes postbus's mails and hands them on: to an SMTP server, or to a local mailbox on disk.
//
// Post turns "tell this person that" into a Message with text and HTML. A Sender takes a Message: SMTP gives it to a
// server, Mailbox keeps it as a file that the app shows, and Ledger stands before either of them and lets each mail
// through once.
//
// An attempt over SMTP ends in one of four ways:
//
//	nil            the server has taken the mail
//	ErrTemporary   it has not; a later attempt may do better
//	ErrRefused     it has not, and will not take this mail for this person
//	ErrUnsure      the answer to the mail's last byte never came; it may have been taken
//
// # The ledger
//
// No transaction covers a mail server. The ledger has a row for each mail, by its key and kind, and notes how far it is
// before it goes further:
//
//	         ┌──── refused, or not now ────┐
//	         ▼                             │
//	──► prepared ── before the last byte ─► unknown ── taken, and noted ─► sent
//
// prepared: no server has all of it, so it may be sent. It is what a crash before the last byte leaves, and every attempt that
// failed for sure. unknown: a server may have it. It is what a crash leaves between the last byte and the note that the
// mail was taken, and a connection that was lost before the answer. sent: a server has it; it is not sent again, whoever asks.
//
// Whoever prepares a mail raises its epoch, and only the last who did may send the last byte: one that was taken for dead
// and wakes up again finds that out. So what comes again and is prepared was not sent, and of what comes again and is unknown
// it cannot be known. That is sent again. Whoever calls has to know that, and not repeat ErrUnsure by himself: then a crash
// between the last byte and the note is the only way to a second mail, and it is the same mail: the same Message-ID, the same
// parts and the same boundary, different in its Date alone. Mail programs and the local mailbox recognise it by the
// Message-ID.
//
// Rows hold no address, no link and nothing else of a mail. They go 90 days after the mail was first prepared.
//
// # What is not told
//
// No error of this package holds the recipient's address, the link, the password, or what the server said in words,
// since servers repeat addresses. The reply code and the enhanced status are kept.
//
// Addresses are checked where people type them. They are checked again here, because a recipient becomes part of an SMTP
// command (CVE-2025-59937 is how that goes wrong). A domain beyond ASCII is sent in punycode. It has to arrive mapped
// (lower case, composed) as UTS 46 wants it; one that was parsed as a user.Address is in punycode already.
package mail
