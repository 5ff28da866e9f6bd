package config

import (
	"slices"
	"strings"
)

// Setting is one thing that programs can be told.
type Setting struct {
	Name    string // of the environment variable; empty if there is only a flag
	Flag    string // without dashes
	Value   string // what stands for the value in --help; empty if the flag takes none
	Group   string // heading in --help
	Meaning string
	Default string // for people

	programs []string
	refused  bool // a name that is known and not supported by this version
	set      func(c *Config, value string) error
}

// Settings returns the settings that any of the programs has, or all settings if none is named, in the order of --help.
// Those without a Name are flags only. Names that this version refuses are not among them.
func Settings(programs ...string) []Setting {
	if len(programs) == 0 {
		programs = []string{App, Consumer}
	}
	return slices.DeleteFunc(table(), func(s Setting) bool {
		return s.refused || !slices.ContainsFunc(programs, s.of)
	})
}

func (s Setting) of(program string) bool { return slices.Contains(s.programs, program) }

// tableOf returns the rows of one program, refused names included.
func tableOf(program string) []Setting {
	return slices.DeleteFunc(table(), func(s Setting) bool { return !s.of(program) })
}

// table is every setting there is.
func table() []Setting {
	rows := slices.Concat(ofDatabase(), ofWeb(), ofMail(), ofLogs(), ofRun(), ofOperation(), ofAnswers(), refused())
	for i, s := range rows {
		if s.Flag == "" {
			rows[i].Flag = strings.ReplaceAll(strings.ToLower(s.Name), "_", "-")
		}
	}
	return rows
}

func ofDatabase() []Setting {
	both := []string{App, Consumer}
	return []Setting{
		{
			Name: "DATABASE_URL", Value: "URL", Group: "Database", programs: both, set: setDatabaseURL,
			Meaning: "The application's Postgres, as postgres://USER:PASSWORD@HOST:5432/DATABASE.",
			Default: "a private Postgres that the program starts itself, under POSTBUS_DATA_DIR",
		},
		{
			Name: "JOB_QUEUE_DATABASE_URL", Value: "URL", Group: "Database", programs: both, set: setJobsDatabaseURL,
			Meaning: "A Postgres for jobs alone, written like DATABASE_URL; the same in every program. While it is away, jobs wait.",
			Default: "jobs are in the application's",
		},
		{
			Name: "POSTBUS_DATA_DIR", Value: "DIR", Group: "Database", programs: both, set: setDataDir,
			Meaning: "Where the private Postgres, the local mailbox and the secret key of the first run are kept.",
			Default: ".postbus",
		},
		{
			Name: "POSTBUS_POSTGRES_DOWNLOAD", Value: "on|off", Group: "Database", programs: both, set: setPostgresDownload,
			Meaning: "Whether the private Postgres may be downloaded if none is found on this machine.",
			Default: "on",
		},
		{
			Name: "EVENT_RETENTION", Value: "AGE", Group: "Database", programs: both, set: setEventRetention,
			Meaning: "How old events get before they go, such as 30d or 720h; an eighth more at most. What a consumer has yet to " +
				"read stays.",
			Default: "events are kept for ever",
		},
		{
			Name: "BROKER_URL", Value: "URL", Group: "Database", programs: both, set: setBrokerURL,
			Meaning: "The broker that carries events to the consumers, as nats://USER:PASSWORD@HOST:4222,HOST:4222; the same in every " +
				"program. docs/brokers.md has what may follow behind a question mark.",
			Default: "none: consumers read the application's Postgres",
		},
	}
}

func ofWeb() []Setting {
	both, app := []string{App, Consumer}, []string{App}
	return []Setting{
		{
			Name: "CONSUMERS", Value: "embedded|none", Group: "Web", programs: app, set: setConsumers,
			Meaning: "Whether the app runs the consumers inside its process, or leaves them to cmd/consumer.",
			Default: "embedded",
		},
		{
			Name: "HTTP_ADDR", Value: "HOST:PORT", Group: "Web", programs: both, set: setHTTPAddr,
			Meaning: "Where the app listens; port 0 takes a free one. The consumer needs it only to guess PUBLIC_URL.",
			Default: "127.0.0.1:8080",
		},
		{
			Name: "PUBLIC_URL", Value: "URL", Group: "Web", programs: both, set: setPublicURL,
			Meaning: "What links in emails begin with: http or https, a host, no path.",
			Default: "http:// + HTTP_ADDR; without a DATABASE_URL a consumer that was told neither takes the app's",
		},
		{
			Name: "TRUSTED_PROXIES", Value: "CIDR[,CIDR]", Group: "Web", programs: app, set: setTrustedProxies,
			Meaning: "The networks of the proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8.",
			Default: "none",
		},
	}
}

func ofMail() []Setting {
	both := []string{App, Consumer}
	return []Setting{
		{
			Name: "SECRET_KEY", Value: "KEY", Group: "Mail", programs: both, set: setSecretKey,
			Meaning: "Derives the tokens in links: 32 characters or more, used as they are; make one with " +
				"openssl rand -base64 32. Required with a DATABASE_URL, the same in every program. Better a variable than a " +
				"flag, which other users of the machine can see.",
			Default: "made on the first run and kept beside the private Postgres",
		},
		{
			Name: "SMTP_URL", Value: "URL", Group: "Mail", programs: both, set: setSMTPURL,
			Meaning: "The mail server: smtp:// (clear text, this machine only), smtps:// or smtp+starttls://, with " +
				"USER:PASSWORD@ if it wants them.",
			Default: "unset: mail goes to a local mailbox that the app shows at /mailbox",
		},
		{
			Name: "MAIL_FROM", Value: "ADDRESS", Group: "Mail", programs: both, set: setMailFrom,
			Meaning: "The sender of mails, as no-reply@example.org or Name <no-reply@example.org>.",
			Default: "postbus <no-reply@HOST>, with the host of PUBLIC_URL, or postbus.localhost on this machine",
		},
	}
}

func ofLogs() []Setting {
	both := []string{App, Consumer}
	return []Setting{
		{
			Name: "LOG_LEVEL", Value: "LEVEL", Group: "Logs", programs: both, set: setLogLevel,
			Meaning: "The least that is logged: trace, debug, info, warn or error.",
			Default: "info",
		},
		{
			Name: "LOG_FORMAT", Value: "text|json", Group: "Logs", programs: both, set: setLogFormat,
			Meaning: "How it is logged. Colours are left out if NO_COLOR is set.",
			Default: "text on a terminal, json elsewhere",
		},
	}
}

const (
	flagHelp    = "help"
	flagVersion = "version"
)

// ofRun are those that it makes no sense to keep in an environment.
func ofRun() []Setting {
	return []Setting{
		{
			Flag: "only", Value: "NAME[,NAME]", Group: "This run", programs: []string{Consumer}, set: setOnly,
			Meaning: "Run these consumers and no others, and of the queues of jobs those that are named here, each behind job: as " +
				"in job:outgoing-mail, which is where mail is sent.",
			Default: "all",
		},
		{
			Flag: "psql", Group: "This run", programs: []string{App}, set: setPsql,
			Meaning: "Open psql on the database instead, the private one included, and end with it.",
		},
		{
			Flag: "list", Group: "This run", programs: []string{Consumer}, set: setList,
			Meaning: "List the consumers and the queues of jobs, with what each takes, where it stands and which processes run it, " +
				"and end. One that has had nothing to do for 10 s is resting; - is nobody.",
		},
	}
}

// ofOperation are those that change or look at something, and end.
func ofOperation() []Setting {
	return []Setting{
		{
			Flag: "move", Value: "NAME", Group: "This run", programs: []string{Consumer}, set: setMove,
			Meaning: "Move a consumer to the place that --to names, and end. Without --apply it only says what that would do.",
		},
		{
			Flag: "to", Value: "PLACE", Group: "This run", programs: []string{Consumer}, set: setTo,
			Meaning: "Where to: now, beginning, a time such as 2026-11-23T12:00:00Z, or after a position in the topic.",
		},
		{
			Flag: "rename", Value: "OLD:NEW", Group: "This run", programs: []string{Consumer}, set: setRename,
			Meaning: "Give the place of a consumer to its new name, and end. Needs --apply.",
		},
		{
			Flag: "forget", Value: "NAME", Group: "This run", programs: []string{Consumer}, set: setForget,
			Meaning: "Forget a consumer that no program has any more, with all that waits for it; without --apply only say so.",
		},
		{
			Flag: "dead", Value: "VERB", Group: "This run", programs: []string{Consumer}, set: setDead,
			Meaning: "What to do about events and jobs that were given up, and end: list them by how they failed, or show, " +
				"retry, discard or release those that --which names. Without --apply the last three only say how many.",
		},
		{
			Flag: "which", Value: "NAME[:GROUP|:ID|:key=KEY]", Group: "This run", programs: []string{Consumer}, set: setWhich,
			Meaning: "A consumer's dead events, or those of a queue of jobs, which is named behind job: as in job:outgoing-mail: all, " +
				"those of a group that --dead=list shows, one by its id, or those of a key.",
		},
		{
			Flag: "payload", Value: "FILE", Group: "This run", programs: []string{Consumer}, set: setPayload,
			Meaning: "What takes the place of the payload of a dead event, when one is tried again.",
		},
		{
			Flag: "note", Value: "TEXT", Group: "This run", programs: []string{Consumer}, set: setNote,
			Meaning: "Why, to be kept with a dead event or job.",
		},
		{
			Flag: "join-broker", Group: "This run", programs: []string{Consumer}, set: setJoinBroker,
			Meaning: "Have the broker of BROKER_URL carry the events to the consumers from one moment on, while programs run, and end " +
				"when the first have arrived. Without --apply it only says what that would do.",
		},
		{
			Flag: "leave-broker", Group: "This run", programs: []string{Consumer}, set: setLeaveBroker,
			Meaning: "Have the consumers read the application's Postgres again from one moment on, while programs run, and end. The " +
				"broker need not be there. Without --apply it only says what that would do.",
		},
		{
			Flag: "apply", Group: "This run", programs: []string{Consumer}, set: setApply,
			Meaning: "Do what --move, --rename, --forget, --dead, --join-broker or --leave-broker says.",
		},
	}
}

// ofAnswers are those that are answered before any setting is looked at.
func ofAnswers() []Setting {
	both := []string{App, Consumer}
	answered := func(_ *Config, value string) error { // before any setting is looked at, if it is true
		_, err := parseBool(value)
		return err
	}
	return []Setting{
		{
			Flag: flagHelp, Group: "This run", programs: both, set: answered, Meaning: "Show this text and end.",
		},
		{
			Flag: flagVersion, Group: "This run", programs: both, set: answered, Meaning: "Show the version and end.",
		},
	}
}

// refused are names of settings that people may expect, because the design has them. To ignore one would be worse than
// not to have it.
func refused() []Setting {
	var rows []Setting
	for _, name := range []string{"OPS_TOKEN"} {
		rows = append(rows, Setting{
			Name: name, Value: "VALUE", refused: true, programs: []string{App, Consumer},
			set: func(*Config, string) error { return errNotSupported },
		})
	}
	return rows
}
