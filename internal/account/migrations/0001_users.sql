-- Addresses are ASCII by their parser; "C" compares them byte by byte, so that no new version of the system's
-- collations can put the unique index out of order.
CREATE TABLE users (
	id uuid PRIMARY KEY,
	-- Where mail goes, as it was typed first.
	email text COLLATE "C" NOT NULL CHECK (octet_length(email) BETWEEN 3 AND 254),
	-- What makes two addresses the same.
	email_canonical text COLLATE "C" NOT NULL UNIQUE
		CHECK (octet_length(email_canonical) BETWEEN 3 AND 254 AND email_canonical = lower(email_canonical)),
	registered_at timestamptz NOT NULL DEFAULT now(),
	verified_at timestamptz,
	-- When the owner was last told that somebody tried to register this address again.
	repeat_told_at timestamptz
);

CREATE TABLE email_verifications (
	id uuid PRIMARY KEY,
	user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
	-- SHA-256 of the link's token. The token itself is stored nowhere.
	token_hash bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
	created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL CHECK (expires_at > created_at),
	used_at timestamptz
);

-- Counts a user's latest verifications against the limits, and finds them when the user is deleted.
CREATE INDEX email_verifications_user_id_created_at ON email_verifications (user_id, created_at);
