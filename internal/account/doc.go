// Package account holds the use cases around a user's address: register, ask for another verification mail, look at a
// link, verify; and the handlers of the events and jobs by which the mails are sent that follow from them.
//
// # The way of an address
//
//	Register ─► user.registered ─► mail with a link ─► Inspect (changes nothing)
//	                                                   Verify ─► user.email_verified ─► welcome mail
//
// A mail takes two steps. The consumer of the event enqueues a job, exactly once (Service.MailVerification and its like). The
// job sends the mail (Notifier); it has a queue of its own, MailQueue, and fails, waits and is given up for itself, so that
// one person's mail holds up nobody else's.
//
// Every use case that writes is one Unit of Work: the rows and the events are durable together or not at all. No
// answer tells whether an address is known. What a stranger could learn it from, the owner of the mailbox reads instead.
//
// # Links
//
// A link's token is an HMAC of the verification's id, so it can be made again whenever the mail has to be sent again,
// and is stored nowhere: the database has its SHA-256, events have the verification's id. Somebody who reads the
// database, the log or a backup cannot make a link without the secret key. A change of the key ends all open links.
//
//	LinkOpen ──Verify──► LinkVerified for exactly one call, LinkUsed for every other
//	    │
//	    └──24 hours by the database's clock──► LinkExpired
//
// A user may have several open links, since a mail that is late must not be worthless. Once one of them has verified
// the user, all of them are LinkUsed: they were right, and there is nothing left to do.
//
// # Those who never verify
//
// A job deletes them every night, 30 days after they registered, with what hangs on them.
//
// # Locks
//
// Every transaction that writes locks the user's row first and touches its verifications after that, so two of
// them never wait for each other. Counting against the limits happens under the same lock and is therefore exact.
package account
