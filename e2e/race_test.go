//go:build race

package e2e_test

// raceArgs build the programs as the tests were built.
var raceArgs = []string{"-race"}
