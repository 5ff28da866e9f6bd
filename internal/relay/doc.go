// Package relay carries topics from one log to another over a broker.
//
// Outbound is a consumer of the SQL topics. It holds shares of a topic's keys by leases as consumers do, so several share the
// work and a killed one's part goes on elsewhere. It publishes many messages at a time, one of each key, and marks what the
// broker has acknowledged; a crash repeats what was not marked yet. While the broker is away it waits, and so do the events,
// in the log. A message that the broker refuses while it takes others is parked with its key, out of their way. It gives
// nothing up.
//
// Inbound reads the broker's topics and stores what arrives in the log that the consumers read. One process does so for a
// topic, whichever comes first; the others look whether it still does.
//
// The order of a key survives since a message is sent when the one before it is acknowledged, and since of one that was
// sent twice the first counts. So whatever is sent again, by this process or by one that had the share before, is behind
// itself in the broker's topic.
package relay
