// Package job is the work table: jobs and schedules in Postgres. A job is a command with one handler and a clock. It is stored in
// the transaction of whoever enqueues it (Append), or in one of its own (Enqueue), and run at least once by some process that
// subscribes to its queue (Subscriber) with a handler for its kind (Workers).
//
// # States
//
//	            ┌────────── promoted ──────────┐
//	            │                              ▼
//	enqueued ─► behind     enqueued ─────► waiting ◄─── retry, snooze, back, lost ──┐
//	            │                              │                                    │
//	            │                              └──────────── take ────────────► running
//	            │                              │                                    │
//	            └─────────► cancelled ◄────────┴── cancel      completed, dead, cancelled
//
//	dead, cancelled, discarded ── Retry ──► waiting or behind        dead ── Discard ──► discarded
//
// waiting: it may be taken once run_at has come. behind: it has a lock key, and another job is the key's head. running: a
// worker has taken it. completed, dead, cancelled and discarded have ended; Clean deletes them when they were kept for long
// enough.
//
// # Who may change what
//
// A worker is a process with a subscription. Its row in job_workers is the lease of all jobs that it has taken; a heartbeat
// prolongs it. Taking a job sets its owner and raises its epoch. What a worker says of a job (a verdict, in outcome.go)
// changes it only while it runs under the epoch that the worker took it with: whoever was paused, cut off or taken for dead
// says it in vain.
//
// Others change a running job in two ways only: Cancel asks for its end (cancel_at), which the worker learns by its
// heartbeat; and whoever finds the worker's lease run out deletes the row of the lease and then says of all its jobs that they are
// lost, in one transaction. A take that was under way then waits for that row, and begins a lease anew. An attempt that was
// lost counts; a job over which five workers died is dead.
//
// A worker ends the contexts of its handlers when its lease has run out by its own clock, counted from before the last
// heartbeat that was answered, so not after others may see it run out. It takes none of those jobs again beside a handler that
// has not returned.
//
// # Lock keys: why one never has two running
//
// Of the jobs of a lock key that have not ended one is the head: waiting or running. The unique index jobs_head allows no
// second. The others are behind, and no take looks at them. Whoever enqueues, ends, cancels or retries a job of a key first
// writes the key's row in job_keys, which stands until the key has no jobs: so they go one after another, and the statement
// after the wait sees what the one before has committed, or Postgres refuses it. It then promotes the first of those behind, by
// sequence, if there is no head. Sequences are drawn under the same lock, so their order is that of the commits.
//
// A head that waits for its time, for another attempt or out a snooze stays the head. One that has ended, in whatever way,
// lets the next one go on.
//
// Two handlers can nevertheless be at work at once where a handler ignores that its context has ended: its lease was lost, or
// its process stopped and Drain ran out. Nothing that the first one says counts, and what both write through uow.Do takes effect
// once (its inbox knows a job by its id). No lease can do more.
//
// # Unique keys
//
// The unique index jobs_unique, on kind and key of jobs that have not ended, decides, in bulk as well and between transactions:
// the second waits for the first one to commit, and is skipped then.
//
// # Another database
//
// No transaction spans the database of the use cases and one that jobs have for themselves. There a Crossing takes the table's
// place in the Unit of Work: a job is stored as a message of the log, with its own id, in the use case's transaction. The relay,
// Crossing.Run, reads the log as any consumer does and stores the jobs here; job_crossed has the ids of those that have come,
// written in the same transaction as the job. The relay may be killed between that and noting its place: it carries the job
// again, and job_crossed knows it, also when the job has run and is gone by then.
//
// An id is forgotten when it came more than a week ago and the relay has passed every message of nearly that age. While it has
// not, or too many wait to say, nothing is forgotten. One that the database refuses is parked in the log, which counts as passed: it
// has not come yet.
//
// # What can go wrong
//
// The answer to a take is lost: jobs may be running that nobody knows of. The worker looks for them when no takes are under way,
// and gives them back. The answer to an outcome is lost: it is said again, and the epoch has the second change nothing. The
// database goes away: outcomes are kept and stored when it is back, as long as nobody has taken the jobs. A stop: what was not
// begun goes back at once, what runs has Drain to finish, what overruns goes back; none of these counts as an attempt.
//
// A handler runs at least once. Current has the job's id, the same at every attempt: it is the key of effects that no
// transaction covers. Since uow.Do takes effect once for a job, a handler that commits and then returns Snooze finds that it has
// had its effect when it runs again; have it enqueue another job instead.
//
// # Bounds
//
// Arguments have 256 KiB at most, metadata 8 KiB, a result 64 KiB, progress 8 KiB, a call 10,000 jobs. A failure keeps 2 KiB of
// its text and 8 KiB of its stack; 25 failures of a job are kept. A worker holds as many jobs as it runs at a time, and those
// that it can begin within some 20 ms, a thousand at most for each queue.
package job
