// Package broker is the seam between postbus and brokers that carry its topics to other databases. There is a subpackage
// for each broker; broker/postgres, the log in the application's own database, is not one of them but what they connect.
//
// # The way
//
// An event is committed to the application's log. The relay reads it there, as a consumer, and publishes it. At the other
// end a relay reads the broker's topic and stores what arrives in a log in the consumers' own database, together with how
// far it has read. From there consumers read as they always do. So a broker needs to promise little, and all that consumers
// are promised holds on each: order in a key, lanes, parking, dead letters, retries, the inbox, sharing between processes.
//
// What a broker has to do:
//
//   - Publish returns nil when the message is stored, in the sense of its Capabilities, and not before.
//   - What was published after Publish had returned is read after it, if both have one key. The relay has one message of a
//     key under way at a time, so a broker may reorder nothing but what is under way together.
//   - A message may come more than once, also much later. The first time counts: where it arrives it is known by its id.
//
// docs/adr/0031 tells why.
package broker
