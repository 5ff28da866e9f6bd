// Package user holds the user of the application: an email address that can be trusted to be one, the aggregate with
// its rules, and the events that tell what happened to it.
//
// A user is registered unverified, may ask for further verifications, and is verified once:
//
//	Register ──► unverified ──VerifyEmail──► verified
//	              │       ▲                   │     ▲
//	              └───────┘                   └─────┘
//	         RequestVerification           RegisterAgain
//
// Events carry ids and times, never an address and never a token: they are copied to logs, brokers, dead letters and
// backups, where nobody can take an address back.
package user
