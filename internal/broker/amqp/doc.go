// Package amqp carries topics over streams of RabbitMQ, by AMQP 0.9.1.
//
// A topic is a stream, postbus-user, that messages are sent to by its name. The server confirms a message when most of the
// stream's replicas have it. Confirmations are pipelined: many goroutines publish on one channel, each waits for its own. A channel
// has one stream, and a connection of its own, which ends with anything but a confirmation (session).
//
// A reader has a connection of its own. It asks for the stream from an offset on; the server keeps no account of it. A place has
// the offset that was read and the id of the message there: a stream that was made anew, or has lost its end, does not fit it and
// is read again, for as far back as ids are kept. Offsets that the stream has not any more are a gap.
//
// docs/adr/0032 tells why it is streams and not quorum queues, and why there is no exchange.
//
// The driver makes one connection and no second one when that is lost. What publishes makes another by itself; a reader ends with
// its connection, as all readers do.
package amqp
