-- A life of the server (server.go): from a start, or the end of a recovery from a crash, to the next. Recovery empties the table,
-- since it is unlogged; a start leaves it, so a row names the start it belongs to.
CREATE UNLOGGED TABLE lives (
	one     boolean PRIMARY KEY DEFAULT true CHECK (one),
	started timestamptz NOT NULL,
	began   timestamptz NOT NULL -- which tells lives of one start apart
);

-- Ends a statement that is about what was seen in another life of the server, or in a later state of this one. here is the life
-- now, null before anybody has named it; latest is a transaction id that was seen, or null.
CREATE FUNCTION same_server(seen timestamptz, here timestamptz, latest xid8) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF here IS NULL OR here IS DISTINCT FROM seen OR latest > pg_snapshot_xmax(pg_current_snapshot()) THEN
		RAISE EXCEPTION 'the server is another one, was started anew or has recovered from a crash' USING ERRCODE = 'PB002';
	END IF;
	RETURN true;
END $$;
