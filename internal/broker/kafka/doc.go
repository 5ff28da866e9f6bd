// Package kafka carries topics over Kafka, or what speaks its protocol.
//
// A topic is a topic of Kafka, postbus-user. An event's key decides which of its partitions it is in, by the hash that Kafka's
// own clients use, among as many partitions as the URL says; partitions that were added later are read, and not written to, so
// that no key ever moves. A publish ends when all replicas in sync have the message, of which there have to be most. The driver's
// producer is idempotent: what it sends again by itself is stored once, and in order.
//
// It goes to the driver, franz-go, since Watermill's publisher is content with the leader's word unless told otherwise and knows
// no idempotence (facts in docs/adr/0031), and its subscriber is a consumer group, which knows no place to read on from.
//
// A reader takes all partitions itself, without a consumer group. How far was read is kept with what was stored, not by the
// brokers. A place has the topic's id, the offset of the last message that was read, and a hash of that message: it is read
// again first, and dropped if it is the same. A topic that was made anew, or has lost its end, does not fit its places and is read
// again.
package kafka
