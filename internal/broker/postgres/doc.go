// Package postgres is the event log in the application's own database: topics that a Unit of Work appends to in its
// transaction, and subscribers that read them.
//
// # Reading
//
// A topic's rows carry a position, drawn from a sequence, and the id of the transaction that wrote them. Positions
// become visible out of order, so a reader that remembers only the highest position loses what commits late. A
// consumer's place is a snapshot instead (PgQ reads this way, between two ticks): everything visible in `snapshot` S
// has been handled. The next window is what is visible now, in snapshot T, and was not in S. With `floor`, the highest
// position visible in S, these are exactly
//
//   - the visible rows beyond floor: had they been visible in S, floor would not be below them; and
//   - the visible rows up to floor whose transaction was under way in S. pg_snapshot_xip(S) names those below
//     pg_snapshot_xmax(S). One at or above xmax(S) had its id before it drew a position up to floor, so before S was taken,
//     and so below `fence`, the id of the transaction that later stored S. (The xid column comes before the position
//     in the table and defaults are evaluated in that order: a row has its transaction id before its position.)
//
// All are index look-ups, and none waits for anybody's transaction to end. Inside a window the order is position;
// between windows it is the windows'. That is commit order for a key: the second transaction on an aggregate waits for
// its row, and draws its position after the first has committed.
//
// A window is read in pages by position; the later pages see only what T sees. Until the window's end the place is
// (S, floor, T = `window_end`, `position`); then S becomes T. What was handled beyond that place when a process stopped
// in good order is listed in `ahead`, and not delivered again.
//
// # Sharing
//
// A consumer's keys are cut into sixteen shares, by hash, and each share has a row of its own with such a place. A
// process holds shares by leases: it renews them, and names a share's epoch in every checkpoint, so that a process that
// was paused for longer than its lease cannot move the place of the one that took over. Every process shows that it is
// there, claims what is free up to its fair part, and gives up what is more when others come. A share that is given up
// is frozen where it stands; when nothing of it is with a handler any more, its place is stored with what was handled
// beyond it, and it is free. What is handed over in good order is not delivered twice.
//
// One reader serves all shares of a process, window by window, from the place of those it claimed first. Shares that were
// claimed later stand elsewhere: they are read up to the window's end by themselves, on a track of their own (account.go),
// and from there on with the others. Their place becomes the common one when both are beyond that end.
//
// A consumer that has had nothing to do for a while gives up all its shares and waits to be woken. Then it costs one
// part of a query that all of a process's consumers share, twice a second, and no transaction ids.
//
// What a process has seen is good for the server that it saw it on: server.go.
//
// # Failing
//
// A message whose refusal was explained (Refuse) is parked with its key: parking.go has the states of a line, line.go what
// its owner does with it, pace.go what happens when everything fails, dead.go what operators do. One that is refused
// without a word comes again in place.
//
// # Another broker
//
// A log may be the beginning of a way over another broker, its end, or the broker. arrivals.go has how events come in at the
// end, once and in order; handover.go how consumers change from one log to the other; feed.go how a topic is read by who
// keeps his place elsewhere.
//
// No transaction is open while a handler runs.
package postgres
