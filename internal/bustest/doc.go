// Package bustest is for the tests of an application: it publishes, runs until everything is handled, moves the clock, makes
// handlers fail, and tells what was published, enqueued and given up. It does so on real Postgres, in a database of the test's
// own, or in memory, with the same results.
//
//	h := bustest.New(t, bustest.Memory, catalogue)
//	h.Serve(bustest.App{Consumers: consumers, Workers: workers, Schedules: schedules})
//	h.Publish(Delivered{Number: "NL-1"})
//	h.FailNext("parcel-notice", 1, errors.New("the line is dead"))
//	h.Run()                // the event is parked
//	h.Advance(time.Second) // its next attempt is due
//	h.Run()
//
// docs/testing.md shows it in use. A Harness belongs to one test, and its methods to the test's goroutine; Work may be used
// from many.
//
// # What is real
//
// In both flavours: Watermill's router with the bus's middleware, the codec, the catalogue and its limits, each consumer's
// policy, the classes of failures, the policies and verdicts of jobs, the timetables of schedules, and the Unit of Work with its
// checks. On Postgres also everything else: the log, the work table, the inbox, transactions.
//
// In memory the log, the inbox and the work table are this package's own. They do what the real ones promise: events of a
// key in order, a failed one parked with its key, dead events that hold their key or let it pass, effects once, jobs with
// priority, time, lock key and unique key. TestFlavoursAgree runs the same scenarios, made up and random, on both and
// compares what happened. What there is in Postgres only: w.DB (uow.ErrNoDatabase in memory), *postgres.Log and *job.Table
// themselves, and what two transactions at once do to each other.
//
// # The clock
//
// It stands still but for Advance, so a test's outcome does not depend on how fast the machine is. In memory it is a field.
// On Postgres the log, the work table and the application's own statements ask the database for the time: now(),
// clock_timestamp(), statement_timestamp(), transaction_timestamp(). In the test's database the schema bustest has functions of
// these names that answer with the time in a table, and stands before pg_catalog in the search_path; column defaults
// are bound to them when the database is made. So what expires by the database's clock expires by Advance: links, limits, leases.
// The keyword CURRENT_TIMESTAMP in a statement cannot be replaced and is real time, as is pg_catalog.now(). So is time.Now in
// the application; give it Now.
//
// Nothing is handled but in Run, so no lease is held while the clock moves, and each Run on Postgres begins with voiding what
// is left of those of the one before. Advance is like the absence of all processes: of the ticks of a schedule in between the
// latest runs, or none (job.Missed). Advance in steps to have each.
//
// # What differs from production, in both flavours
//
// One handler runs at a time, so that a test's outcome does not depend on chance; between keys, consumers and jobs there is no order
// all the same. A consumer for which everything fails does not slow down, because that takes real time: each failure is an
// attempt. Deadlines of handlers are real time.
package bustest
