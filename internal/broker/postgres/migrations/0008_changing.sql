-- Until when no share of a consumer is to be claimed, since it is about to be given to another log (handover.go).
ALTER TABLE consumers ADD COLUMN paused_until timestamptz;

-- The broker that a topic's arrivals come from, as broker.Kind names it; of others nothing is stored.
ALTER TABLE intakes ADD COLUMN broker text NOT NULL DEFAULT '';

-- Of what another log has taken along (handover.go) the broker may bring a copy any time. Such ids are kept for good.
COMMENT ON COLUMN arrivals.arrived_at IS 'infinity: it has not arrived, and was taken along';
