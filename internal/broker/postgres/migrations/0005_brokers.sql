-- How far each topic was read from another broker, and which process is at it (arrivals.go).
CREATE TABLE intakes (
	topic       text PRIMARY KEY REFERENCES topics,
	places      jsonb NOT NULL DEFAULT '{}', -- of its partitions, as the broker tells them
	version     bigint NOT NULL DEFAULT 0,   -- of the row: whoever has read an older one stores nothing
	owner       text,
	lease_until timestamptz,
	moved_at    timestamptz NOT NULL DEFAULT now()
);

-- Which events have arrived that way, so that one that comes again is known.
CREATE TABLE arrivals (
	event_id   uuid NOT NULL,
	topic      text NOT NULL, -- no reference: it would be looked up for each
	arrived_at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (event_id, topic)
);

-- Consumers that read from another broker: what this snapshot sees they handled here, and the rest is the relay's
-- (handover.go). They have no shares here.
ALTER TABLE consumers ADD COLUMN handed_over pg_snapshot;

-- Where a relay began in its topic: what was before is not its. It may be moved back to there.
ALTER TABLE consumers ADD COLUMN since pg_snapshot, ADD COLUMN since_floor bigint;
