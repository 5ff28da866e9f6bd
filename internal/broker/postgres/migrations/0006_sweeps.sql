-- For what is not found by the time in its id when it may go (sweep.go): the effects of jobs, which are kept for longer than
-- those of events, and ids that are no UUIDv7. An event of a program's own is in neither, so its commit pays for neither.
CREATE INDEX inbox_rest ON inbox (handled_at) WHERE consumer LIKE 'job:%' OR substr(event_id::text, 15, 1) <> '7';
CREATE INDEX arrivals_rest ON arrivals (arrived_at) WHERE substr(event_id::text, 15, 1) <> '7';
