package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

const (
	key      = "c2VjcmV0LWtleS1vZi0zMi1ieXRlcy1mb3ItdGVzdHM=" // as openssl rand -base64 32 makes them
	password = "hunter2-4711"
)

func env(pairs ...string) func(string) (string, bool) {
	m := map[string]string{}
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		m[name] = value
	}
	return func(name string) (string, bool) { v, ok := m[name]; return v, ok }
}

func TestDefaults(t *testing.T) {
	got, err := Load(App, nil, env(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Program: App, DataDir: ".postbus", PostgresDownload: true, EmbeddedConsumers: true, HTTPAddr: "127.0.0.1:8080",
		PublicURL: "http://127.0.0.1:8080", PublicURLGuessed: true, LogLevel: slog.LevelInfo,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestEverySettingIsTakenFromVariableAndFlag(t *testing.T) {
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	database := "postgres://u:p@h:5432/db?sslmode=disable&pool_max_conns=4"
	tests := []struct {
		name, value string
		get         func(Config) any
		want        any
	}{
		{"DATABASE_URL", database, func(c Config) any { return c.DatabaseURL }, database},
		{"JOB_QUEUE_DATABASE_URL", database, func(c Config) any { return c.JobsDatabaseURL }, database},
		{"EVENT_RETENTION", "30d", func(c Config) any { return c.EventRetention }, 30 * 24 * time.Hour},
		{"EVENT_RETENTION", "36h30m", func(c Config) any { return c.EventRetention }, 36*time.Hour + 30*time.Minute},
		{"POSTBUS_DATA_DIR", "/a b/c", func(c Config) any { return c.DataDir }, "/a b/c"},
		{"POSTBUS_POSTGRES_DOWNLOAD", "off", func(c Config) any { return c.PostgresDownload }, false},
		{"CONSUMERS", "none", func(c Config) any { return c.EmbeddedConsumers }, false},
		{"HTTP_ADDR", "[::1]:0", func(c Config) any { return c.HTTPAddr }, "[::1]:0"},
		{"PUBLIC_URL", "https://bücher.example:8443/", func(c Config) any { return c.PublicURL }, "https://xn--bcher-kva.example:8443"},
		{"TRUSTED_PROXIES", "10.1.2.3/8, fd00::/8", func(c Config) any { return c.TrustedProxies }, prefixes},
		{"SECRET_KEY", key, func(c Config) any { return string(c.SecretKey) }, key},
		{"SMTP_URL", "smtps://u:p@h:465", func(c Config) any { return c.SMTPURL }, "smtps://u:p@h:465"},
		{"MAIL_FROM", "Post Bus <post@example.org>", func(c Config) any { return c.MailFrom }, "Post Bus <post@example.org>"},
		{"BROKER_URL", "nats://u:p@h:4222,i", func(c Config) any { return c.BrokerURL }, "nats://u:p@h:4222,i"},
		{"LOG_LEVEL", "TRACE", func(c Config) any { return c.LogLevel }, slog.Level(-8)},
		{"LOG_FORMAT", "json", func(c Config) any { return c.LogFormat }, "json"},
	}
	tested := map[string]bool{}
	for _, tt := range tests {
		tested[tt.name] = true
		t.Run(tt.name, func(t *testing.T) {
			flagName := "--" + strings.ReplaceAll(strings.ToLower(tt.name), "_", "-")
			other := env("SECRET_KEY="+key, tt.name+"=never looked at")
			if tt.name == "SECRET_KEY" {
				other = env(tt.name + "=never looked at, because a flag wins over a variable")
			}
			for origin, load := range map[string]func() (Config, error){
				"variable":   func() (Config, error) { return Load(App, nil, env("SECRET_KEY="+key, tt.name+"="+tt.value), nil) },
				"padded":     func() (Config, error) { return Load(App, nil, env("SECRET_KEY="+key, tt.name+"= "+tt.value+"\n"), nil) },
				"flag":       func() (Config, error) { return Load(App, []string{flagName + "=" + tt.value}, other, nil) },
				"two words":  func() (Config, error) { return Load(App, []string{flagName, tt.value}, other, nil) },
				"one dash":   func() (Config, error) { return Load(App, []string{flagName[1:], tt.value}, other, nil) },
				"last flag ": func() (Config, error) { return Load(App, []string{flagName, "x", flagName, tt.value}, other, nil) },
			} {
				c, err := load()
				if err != nil {
					t.Fatalf("%s: %v", origin, err)
				}
				if got := tt.get(c); !reflect.DeepEqual(got, tt.want) {
					t.Errorf("%s: got %v, want %v", origin, got, tt.want)
				}
			}
		})
	}
	for _, s := range Settings(App) {
		if s.Name != "" && !tested[s.Name] {
			t.Errorf("%s is not tested", s.Name)
		}
	}
}

func TestEmptyMeansUnset(t *testing.T) {
	var variables []string
	for _, s := range table() {
		variables = append(variables, s.Name+"=")
	}
	got, err := Load(App, nil, env(variables...), nil)
	if err != nil || got.HTTPAddr != "127.0.0.1:8080" || got.PublicURL != "http://127.0.0.1:8080" {
		t.Errorf("variables: %v, %v", got, err)
	}
	got, err = Load(App, []string{"--log-format=", "--broker-url="}, env("LOG_FORMAT=json", "BROKER_URL=nats://x"), nil)
	if err != nil || got.LogFormat != "" {
		t.Errorf("a flag does not undo a variable: %v, %v", got, err)
	}
}

func TestConsumer(t *testing.T) {
	c, err := Load(Consumer, []string{"--only", "welcome-email, audit", "--list"},
		env("CONSUMERS=whatever", "TRUSTED_PROXIES=whatever", "HTTP_ADDR=0.0.0.0:9000"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !c.List || !reflect.DeepEqual(c.Only, []string{"welcome-email", "audit"}) || c.PublicURL != "http://localhost:9000" {
		t.Errorf("got %v", c)
	}
}

// TestWhich: consumers and queues, whole, by group, by id and by key.
func TestWhich(t *testing.T) {
	id := uuid.MustParse("0191e3b0-0000-7000-8000-000000000000")
	for value, want := range map[string]Config{
		"welcome-email":                    {WhichConsumer: "welcome-email"},
		"welcome-email:0badcafe":           {WhichConsumer: "welcome-email", WhichGroup: "0badcafe"},
		"welcome-email:" + id.String():     {WhichConsumer: "welcome-email", WhichID: id},
		"welcome-email:key=a:b":            {WhichConsumer: "welcome-email", WhichKey: "a:b"},
		"welcome-email:key=" + id.String(): {WhichConsumer: "welcome-email", WhichKey: id.String()},
		"job:outgoing-mail":                {WhichQueue: "outgoing-mail"},
		"job:outgoing-mail:0badcafe":       {WhichQueue: "outgoing-mail", WhichGroup: "0badcafe"},
		"job:outgoing-mail:" + id.String(): {WhichQueue: "outgoing-mail", WhichID: id},
		"job:outgoing-mail:key=0badcafe":   {WhichQueue: "outgoing-mail", WhichKey: "0badcafe"},
	} {
		c, err := Load(Consumer, []string{"--dead=show", "--which=" + value}, env(), nil)
		got := Config{
			WhichConsumer: c.WhichConsumer, WhichQueue: c.WhichQueue, WhichGroup: c.WhichGroup, WhichKey: c.WhichKey, WhichID: c.WhichID,
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", value, got, err)
		}
	}
	c, err := Load(Consumer, []string{"--only=welcome-email,job:outgoing-mail"}, env(), nil)
	if err != nil || !reflect.DeepEqual(c.Only, []string{"welcome-email", "job:outgoing-mail"}) {
		t.Errorf("got %q, %v", c.Only, err)
	}
}

// refusals has for each thing that can be wrong the one sentence about it.
var refusals = []struct {
	name    string
	program string
	args    []string
	env     []string
	want    string // the beginning
}{
	{"retention of a moment", App, nil, []string{"EVENT_RETENTION=5m"}, "EVENT_RETENTION has to be an age of an hour at least"},
	{"retention of no days", App, nil, []string{"EVENT_RETENTION=0d"}, "EVENT_RETENTION has to be an age of an hour at least"},
	{"retention backwards", App, nil, []string{"EVENT_RETENTION=-720h"}, "EVENT_RETENTION has to be an age of an hour at least"},
	{"retention in weeks", App, nil, []string{"EVENT_RETENTION=4w"}, "EVENT_RETENTION has to be an age of an hour at least"},
	{"forget a sentence", Consumer, []string{"--forget=the old one"}, nil, "--forget has to be the name of a consumer"},
	{"unknown flag", App, []string{"--bogus=1"}, nil, "--bogus is not a flag of app; see --help"},
	{"flag of the other", App, []string{"--only=x"}, nil, "--only is not a flag of app, but of consumer"},
	{"http flag of the consumer", Consumer, []string{"--consumers=none"}, nil, "--consumers is not a flag of consumer, but of app"},
	{"url as flag", App, []string{"--postgres://u:" + password + "@h"}, nil, "argument 1 is not a flag; see --help"},
	{"no value", App, []string{"--log-level=info", "--database-url"}, nil, "--database-url needs a value: --database-url=…"},
	{"argument", App, []string{"--log-level=info", password}, nil, "argument 2 is not expected: everything is a flag"},
	{"dashes", App, []string{"---x"}, nil, "argument 1 is not a flag"},
	{"dashes behind a flag", Consumer, []string{"--only", "list", "--list", "---x=" + password}, nil, "argument 4 is not a flag"},
	{"unknown flag behind others", Consumer, []string{"--list", "--only=x", "--bogus", password}, nil, "--bogus is not a flag of consumer"},
	{"malformed list", Consumer, []string{"--list=" + password}, nil, "--list takes no value, or true or false"},
	{"malformed help", App, []string{"--help=" + password}, nil, "--help takes no value, or true or false"},
	{"only nothing", Consumer, []string{"--only=,"}, nil, "--only must be names of consumers"},
	{"only twice", Consumer, []string{"--only=a,a"}, nil, "--only must be names of consumers"},
	{"only job:", Consumer, []string{"--only=job:"}, nil, "--only must be names of consumers or queues"},
	{"dead without which", Consumer, []string{"--dead=show"}, nil, "--dead=show needs --which"},
	{"release of jobs", Consumer, []string{"--dead=release", "--which=job:outgoing-mail"}, nil, "--dead=release is for events"},
	{"payload of a job", Consumer, []string{"--dead=retry", "--which=job:a:0191e3b0-0000-7000-8000-000000000000", "--payload=x"}, nil, "--payload goes with --dead=retry and one event"},
	{"which odd", Consumer, []string{"--dead=show", "--which=job:a:b:c"}, nil, "--which has to be a consumer"},
	{"which key", Consumer, []string{"--dead=show", "--which=a:key="}, nil, "--which has to be a consumer"},
	{"which nothing", Consumer, []string{"--dead=show", "--which=job:"}, nil, "--which has to be a consumer"},
	{"only odd", Consumer, []string{"--only=Welcome Email"}, nil, "--only must be names of consumers"},

	{"jobs, scheme", App, nil, []string{"JOB_QUEUE_DATABASE_URL=mysql://u:" + password + "@h"}, "JOB_QUEUE_DATABASE_URL must begin with postgres://"},
	{"jobs, port", App, nil, []string{"JOB_QUEUE_DATABASE_URL=postgres://u:" + password + "@h:x"}, "JOB_QUEUE_DATABASE_URL must look like postgres://"},
	{"jobs, same database", Consumer, nil, []string{
		"SECRET_KEY=" + key, "DATABASE_URL=postgres://u:" + password + "@h/db", "JOB_QUEUE_DATABASE_URL=postgresql://other:" + password + "@h:5432/db?sslmode=disable",
	}, "JOB_QUEUE_DATABASE_URL names the same database as DATABASE_URL"},
	{"broker", App, nil, []string{"BROKER_URL=" + password}, "BROKER_URL must look like nats://USER:PASSWORD@HOST:4222"},
	{"joining no broker", Consumer, []string{"--join-broker", "--apply"}, nil, "--join-broker needs the BROKER_URL of the broker"},
	{"joining and leaving", Consumer, []string{"--join-broker", "--leave-broker"}, []string{"BROKER_URL=nats://x"}, "--join-broker does not go with --leave-broker"},
	{"broker flag", Consumer, []string{"--broker-url=" + password}, nil, "--broker-url must look like nats://"},
	{"ops", Consumer, nil, []string{"OPS_TOKEN=" + password}, "OPS_TOKEN is not supported by this version"},

	{"no key", App, nil, []string{"DATABASE_URL=postgres://u:" + password + "@h/db"}, "SECRET_KEY is required with a DATABASE_URL"},
	{"short key", App, nil, []string{"SECRET_KEY=" + password}, "SECRET_KEY must have at least 32 characters and has 12; make one with: openssl rand -base64 32"},
	{"weak key", App, []string{"--secret-key=" + strings.Repeat("ab", 20)}, nil, "--secret-key repeats too few characters"},
	{"control character", App, nil, []string{"MAIL_FROM=a@b.example\nBcc: x"}, "MAIL_FROM must not contain control characters"},
	{"not UTF-8", App, nil, []string{"POSTBUS_DATA_DIR=\xff"}, "POSTBUS_DATA_DIR must not contain control characters"},

	{"download", App, nil, []string{"POSTBUS_POSTGRES_DOWNLOAD=no"}, "POSTBUS_POSTGRES_DOWNLOAD must be on or off"},
	{"consumers", App, nil, []string{"CONSUMERS=all"}, "CONSUMERS must be embedded or none"},
	{"address without port", App, nil, []string{"HTTP_ADDR=localhost"}, "HTTP_ADDR must be HOST:PORT"},
	{"port too high", App, nil, []string{"HTTP_ADDR=:65536"}, "HTTP_ADDR must be HOST:PORT"},
	{"port by name", App, nil, []string{"HTTP_ADDR=:http"}, "HTTP_ADDR must be HOST:PORT"},
	{"port with a sign", App, nil, []string{"HTTP_ADDR=:+80"}, "HTTP_ADDR must be HOST:PORT"},
	{"IPv6 without brackets", App, nil, []string{"HTTP_ADDR=::1:80"}, "HTTP_ADDR must be HOST:PORT"},
	{"url as address", App, nil, []string{"HTTP_ADDR=http://h:80"}, "HTTP_ADDR must be HOST:PORT"},
	{"no public URL", Consumer, nil, []string{"HTTP_ADDR=:0"}, "PUBLIC_URL is required when HTTP_ADDR has port 0"},
	{"no public URL to be made", App, nil, []string{"HTTP_ADDR=[fe80::1%eth0]:80"}, "PUBLIC_URL is required, since none"},
	{"public URL with zone", App, nil, []string{"PUBLIC_URL=http://[fe80::1%25eth0]"}, "PUBLIC_URL must be http://"},
	{"public URL, scheme", App, nil, []string{"PUBLIC_URL=ftp://h"}, "PUBLIC_URL must be http://"},
	{"public URL, no scheme", App, nil, []string{"PUBLIC_URL=example.org"}, "PUBLIC_URL must be http://"},
	{"public URL, path", App, nil, []string{"PUBLIC_URL=http://h/app"}, "PUBLIC_URL must be http://"},
	{"public URL, query", App, nil, []string{"PUBLIC_URL=http://h?"}, "PUBLIC_URL must be http://"},
	{"public URL, fragment", App, nil, []string{"PUBLIC_URL=http://h#"}, "PUBLIC_URL must be http://"},
	{"public URL, user", App, nil, []string{"PUBLIC_URL=http://u:" + password + "@h"}, "PUBLIC_URL must be http://"},
	{"public URL, no host", App, nil, []string{"PUBLIC_URL=http://:80"}, "PUBLIC_URL must be http://"},
	{"public URL, port", App, nil, []string{"PUBLIC_URL=http://h:99999"}, "PUBLIC_URL must be http://"},
	{"proxy without bits", App, nil, []string{"TRUSTED_PROXIES=10.0.0.0/8,10.0.0.1"}, "TRUSTED_PROXIES must be networks with commas between them, such as 10.0.0.0/8,fd00::/8 or 192.0.2.7/32 for one address; number 2 is none"},
	{"mapped proxy", App, nil, []string{"TRUSTED_PROXIES=::ffff:10.0.0.0/104"}, "TRUSTED_PROXIES must be networks"},
	{"mail scheme", App, nil, []string{"SMTP_URL=http://u:" + password + "@h"}, "SMTP_URL must begin with smtp://"},
	{"mail host", App, nil, []string{"SMTP_URL=smtps://u:" + password + "@"}, "SMTP_URL must look like smtps://"},
	{"mail password", App, nil, []string{"SMTP_URL=smtps://u:12/" + password + "@h"}, "SMTP_URL must look like smtps://"},
	{"mail port", App, nil, []string{"SMTP_URL=smtps://u:" + password + "@h:port"}, "SMTP_URL must look like smtps://"},
	{"sender", App, nil, []string{"MAIL_FROM=nobody"}, "MAIL_FROM must be one address in ASCII"},
	{"two senders", App, nil, []string{"MAIL_FROM=a@b.example, c@d.example"}, "MAIL_FROM must be one address"},
	{"sender not ASCII", App, nil, []string{"MAIL_FROM=jürgen@b.example"}, "MAIL_FROM must be one address"},
	{"level", App, nil, []string{"LOG_LEVEL=loud"}, "LOG_LEVEL must be trace, debug, info, warn or error"},
	{"format", App, nil, []string{"LOG_FORMAT=xml"}, "LOG_FORMAT must be text or json"},
}

func TestRefusals(t *testing.T) {
	for _, tt := range refusals {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			c, err := Load(tt.program, tt.args, env(tt.env...), &out)
			checkRefusal(t, err, tt.want)
			if !reflect.DeepEqual(c, Config{}) || out.Len() > 0 {
				t.Errorf("a refusal came with %v and %q", c, out.String())
			}
		})
	}
}

func checkRefusal(t *testing.T, err error, want string) {
	t.Helper()
	var refusal *Error
	if !errors.As(err, &refusal) {
		t.Fatalf("got %#v, want an *Error", err)
	}
	text := err.Error()
	if !strings.HasPrefix(text, want) {
		t.Errorf("got  %q\nwant %q", text, want)
	}
	for _, printed := range []string{text, fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)} {
		if strings.Contains(printed, password) || strings.Contains(printed, "4711") || strings.Contains(printed, "\n") {
			t.Errorf("leaks, or is more than a line: %q", printed)
		}
	}
}

func TestDatabaseURLRefusals(t *testing.T) {
	const form = "DATABASE_URL must look like postgres://"
	tests := []struct{ name, url, want string }{
		{"scheme", "mysql://u:" + password + "@h/db", "DATABASE_URL must begin with postgres:// or postgresql://"},
		{"key and value", "host=h password=" + password, "DATABASE_URL must begin with postgres://"},
		{"port", "postgres://u:" + password + "@h:port/db", form},
		{"percent sign in password", "postgres://u:" + password + "%zz@h/db", form},
		{"at sign in password", "postgres://u:p@" + password + "@h/db", form},
		{"slash in password", "postgres://u:p/" + password + "@h/db", form},
		{"blank in password", "postgres://u:p " + password + "@h/db", form},
		{"sslmode", "postgres://u:" + password + "@h/db?sslmode=" + password, "DATABASE_URL has a parameter behind its question mark"},
		{"pool", "postgres://u:" + password + "@h/db?pool_max_conns=" + password, "DATABASE_URL has a parameter behind its question mark"},
		{
			"file", "postgres://u:" + password + "@h/db?sslmode=verify-ca&sslrootcert=/nope/" + password,
			"DATABASE_URL or a PG… variable names a certificate, key or service file that cannot be read",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(App, nil, env("SECRET_KEY="+key, "DATABASE_URL="+tt.url), nil)
			checkRefusal(t, err, tt.want)
		})
	}
	t.Run("PG variable", func(t *testing.T) {
		t.Setenv("PGSSLMODE", "bogus")
		_, err := Load(App, nil, env("SECRET_KEY="+key, "DATABASE_URL=postgres://u:"+password+"@h/db"), nil)
		checkRefusal(t, err, "DATABASE_URL cannot be used, because one of the PG… variables is malformed")
	})
}

func FuzzLoadNeverQuotesAPassword(f *testing.F) {
	for _, seed := range []string{"postgres://u:", "smtps://u:", "http://u:", "--x=", "\x00", "%", "@", "postgres://h/?sslmode="} {
		f.Add(seed, "@h:port/db")
	}
	f.Fuzz(func(t *testing.T, before, behind string) {
		value := before + password + behind
		for _, s := range table() {
			c, err := Load(Consumer, []string{"--" + s.Flag + "=" + value, "--secret-key=" + key}, env(), io.Discard)
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("%s: %v", s.Flag, err)
			}
			secret := strings.HasSuffix(s.Name, "DATABASE_URL") || s.Name == "SMTP_URL" || s.Name == "SECRET_KEY"
			plain := strings.Contains(value, "/"+password) || strings.Contains(value, "@"+password) // part of host or path
			if secret && !plain && strings.Contains(before, "u:") && strings.Contains(behind, "@") && strings.Contains(c.String(), password) {
				t.Errorf("%s: %v", s.Flag, c)
			}
		}
	})
}

func TestUnknownVariables(t *testing.T) {
	tests := map[string]string{
		"POSTBUS_DATADIR=" + password:          "POSTBUS_DATADIR is not a setting; see --help",
		"POSTBUS_HTTP_ADDR=" + password:        "POSTBUS_HTTP_ADDR is not a setting; it is called HTTP_ADDR",
		"POSTBUS_DATA_DIR=/tmp":                "",
		"POSTBUS_POSTGRES_DOWNLOAD=off":        "",
		"POSTBUS_EMPTY=":                       "",
		"XPOSTBUS_X=1":                         "",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://x": "",
	}
	for entry, want := range tests {
		_, err := load(Consumer, nil, env(), []string{"HOME=/", entry}, nil)
		if want == "" && err != nil {
			t.Errorf("%s: %v", entry, err)
		}
		if want != "" {
			checkRefusal(t, err, want)
		}
	}
}

func TestLoadOSReadsTheProcess(t *testing.T) {
	args := os.Args
	t.Cleanup(func() { os.Args = args })
	os.Args = []string{"app", "--http-addr=:9001"}
	t.Setenv("LOG_FORMAT", "json")
	for _, name := range []string{"DATABASE_URL", "SMTP_URL", "PUBLIC_URL"} {
		t.Setenv(name, "")
	}
	if c, err := LoadOS(App, io.Discard); err != nil || c.HTTPAddr != ":9001" || c.LogFormat != "json" {
		t.Errorf("got %v, %v", c, err)
	}
	t.Setenv("POSTBUS_DATADIR", password)
	_, err := LoadOS(App, io.Discard)
	checkRefusal(t, err, "POSTBUS_DATADIR is not a setting")
}

func TestUnknownProgram(t *testing.T) {
	if _, err := Load("nobody", nil, env(), nil); err == nil {
		t.Error("no error")
	}
}

func TestPublicURLOfPortZeroIsLeftToTheListener(t *testing.T) {
	c, err := Load(App, []string{"--http-addr=127.0.0.1:0"}, env(), nil)
	if err != nil || c.PublicURL != "" {
		t.Fatalf("got %q, %v", c.PublicURL, err)
	}
	for addr, want := range map[string]string{
		"127.0.0.1:41": "http://127.0.0.1:41", "[::]:41": "http://localhost:41", "0.0.0.0:41": "http://localhost:41",
		":41": "http://localhost:41", "[::1]:41": "http://[::1]:41", "host:41": "http://host:41",
	} {
		if got := DefaultPublicURL(addr); got != want {
			t.Errorf("DefaultPublicURL(%q) = %q, want %q", addr, got, want)
		}
	}
}

func TestConfigPrintsNoSecret(t *testing.T) {
	c, err := Load(App, nil, env("SECRET_KEY="+key+password, "SMTP_URL=smtps://u:"+password+"@mail.example",
		"DATABASE_URL=postgres://u:"+password+"@db.example/app?application_name="+password,
		"JOB_QUEUE_DATABASE_URL=postgres://u:"+password+"@jobs.example/app"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "config", c, "pointer", &c)
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "config", c, "pointer", &c)
	marshalled, err := json.Marshal(map[string]any{"a": c, "b": &c})
	if err != nil {
		t.Fatal(err)
	}
	all := logged.String() + string(marshalled)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		all += fmt.Sprintf(format, c) + fmt.Sprintf(format, &c)
	}
	if strings.Contains(all, password) || strings.Contains(all, key) {
		t.Errorf("leaks: %s", all)
	}
	if want := `database_url="postgres://db.example/app"`; !strings.Contains(c.String(), want) {
		t.Errorf("%s is not in %s", want, c)
	}
}

func TestRedactURL(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{"postgres://u:p@h:5432/db?password=x#y", "postgres://h:5432/db"},
		{"postgres://u:p@[::1]/db", "postgres://[::1]/db"},
		{"postgres://u:12/34@h/db", "[redacted]"},
		{"postgres://u:12#34@h/db", "[redacted]"},
		{"postgres://u:12?34@h/db", "[redacted]"},
		{"postgres://u:p%zz@h/db", "[redacted]"},
		{"mailto:x", "[redacted]"},
		{"secret", "[redacted]"},
	}
	for _, tt := range tests {
		if got := RedactURL(tt.in); got != tt.want {
			t.Errorf("RedactURL(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}
