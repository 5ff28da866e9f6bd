-- The topics that exist; each has a table of its own, topic_<name>, made when a program first names it.
CREATE TABLE topics (
	topic      text PRIMARY KEY CHECK (topic ~ '^[a-z][a-z0-9_]{0,39}$'),
	created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE consumers (
	consumer   text PRIMARY KEY,
	topic      text NOT NULL REFERENCES topics,
	created_at timestamptz NOT NULL DEFAULT now()
);

-- Where each share of a consumer stands, and which process is at it. doc.go tells what the columns mean together.
CREATE TABLE consumer_shares (
	consumer    text NOT NULL REFERENCES consumers ON DELETE CASCADE ON UPDATE CASCADE,
	share       smallint NOT NULL,
	snapshot    pg_snapshot NOT NULL,
	floor       bigint NOT NULL,
	fence       xid8 NOT NULL,
	window_end  pg_snapshot,
	position    bigint NOT NULL DEFAULT 0,
	ahead       bigint[] NOT NULL DEFAULT '{}',
	epoch       bigint NOT NULL DEFAULT 0,
	owner       text,
	lease_until timestamptz,
	moved_at    timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (consumer, share)
) WITH (fillfactor = 50); -- rewritten at every checkpoint; room on the page keeps that off the index

-- Which processes are there to share a consumer's work.
CREATE TABLE consumer_members (
	consumer   text NOT NULL REFERENCES consumers ON DELETE CASCADE ON UPDATE CASCADE,
	owner      text NOT NULL,
	seen_until timestamptz NOT NULL,
	PRIMARY KEY (consumer, owner)
);

-- The partitions of topics. partition.go tells what rests on the columns.
CREATE TABLE partitions (
	topic     text NOT NULL REFERENCES topics,
	number    bigint NOT NULL,
	attached  xid8 NOT NULL DEFAULT pg_current_xact_id(), -- every transaction after this one knows it
	closed_at timestamptz,                                -- the topic's sequence has gone beyond it: no event in it is younger,
	fence     xid8,                                       -- and none is of this transaction or a later one
	detached  boolean NOT NULL DEFAULT false,             -- by retention, which has yet to drop it
	PRIMARY KEY (topic, number)
);
