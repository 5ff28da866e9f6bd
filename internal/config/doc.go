// Package config reads environment and flags into one checked struct.
//
// Every setting is one row of the table in settings.go: its name, which programs have it, what it means, how it is
// checked. Names of variables, flags, the text of --help and the README's table all come from there. The rules:
//
//   - A flag is its variable's name in lower case with dashes (HTTP_ADDR, --http-addr), and wins over it.
//   - An empty value, of either, means that the setting is unset; a flag can so undo a variable.
//   - What is unknown is refused: a flag, an argument, a variable that begins with POSTBUS_. A variable of a setting that
//     another program has is not, since programs share environments.
//   - A refusal is one sentence, an *Error. It names the setting and what is allowed. It never holds the value of a
//     secret or a URL, nor the text of an error of a library that may quote one.
//
// The package reads nothing but what it is given, and writes nothing but the text of --help and --version. The exceptions
// are what is kept in the data directory: LoadOrCreateSecret, KeepPublicURL, KeptPublicURL.
package config
