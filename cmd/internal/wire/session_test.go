package wire

import (
	"bytes"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"postbus/internal/config"
	"postbus/internal/pgtest"
)

// TestListTellsRestFromAbsence: a process that runs a consumer and holds nothing, since it has nothing to do, is no
// nobody. It is told from its connection alone.
func TestListTellsRestFromAbsence(t *testing.T) {
	t.Parallel()
	logger := slog.New(slog.DiscardHandler)
	silent := func(string) {}
	settings := config.Config{
		Program: config.Consumer, DatabaseURL: pgtest.URL(t), DataDir: pgtest.Dir(t), PublicURL: "http://localhost",
		SecretKey: []byte(strings.Repeat("k", 32)), SMTPURL: "smtp://127.0.0.1:1", Only: []string{"welcome-email"},
	}
	b, err := Open(t.Context(), settings, logger, silent)
	if err != nil {
		t.Fatal(err)
	}
	list := func() map[string]string {
		t.Helper()
		var out bytes.Buffer
		listing := settings
		listing.Only, listing.List = nil, true
		if err := List(t.Context(), listing, &out, logger, silent); err != nil {
			t.Fatal(err)
		}
		rows := map[string]string{}
		for line := range strings.Lines(out.String()) {
			if columns := strings.Split(line, "   "); len(columns) > 1 {
				rows[columns[0]] = line
			}
		}
		return rows
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	process := processOf(t, sessionName(settings))
	if !strings.HasPrefix(host+"/", strings.SplitAfter(process, "/")[0]) {
		t.Errorf("process %q is not on %q", process, host)
	}
	rows := list()
	if row := rows["welcome-email"]; !strings.Contains(row, " "+process+", resting ") {
		t.Errorf("while it rests: %q", row)
	}
	if row := rows["verification-email"]; row == "" || strings.Contains(row, "resting") {
		t.Errorf("the consumer that runs nowhere: %q", row)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if row := list()["welcome-email"]; strings.Contains(row, "resting") {
		t.Errorf("when it is gone: %q", row)
	}
}

func processOf(t *testing.T, session string) string {
	t.Helper()
	words := strings.Split(session, " ")
	if len(words) != 4 {
		t.Fatalf("session name %q", session)
	}
	return words[3]
}

func TestSessionName(t *testing.T) {
	for runs, c := range map[string]config.Config{
		"app all":                    {Program: config.App, EmbeddedConsumers: true},
		"app none":                   {Program: config.App},
		"consumer all":               {Program: config.Consumer, EmbeddedConsumers: true},
		"consumer a-b,c":             {Program: config.Consumer, Only: []string{"a-b", "c"}},
		"consumer none":              {Program: config.Consumer, List: true},
		"consumer some":              {Program: config.Consumer, Only: []string{strings.Repeat("long", 10)}},
		"consumer welcome-email,a-b": {Program: config.Consumer, Only: []string{"welcome-email", "a-b"}},
	} {
		name := sessionName(c)
		if !strings.HasPrefix(name, "postbus "+runs+" ") || len(name) > 63 {
			t.Errorf("%s: %q", runs, name)
		}
	}
}

// TestRelayOfJobsRunsWhereJobsDo, all of them or some.
func TestRelayOfJobsRunsWhereJobsDo(t *testing.T) {
	t.Parallel()
	got := resting([]string{
		"postbus app all a/1", "postbus app none a/2", "postbus consumer welcome-email,job:default a/3", "postbus consumer welcome-email a/4",
	}, crossing.Consumer)
	if want := []string{"a/1", "a/3"}; !slices.Equal(got, want) {
		t.Errorf("it runs in %q, want %q", got, want)
	}
}
