// Package web is the app's face: the sign-up page and its JSON twin, the verification link, the two health checks and,
// while no SMTP server is set, the local mailbox.
//
// A request passes, from the outside in: request id, access log, panic recovery, security headers, cross-origin check,
// routing and, for every POST, the limit by client address. A handler returns an error instead of writing one; one place
// turns it into a page or a JSON body, whichever the client speaks.
//
// What it guarantees:
//
//   - GET and HEAD change nothing. A mail scanner that opens the verification link uses nothing up.
//   - POST /users and POST /verify/resend give the same status, headers and body for a known and an unknown address,
//     and give them at the same time: [answerFloor] after the body was read.
//   - What a person typed, a token, a path or a query never reaches the log.
//   - The Host header decides nothing but whether the mailbox may be shown. X-Forwarded-For is believed only when the
//     peer is a trusted proxy.
//   - Every body, table, wait and connection count has a named limit.
package web
