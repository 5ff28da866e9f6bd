-- Which events have had their effect in which consumer: written in the transaction of the effect (inbox.go).
CREATE TABLE inbox (
	event_id   uuid NOT NULL,
	consumer   text NOT NULL,
	xid        xid8 NOT NULL DEFAULT pg_current_xact_id(),
	handled_at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (event_id, consumer)
);
