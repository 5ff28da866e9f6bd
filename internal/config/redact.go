package config

import (
	"fmt"
	"log/slog"
	"net/url"
	"strings"
)

const redacted = "[redacted]"

// String tells the settings in one line, without secrets.
func (c Config) String() string {
	secret := ""
	if c.SecretKey != nil {
		secret = redacted
	}
	return fmt.Sprintf("program=%s database_url=%q jobs_database_url=%q broker_url=%q data_dir=%q postgres_download=%t "+
		"embedded_consumers=%t http_addr=%q public_url=%q public_url_guessed=%t trusted_proxies=%v secret_key=%q smtp_url=%q "+
		"mail_from=%q log_level=%s log_format=%q "+
		"only=%v list=%t move=%q to=%q rename=%q dead=%q which=%q join_broker=%t leave_broker=%t apply=%t psql=%t",
		c.Program, RedactURL(c.DatabaseURL), RedactURL(c.JobsDatabaseURL), RedactURL(c.BrokerURL), c.DataDir, c.PostgresDownload,
		c.EmbeddedConsumers, c.HTTPAddr,
		c.PublicURL, c.PublicURLGuessed, c.TrustedProxies, secret, RedactURL(c.SMTPURL), c.MailFrom, c.LogLevel, c.LogFormat,
		c.Only, c.List, c.Move, c.To, c.RenameFrom+":"+c.RenameTo, c.Dead, c.WhichConsumer, c.JoinBroker, c.LeaveBroker, c.Apply, c.Psql)
}

// GoString is String, so that %#v is redacted too.
func (c Config) GoString() string { return "config.Config{" + c.String() + "}" }

// LogValue is String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String, so that JSON and the like are redacted too.
func (c Config) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// RedactURL returns scheme, host and path of a URL, for people. If it is not certain where the password ends, nothing
// of the URL is left. An empty URL stays empty.
func RedactURL(raw string) string {
	if raw == "" {
		return ""
	}
	_, rest, _ := strings.Cut(raw, "://")
	if end := strings.IndexAny(rest, "/?#\\"); end >= 0 && strings.Contains(rest[end:], "@") {
		return redacted // a character of the password was not encoded
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" || u.Opaque != "" {
		return redacted
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
