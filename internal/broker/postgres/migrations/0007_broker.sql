-- Which broker the consumers that were handed over read from (handover.go), as broker.Kind names it, without a password.
-- It is not known of those that were handed over before this column was there; whoever starts next says it.
ALTER TABLE consumers ADD COLUMN broker text;
