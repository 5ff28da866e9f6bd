-- Events that a consumer could not handle, and those that wait behind them (parked.go).
CREATE TABLE parked (
	consumer    text NOT NULL REFERENCES consumers ON UPDATE CASCADE,
	key_hash    uuid NOT NULL,  -- of the key: a key may be longer than an index allows
	position    bigint NOT NULL,
	share       smallint NOT NULL,
	state       text NOT NULL CHECK (state IN ('retry', 'behind', 'held', 'dead')),
	run_at      timestamptz CHECK ((state = 'retry') = (run_at IS NOT NULL)),
	attempts    int NOT NULL,
	event_id    uuid NOT NULL,
	type        text NOT NULL,
	key         text NOT NULL,
	metadata    text NOT NULL,
	payload     bytea NOT NULL,
	failures    jsonb NOT NULL, -- the first and the latest: {at, attempt, class, error, stack, version}
	fingerprint text,           -- the same for failures that look alike
	notes       jsonb NOT NULL DEFAULT '[]', -- what operators did: {at, by, did, note}
	parked_at   timestamptz NOT NULL DEFAULT now(),
	dead_at     timestamptz CHECK ((state IN ('held', 'dead')) = (dead_at IS NOT NULL)),
	resolved_at timestamptz CHECK (resolved_at IS NULL OR state = 'dead'), -- somebody has discarded it
	PRIMARY KEY (consumer, key_hash, position)
);
-- The line of a key, whose head is what is tried next.
CREATE INDEX parked_line ON parked (consumer, key_hash, position) WHERE state <> 'dead';
CREATE INDEX parked_heads ON parked (consumer, share) WHERE state IN ('retry', 'held');
CREATE INDEX parked_due ON parked (consumer, run_at) WHERE state = 'retry';
CREATE INDEX parked_dead ON parked (consumer, fingerprint, dead_at) WHERE state IN ('held', 'dead') AND resolved_at IS NULL;
CREATE INDEX parked_resolved ON parked (resolved_at) WHERE resolved_at IS NOT NULL;
CREATE INDEX parked_event ON parked (event_id);
