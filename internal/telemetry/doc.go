// Package telemetry makes the program's logger.
//
// A log line is made for people and machines that have no right to see what users typed, so nothing gets into one by
// accident:
//
//   - An attribute comes through only if its full path is on the allow-list in keys.go. Groups are flattened to dotted
//     paths ("http.status") and checked by them. Whatever is not on the list is dropped; at level debug the record says
//     which names were dropped (dropped=payload,metadata), never their values.
//   - A value comes through only if its kind is known to be printable: booleans, numbers, times, durations, strings,
//     lists of strings, errors, and types that have a String method of their own. Of anything else only its type is shown.
//   - Text, wherever it comes from (message, string, error), is scrubbed: no email address, no userinfo or query of a
//     URL, no token, no password=…, no control character that could begin a line of its own; and it is cut at
//     textBytesMax. Errors whose text quotes their input (Postgres, net/url, strconv and so on) are rendered by type,
//     without that input.
//
// Scrubbing is the second net. The first is the convention that messages are constants and that what varies is an
// attribute that names an id.
package telemetry
