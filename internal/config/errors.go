package config

import "errors"

// ErrHelp is returned when --help or --version was asked for and has been answered. The program ends with exit status 0.
var ErrHelp = errors.New("help was asked for")

// Error is a setting, flag or argument that is refused. The program prints it as one line and ends with exit status 2.
type Error struct {
	Setting string // as it was given: HTTP_ADDR or --http-addr
	Problem string // what is wrong and what is allowed; holds no secret
}

// Error is the sentence for a person; it holds no value of a secret.
func (e *Error) Error() string { return e.Setting + " " + e.Problem }
