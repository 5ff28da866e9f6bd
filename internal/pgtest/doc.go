// Package pgtest gives every test a PostgreSQL database of its own.
//
// The databases are made from templates, each of which was migrated once, in a server that all test processes of a user
// share: a disposable one of localpg in memory or the temporary directory, or the one that TEST_DATABASE_URL names. The role there
// has to be allowed to create databases.
//
// A test process cannot know which of its tests is the last, so it cannot stop the shared server. Instead the first
// process leaves a caretaker behind, which is the same test binary started with an environment variable; it stops the
// server some seconds after the last test process has ended.
package pgtest
