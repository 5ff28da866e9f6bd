// Package nats carries topics over NATS JetStream.
//
// A topic is a stream, postbus-user, with a subject for each sixteenth of its keys, postbus.user.0 to postbus.user.15. The
// id of an event is its message id, by which the server leaves out what is published again within its duplicate window.
// The server acknowledges when the message is in the stream, on a majority of its replicas where it has some.
//
// It goes to the driver, nats.go, since neither of Watermill's publishers for JetStream is fit for this: one tracks
// message ids only if told to, the other never (facts in docs/adr/0031), and their subscribers know no place to read on from.
//
// A reader has a consumer of its own on the server, without acknowledgements and gone with the connection. How far was read
// is kept with what was stored, not by the server. A place has the stream's time of making, the sequence number, and the id of
// that message: a stream that was made anew, or has lost its end, does not fit it and is read from the beginning.
package nats
