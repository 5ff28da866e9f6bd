// Package e2e_test runs the programs as a person does: the real binaries as processes, on a data directory or database of
// their own, with a real SMTP server. A crash is a SIGKILL.
//
//	process_test.go   one process: its output, its signals, its end
//	site_test.go      what the processes of one installation share: directory, port, settings
//	client_test.go    the person: signs up, follows links
//	office_test.go    the SMTP server: keeps the mails, and misbehaves on demand
//	database_test.go  what is in the tables
//
// Nothing here sleeps to let something happen: tests wait for output, for a mail, or for an answer.
package e2e_test
