-- Finds users who never verified, the oldest first, for their deletion.
CREATE INDEX users_unverified ON users (registered_at) WHERE verified_at IS NULL;
