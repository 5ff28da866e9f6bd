package config

import (
	"runtime/debug"
	"strings"
)

const (
	helpColumnsMax = 90
	helpIndent     = "        "
	revisionLength = 12
)

// Help is the text of --help, with a line end.
func Help(program string) string {
	about := "serves the pages and the API, and runs the consumers."
	example := "go run ./cmd/app --http-addr=127.0.0.1:9000 --log-level=debug"
	if program == Consumer {
		about = "runs the consumers in a process of their own."
		example = "go run ./cmd/consumer --only=welcome-email --log-level=debug"
	}
	var b strings.Builder
	b.WriteString("postbus " + program + " " + about + "\n\n")
	wrap(&b, "", "Each setting is an environment variable or a flag of the same name; the flag wins. "+
		"An empty value means that it is unset. None is needed for a first run.")
	group := ""
	for _, s := range Settings(program) {
		if s.Group != group {
			group = s.Group
			b.WriteString("\n" + group + "\n")
		}
		b.WriteString(s.help())
	}
	b.WriteString("\nExamples\n  " + example + "\n" +
		"  DATABASE_URL=postgres://postbus@localhost/postbus SECRET_KEY=\"$(cat key)\" \\\n    go run ./cmd/" + program + "\n")
	return b.String()
}

func (s Setting) help() string {
	var b strings.Builder
	b.WriteString("  ")
	if s.Name != "" {
		b.WriteString(s.Name + ", ")
	}
	b.WriteString("--" + s.Flag)
	if s.Value != "" {
		b.WriteString("=" + s.Value)
	}
	b.WriteString("\n")
	wrap(&b, helpIndent, s.Meaning)
	if s.Default != "" {
		wrap(&b, helpIndent, "Default: "+s.Default)
	}
	return b.String()
}

// wrap writes the text in lines of at most helpColumnsMax columns, as far as its words allow.
func wrap(b *strings.Builder, indent, text string) {
	line := indent
	for word := range strings.FieldsSeq(text) {
		if line != indent && len(line)+1+len(word) > helpColumnsMax {
			b.WriteString(line + "\n")
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
}

// Version names the version that this program was built from, as far as the build knows it, and Go's.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	return versionOf(info)
}

func versionOf(info *debug.BuildInfo) string {
	version := info.Main.Version
	if version == "" {
		version = "(devel)"
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if revision := settings["vcs.revision"]; revision != "" && version == "(devel)" {
		version += " " + revision[:min(revisionLength, len(revision))]
		if settings["vcs.modified"] == "true" {
			version += "+dirty"
		}
	}
	return version + " " + info.GoVersion
}
