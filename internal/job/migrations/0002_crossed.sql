-- The jobs that have come from another database (crossing.go), so that one that comes again is known, also when it has run and
-- is gone. A row goes when its message cannot come again.
CREATE TABLE job_crossed (
	id         uuid PRIMARY KEY,
	crossed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX job_crossed_at ON job_crossed (crossed_at);
