-- Ends a statement that is about what was seen on another server, or in a later state of this one (server.go). latest is a
-- transaction id that was seen, or null.
CREATE FUNCTION same_server(started timestamptz, latest xid8) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF pg_postmaster_start_time() IS DISTINCT FROM started OR latest > pg_snapshot_xmax(pg_current_snapshot()) THEN
		RAISE EXCEPTION 'the server is another one, or was started anew' USING ERRCODE = 'PB002';
	END IF;
	RETURN true;
END $$;
