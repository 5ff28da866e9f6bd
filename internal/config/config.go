package config

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// The programs that have settings.
const (
	App      = "app"
	Consumer = "consumer"
)

// QueuePrefix begins the name of a queue of jobs where a consumer's might stand.
const QueuePrefix = "job:"

const defaultHTTPAddr = "127.0.0.1:8080"

// Config is what a program was told, checked. A setting that a program does not have keeps its default.
//
// It prints, logs and marshals without secrets: String, GoString, LogValue and MarshalText are redacted. Its fields
// are not.
type Config struct {
	// Program is App or Consumer.
	Program string

	// DatabaseURL is a postgres:// or postgresql:// URL that pgxpool can parse. Default empty: a private Postgres.
	DatabaseURL string
	// EventRetention is how old events get before they go. Default 0: they are kept for ever.
	EventRetention time.Duration
	// JobsDatabaseURL is a URL like DatabaseURL's, of another database. Default empty: jobs are in the application's.
	JobsDatabaseURL string
	// DataDir is where a private Postgres, the local mailbox and a kept secret key live. Default ".postbus".
	DataDir string
	// PostgresDownload tells whether a private Postgres may be downloaded if there is none on the machine. Default true.
	PostgresDownload bool

	// BrokerURL says which broker carries events to the consumers; whoever opens it checks it. Default empty: none, consumers
	// read the application's Postgres.
	BrokerURL string

	// EmbeddedConsumers tells whether the app runs the consumers too. Default true.
	EmbeddedConsumers bool
	// HTTPAddr is what the app listens on, as host:port; port 0 takes a free one. Default "127.0.0.1:8080".
	HTTPAddr string
	// PublicURL is scheme and host, without a slash at the end; the host is in punycode. Default http:// and HTTPAddr. It
	// is empty only in the app, if it is unset and HTTPAddr has port 0: then DefaultPublicURL makes it of the listener's.
	PublicURL string
	// PublicURLGuessed tells that neither PUBLIC_URL nor HTTP_ADDR was set, so that PublicURL is the default of both.
	// KeptPublicURL may know better.
	PublicURLGuessed bool
	// TrustedProxies are the networks whose X-Forwarded-For is believed. Default none.
	TrustedProxies []netip.Prefix

	// SecretKey derives the links' tokens: the bytes of SECRET_KEY as they are, at least 32, decoded from nothing.
	// Default nil, only without a DatabaseURL: LoadOrCreateSecret has it.
	SecretKey []byte

	// SMTPURL begins with smtp://, smtps:// or smtp+starttls:// and has a host; internal/mail checks the rest. Default
	// empty: the local mailbox.
	SMTPURL string
	// MailFrom is an address, perhaps with a name. Default empty: internal/mail makes it of PublicURL.
	MailFrom string

	// LogLevel is the least that is logged. Default info; trace is slog.LevelDebug - 4.
	LogLevel slog.Level
	// LogFormat is "text" or "json". Default empty: text on a terminal, JSON elsewhere.
	LogFormat string

	// Only names the consumers to run, and the queues of jobs, these behind QueuePrefix. Default nil: all. Whether they exist
	// is the program's to check.
	Only []string
	// List asks for the list of consumers instead of running them. Default false.
	List bool
	// Move names a consumer to be moved to To, which is "now", "beginning", a time of RFC 3339 or a position. Default empty.
	Move, To string
	// Forget names a consumer that is to be forgotten. Default empty.
	Forget string
	// RenameFrom is the name of a consumer whose place RenameTo is to have. Default empty.
	RenameFrom, RenameTo string
	// Dead is what to do about dead events and jobs: list, show, retry, discard, release. Default empty: nothing.
	Dead string
	// WhichConsumer has the dead events in question, or WhichQueue the dead jobs: all of them, or those of WhichGroup or
	// WhichKey, or the one of WhichID. Default empty.
	WhichConsumer, WhichQueue, WhichGroup, WhichKey string
	WhichID                                         uuid.UUID
	// Payload is the file with what takes the place of a dead event's payload, Note says why. Default empty.
	Payload, Note string
	// Apply tells whether a move, a rename, a change of brokers or what is said of dead events is to be done, not only told.
	// Default false.
	Apply bool
	// JoinBroker asks for the consumers to read what the broker brings, LeaveBroker for them to read the application's Postgres
	// again. Default false.
	JoinBroker, LeaveBroker bool
	// Psql asks for psql on the database instead of running the app. Default false.
	Psql bool
}

// Load reads the settings that the program has from args, without the program's name, and env, which is asked for
// nothing but settings. The error is an *Error, ErrHelp after the answer has been written to out, or out's own.
//
// Since env cannot be listed, an unknown POSTBUS_ variable goes unnoticed; LoadOS notices it.
func Load(program string, args []string, env func(string) (string, bool), out io.Writer) (Config, error) {
	return load(program, args, env, nil, out)
}

// LoadOS is Load with this process's arguments and environment. It also refuses a variable that begins with POSTBUS_ and
// is no setting of any program.
func LoadOS(program string, out io.Writer) (Config, error) {
	return load(program, os.Args[1:], os.LookupEnv, os.Environ(), out)
}

func load(program string, args []string, env func(string) (string, bool), environ []string, out io.Writer) (Config, error) {
	settings := tableOf(program)
	if len(settings) == 0 {
		return Config{}, fmt.Errorf("program %q has no settings", program)
	}
	flags, err := parseFlags(program, settings, args)
	if err != nil {
		return Config{}, err
	}
	if done, err := answer(program, flags, out); done {
		return Config{}, err
	}
	if err := checkEnviron(environ); err != nil {
		return Config{}, err
	}
	c := defaults(program)
	for _, s := range settings {
		origin, value := s.find(flags, env)
		if value == "" {
			continue
		}
		if err := s.apply(&c, value); err != nil {
			return Config{}, &Error{Setting: origin, Problem: err.Error()}
		}
	}
	return complete(c)
}

// answer writes what was asked for, if it was help or the version.
func answer(program string, flags map[string]string, out io.Writer) (done bool, err error) {
	texts := map[string]string{flagHelp: Help(program), flagVersion: "postbus " + program + " " + Version() + "\n"}
	for _, name := range []string{flagHelp, flagVersion} {
		if asked, err := parseBool(flags[name]); err != nil || !asked {
			continue // what is malformed is refused with the other settings
		}
		if _, err := io.WriteString(out, texts[name]); err != nil {
			return true, fmt.Errorf("write %s: %w", name, err)
		}
		return true, ErrHelp
	}
	return false, nil
}

func defaults(program string) Config {
	return Config{
		Program:           program,
		DataDir:           ".postbus",
		PostgresDownload:  true,
		EmbeddedConsumers: true,
		LogLevel:          slog.LevelInfo,
	}
}

// find returns the value and where it is from. The flag wins, also when it is empty.
func (s Setting) find(flags map[string]string, env func(string) (string, bool)) (origin, value string) {
	origin = "--" + s.Flag
	value, given := flags[s.Flag]
	if !given && s.Name != "" {
		origin = s.Name
		value, _ = env(s.Name)
	}
	return origin, strings.TrimSpace(value)
}

func (s Setting) apply(c *Config, value string) error {
	if strings.ContainsFunc(value, unicode.IsControl) || !utf8.ValidString(value) {
		return errControl
	}
	return s.set(c, value)
}

// complete fills in what depends on other settings and checks what one setting demands of another.
func complete(c Config) (Config, error) {
	if c.DatabaseURL != "" && c.SecretKey == nil {
		return Config{}, &Error{Setting: "SECRET_KEY", Problem: "is required with a DATABASE_URL, and has to be the same in " +
			"every program; make one with: openssl rand -base64 32"}
	}
	if c.DatabaseURL != "" && sameDatabase(c.DatabaseURL, c.JobsDatabaseURL) {
		return Config{}, &Error{Setting: "JOB_QUEUE_DATABASE_URL", Problem: "names the same database as DATABASE_URL; leave it unset " +
			"to have jobs there"}
	}
	if err := checkRun(c); err != nil {
		return Config{}, err
	}
	if c.HTTPAddr == "" {
		c.HTTPAddr, c.PublicURLGuessed = defaultHTTPAddr, c.PublicURL == ""
	}
	return completeURL(c)
}

// checkRun checks what the flags of this run demand of each other.
func checkRun(c Config) error {
	switch {
	case (c.Move == "") != (c.To == ""):
		return &Error{Setting: "--move", Problem: "goes with --to: --move=welcome-email --to=now"}
	case c.RenameFrom != "" && !c.Apply:
		return &Error{Setting: "--rename", Problem: "needs --apply"}
	case c.JoinBroker && c.BrokerURL == "":
		return &Error{Setting: "--join-broker", Problem: "needs the BROKER_URL of the broker"}
	case c.JoinBroker && c.LeaveBroker:
		return &Error{Setting: "--join-broker", Problem: "does not go with --leave-broker"}
	}
	return checkDead(c)
}

// checkDead checks what --dead and the flags that go with it demand of each other.
func checkDead(c Config) error {
	which := c.WhichConsumer != "" || c.WhichQueue != ""
	switch {
	case c.Dead == "" && (which || c.Payload != "" || c.Note != ""):
		return &Error{Setting: "--which, --payload and --note", Problem: "go with --dead"}
	case c.Dead != "" && c.Dead != "list" && !which:
		return &Error{Setting: "--dead=" + c.Dead, Problem: "needs --which, such as --which=welcome-email or --which=job:outgoing-mail"}
	case c.Dead == "release" && c.WhichQueue != "":
		return &Error{Setting: "--dead=release", Problem: "is for events: a dead job holds nothing up"}
	case c.Payload != "" && (c.Dead != "retry" || c.WhichConsumer == "" || c.WhichID == uuid.Nil):
		return &Error{Setting: "--payload", Problem: "goes with --dead=retry and one event: --which=NAME:ID"}
	}
	return nil
}

// completeURL makes PublicURL of HTTPAddr where it was not given.
func completeURL(c Config) (Config, error) {
	if c.PublicURL != "" {
		return c, nil
	}
	anyPort := strings.HasSuffix(c.HTTPAddr, ":0")
	if anyPort && c.Program == App {
		return c, nil
	}
	if anyPort {
		return Config{}, &Error{Setting: "PUBLIC_URL", Problem: "is required when HTTP_ADDR has port 0, since links need the real one"}
	}
	if setPublicURL(&c, DefaultPublicURL(c.HTTPAddr)) != nil {
		return Config{}, &Error{Setting: "PUBLIC_URL", Problem: "is required, since none can be made of this HTTP_ADDR"}
	}
	return c, nil
}

// DefaultPublicURL is the URL of an app that listens on addr, as seen from this machine: where addr names no host, or
// all of them, it is localhost.
func DefaultPublicURL(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "http://" + addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port)
}
