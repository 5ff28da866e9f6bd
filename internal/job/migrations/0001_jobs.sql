-- doc.go tells what the states mean and who may change them.
CREATE TABLE jobs (
	id           uuid PRIMARY KEY,
	sequence     bigint GENERATED ALWAYS AS IDENTITY, -- the order of a lock key; drawn while the key is locked
	kind         text NOT NULL,
	queue        text NOT NULL,
	priority     smallint NOT NULL,
	state        text NOT NULL CHECK (state IN ('waiting', 'behind', 'running', 'completed', 'dead', 'cancelled', 'discarded')),
	run_at       timestamptz NOT NULL,
	created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
	lock_key     text,
	unique_key   text,
	metadata     text NOT NULL,
	args         text NOT NULL,
	attempt      int NOT NULL DEFAULT 0,              -- of the last run that was begun; the first is 1
	lost         smallint NOT NULL DEFAULT 0,         -- how often its worker died
	epoch        bigint NOT NULL DEFAULT 0,           -- rises whenever it is taken
	owner        text,
	started_at   timestamptz,
	cancel_at    timestamptz,                         -- when somebody asked for it
	finalized_at timestamptz,
	progress     text,
	result       text,
	failures     jsonb NOT NULL DEFAULT '[]',
	fingerprint  text,                                -- of the last failure
	notes        jsonb NOT NULL DEFAULT '[]',         -- who retried, discarded or cancelled it, and when
	CHECK ((state IN ('completed', 'dead', 'cancelled', 'discarded')) = (finalized_at IS NOT NULL)),
	CHECK (state <> 'behind' OR lock_key IS NOT NULL)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);

-- What may be taken. A job that waits behind its lock key is not in it, however many there are.
CREATE INDEX jobs_waiting ON jobs (queue, priority, run_at, sequence) WHERE state = 'waiting';
-- One job of a kind with a unique key, from when it is enqueued until it has ended.
CREATE UNIQUE INDEX jobs_unique ON jobs (kind, unique_key)
	WHERE unique_key IS NOT NULL AND state IN ('waiting', 'behind', 'running');
-- One job at the head of a lock key.
CREATE UNIQUE INDEX jobs_head ON jobs (lock_key) WHERE lock_key IS NOT NULL AND state IN ('waiting', 'running');
CREATE INDEX jobs_behind ON jobs (lock_key, sequence) WHERE state = 'behind';
CREATE INDEX jobs_running ON jobs (owner) WHERE state = 'running';
CREATE INDEX jobs_ended ON jobs (state, finalized_at) WHERE finalized_at IS NOT NULL;
CREATE INDEX jobs_dead ON jobs (kind, fingerprint) WHERE state = 'dead';

-- The lock keys that have jobs which have not ended. Whoever changes which job is the head writes the key's row first.
CREATE TABLE job_keys (
	lock_key text PRIMARY KEY,
	passed   bigint NOT NULL DEFAULT 0 -- the highest sequence that has been the head
) WITH (fillfactor = 50);

-- The processes that have jobs; the row is the lease of all of a worker's jobs.
CREATE TABLE job_workers (
	owner       text PRIMARY KEY,
	lease_until timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE job_schedules (
	name      text PRIMARY KEY,
	last_tick timestamptz NOT NULL -- handled or passed over
);
