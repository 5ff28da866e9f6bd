package localpg

import "errors"

// The errors of Start are sentences for the person in front of the program. Those that a caller may want to tell apart:
var (
	// ErrNoPostgres comes when no usable PostgreSQL was found and none could be downloaded.
	ErrNoPostgres = errors.New("no PostgreSQL 13 or newer found")
	// ErrDataVersion comes when the data directory was made by a major version of PostgreSQL that is not at hand.
	ErrDataVersion = errors.New("no PostgreSQL of the data directory's version found")
	// ErrNotOurs comes when the directory, or the server that runs in it, belongs to somebody else.
	ErrNotOurs = errors.New("not this program's PostgreSQL")
	// ErrDenied comes when the operating system does not allow what has to be done in the directory.
	ErrDenied = errors.New("the private PostgreSQL is not allowed to use its directory")
	// ErrNotStarted comes when the server did not come up; what it said last is part of the error.
	ErrNotStarted = errors.New("the private PostgreSQL did not start")
	// ErrUnsupported comes on operating systems on which localpg cannot run a server.
	ErrUnsupported = errors.New("a private PostgreSQL is not supported on this operating system: set DATABASE_URL to a server you have")
	// ErrClosed comes from methods of a Server after its Close.
	ErrClosed = errors.New("closed")
)
