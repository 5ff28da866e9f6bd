// Package redis carries topics over Redis Streams.
//
// A topic is one stream, postbus:user, which is totally ordered. What is published at the same time goes in one pipeline, and
// is acknowledged when the server has answered, which with its settings as they are demanded it does after it has
// synchronised its append-only file. The server does not recognise what is published again; the reading database does.
//
// It goes to the driver, go-redis, since Watermill's Pub/Sub for Redis has no place to read on from, acknowledges whatever the
// server's settings are, and trims by length (docs/adr/0036).
//
// A reader keeps no account on the server; how far was read is kept with what was stored. A stream has nothing that tells it
// from another of its name, so it gets a consumer group that nobody consumes by, whose last delivered id says when the
// stream was made, with a random number. A place has that, the entry's id, its number among all that were ever added, and the
// id of its event. A stream that was made anew, or has lost its end, does not fit it and is read again.
//
// The server counts what was added and what it has, and tells the largest id that somebody deleted. By that a reader knows
// whether anything is gone that it has not read, and it asks in the same transaction as for the entries.
package redis
