// Package localpg runs a private PostgreSQL: for a person's first run, and for tests.
//
// Start finds PostgreSQL on the machine (or downloads it), makes a cluster in a directory, starts it on a loopback port
// and returns its URL. Any number of programs may call Start with the same directory at once; they share one server, and
// the Close of the last of them stops it.
//
// # What lies in the directory
//
//	data/         the cluster; made as data.new-*, and renamed when initdb has finished
//	password      of the role postbus, mode 0600; written before the cluster is made
//	port          the port of the last start; used again as long as nobody else has it
//	postgres.log  what the server says, without the values that its errors are about
//	lock          exclusive while somebody starts or stops the server
//	users         shared by every program that uses the server, as long as it does
//
// # How programs share it
//
// Both locks are flock(2)s: they end with the process that holds them, however it ends.
//
//	arriving: take lock; adopt or start the server; share users; release lock
//	leaving:  take lock; release users; if users can be had exclusively, stop the server; release lock
//
// As arriving and leaving exclude each other, nobody arrives at a server that is being stopped, and nobody stops a
// server that somebody has just arrived at. A program that was killed leaves its server running and its locks free: the
// next one to start adopts the server, and stops it when it is the last to leave.
//
// # What can go wrong
//
// postmaster.pid may be that of a server which was killed, and its process id may meanwhile belong to somebody else. The
// server of a directory is the process that works in it, answers on its port, knows its password and names its data
// directory; a file that points to anything else is removed. A server that is on its way up or down is waited for.
//
// PostgreSQL refuses to run as root, so root drops to the owner of the cluster: postgres where there is one, else another
// user without rights. That user has to reach the directory. Where it cannot, below /root for example, the cluster is
// placed in /var/lib/postbus instead and Server.Note says so; permissions of directories that exist are never changed.
package localpg
