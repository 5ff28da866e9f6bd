-- How far each mail is; doc.go tells what the states mean.
CREATE TABLE mail_ledger (
	-- KEY.KIND, the Message-ID's part before the @: it does not change with the host.
	mail text COLLATE "C" PRIMARY KEY,
	-- As the mail was first prepared with, so that it stays the same when PUBLIC_URL does not.
	message_id text COLLATE "C" NOT NULL,
	state text NOT NULL DEFAULT 'prepared' CHECK (state IN ('prepared', 'unknown', 'sent')),
	-- Rises whenever the mail is prepared. The last byte is for the latest.
	epoch bigint NOT NULL DEFAULT 1,
	prepared_at timestamptz NOT NULL DEFAULT clock_timestamp(), -- first
	sent_at timestamptz,
	CHECK ((state = 'sent') = (sent_at IS NOT NULL))
) WITH (fillfactor = 70);

-- Finds what is to be swept, the oldest first, without looking at what is not.
CREATE INDEX mail_ledger_prepared_at ON mail_ledger (prepared_at);
