// Package mail writes postbus's mails and hands them on: to an SMTP server, or to a local mailbox on disk.
//
// Post turns "tell this person that" into a Message with text and HTML. A Sender takes a Message: SMTP gives it to a
// server, Mailbox keeps it as a file that the app shows. Delivery is at least once, because a connection can break
// between the end of a mail and the server's answer. So a repeat of an event is made to be the same mail: the same
// Message-ID, the same parts and the same boundary, different in its Date alone. Mail programs and the local mailbox
// recognise it by the Message-ID.
//
// An attempt over SMTP ends in one of four ways:
//
//	nil            the server has taken the mail
//	ErrTemporary   it has not; a later attempt may do better
//	ErrRefused     it has not, and will not take this mail for this person
//	ErrUnsure      the answer to the mail's last byte never came; it may have been taken
//
// No error of this package holds the recipient's address, the link, the password, or what the server said in words,
// since servers repeat addresses. The reply code and the enhanced status are kept.
//
// Addresses are checked where people type them. They are checked again here, because a recipient becomes part of an SMTP
// command (CVE-2025-59937 is how that goes wrong). A domain beyond ASCII is sent in punycode. It has to arrive mapped
// (lower case, composed) as UTS 46 wants it; one that was parsed as a user.Address is in punycode already.
package mail
