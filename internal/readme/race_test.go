//go:build race

package readme_test

// raceArgs build the example as the tests were built, and so from the packages that are built already.
var raceArgs = []string{"-race"}
