package config

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/net/idna"
)

const (
	secretBytesMin    = 32 // of SECRET_KEY
	secretDistinctMin = 8  // different characters in it; 32 random hex digits have 14 on average
)

// What can be wrong with a value. None quotes it.
var (
	errNotSupported = errors.New("is not supported by this version")
	errControl      = errors.New("must not contain control characters or broken UTF-8")

	errDatabaseScheme = errors.New("must begin with postgres:// or postgresql://")
	errDatabaseURL    = errors.New("must look like postgres://USER:PASSWORD@HOST:5432/DATABASE, with special " +
		"characters in the password percent-encoded (@ is %40, : is %3A, / is %2F, # is %23, ? is %3F, % is %25)")
	errDatabaseParameter = errors.New("has a parameter behind its question mark that cannot be used; sslmode, for one, " +
		"must be disable, allow, prefer, require, verify-ca or verify-full")
	errDatabaseVariables = errors.New("cannot be used, because one of the PG… variables is malformed " +
		"(PGSSLMODE, PGPORT or another)")
	errDatabaseFile = errors.New("or a PG… variable names a certificate, key or service file that cannot be read")

	errBrokerURL = errors.New("must look like nats://USER:PASSWORD@HOST:4222")

	errHTTPAddr   = errors.New("must be HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:8080")
	errPublicURL  = errors.New("must be http:// or https:// and a host, without user, path or query, such as https://example.org")
	errSwitch     = errors.New("must be on or off")
	errConsumers  = errors.New("must be embedded or none")
	errSMTPScheme = errors.New("must begin with smtp://, smtps:// or smtp+starttls://")
	errSMTPURL    = errors.New("must look like smtps://USER:PASSWORD@HOST:465, with special characters in the password " +
		"percent-encoded (@ is %40, : is %3A, / is %2F)")
	errMailFrom  = errors.New("must be one address in ASCII, such as no-reply@example.org or Name <no-reply@example.org>")
	errLogLevel  = errors.New("must be trace, debug, info, warn or error")
	errLogFormat = errors.New("must be text or json")
	errOnly      = errors.New("must be names of consumers or queues of jobs, each once, with commas between them, such as " +
		"welcome-email,job:outgoing-mail (see --list)")
	errBool       = errors.New("takes no value, or true or false")
	errSecretWeak = errors.New("repeats too few characters; make one with: openssl rand -base64 32")
)

func setDatabaseURL(c *Config, value string) error {
	c.DatabaseURL = value
	return checkDatabaseURL(value)
}

func setJobsDatabaseURL(c *Config, value string) error {
	c.JobsDatabaseURL = value
	return checkDatabaseURL(value)
}

func checkDatabaseURL(value string) error {
	if !strings.HasPrefix(value, "postgres://") && !strings.HasPrefix(value, "postgresql://") {
		return errDatabaseScheme
	}
	parsed, err := pgxpool.ParseConfig(value)
	base, parameters, _ := strings.Cut(value, "?")
	var file *fs.PathError
	switch {
	case err == nil && strings.Contains(parsed.ConnConfig.Host, "@"):
		return errDatabaseURL // pgx, like libpq, ends the password at its first at sign
	case err == nil:
		return nil
	case errors.As(err, &file):
		return errDatabaseFile
	case !parses("postgres://localhost/"):
		return errDatabaseVariables
	case parameters != "" && parses(base):
		return errDatabaseParameter
	default:
		return errDatabaseURL
	}
}

func parses(databaseURL string) bool {
	_, err := pgxpool.ParseConfig(databaseURL)
	return err == nil
}

// sameDatabase tells whether two URLs name one database in the same words. One that two names lead to is found out when it is
// reached.
func sameDatabase(a, b string) bool {
	x, err1 := pgxpool.ParseConfig(a)
	y, err2 := pgxpool.ParseConfig(b)
	if b == "" || err1 != nil || err2 != nil {
		return false
	}
	name := func(c *pgxpool.Config) string { return cmp.Or(c.ConnConfig.Database, c.ConnConfig.User) } // as Postgres has it
	return x.ConnConfig.Host == y.ConnConfig.Host && x.ConnConfig.Port == y.ConnConfig.Port && name(x) == name(y)
}

func setBrokerURL(c *Config, value string) error {
	if !strings.Contains(value, "://") {
		return errBrokerURL
	}
	c.BrokerURL = value
	return nil
}

func setDataDir(c *Config, value string) error {
	c.DataDir = value
	return nil
}

func setPostgresDownload(c *Config, value string) error {
	if value != "on" && value != "off" {
		return errSwitch
	}
	c.PostgresDownload = value == "on"
	return nil
}

func setConsumers(c *Config, value string) error {
	if value != "embedded" && value != "none" {
		return errConsumers
	}
	c.EmbeddedConsumers = value == "embedded"
	return nil
}

func setHTTPAddr(c *Config, value string) error {
	host, port, err := net.SplitHostPort(value)
	if err != nil || !validPort(port) || strings.ContainsAny(host, " /@?#") {
		return errHTTPAddr
	}
	c.HTTPAddr = value
	return nil
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == port
}

func setPublicURL(c *Config, value string) error {
	u, err := url.Parse(value)
	if err != nil || u.User != nil || strings.Trim(u.Path, "/") != "" || strings.ContainsAny(value, "?#") {
		return errPublicURL
	}
	host, ok := publicHost(u.Hostname())
	if !ok || u.Scheme != "http" && u.Scheme != "https" {
		return errPublicURL
	}
	if port := u.Port(); port != "" {
		if !validPort(port) || port == "0" {
			return errPublicURL
		}
		host += ":" + port
	}
	c.PublicURL = u.Scheme + "://" + host
	return nil
}

// publicHost writes a host as it stands in a URL: a name in punycode, an IPv6 address in brackets. An address with a
// zone is refused, because it means nothing on another machine.
func publicHost(host string) (string, bool) {
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		name, err := idna.Lookup.ToASCII(host)
		return name, err == nil && name != ""
	case ip.Is4():
		return host, true
	default:
		return "[" + host + "]", ip.Zone() == ""
	}
}

func setTrustedProxies(c *Config, value string) error {
	var prefixes []netip.Prefix
	for i, part := range strings.Split(value, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil || prefix.Addr().Is4In6() {
			return fmt.Errorf("must be networks with commas between them, such as 10.0.0.0/8,fd00::/8 or 192.0.2.7/32 for one "+
				"address; number %d is none", i+1)
		}
		prefixes = append(prefixes, prefix.Masked())
	}
	c.TrustedProxies = prefixes
	return nil
}

func setSecretKey(c *Config, value string) error {
	if len(value) < secretBytesMin {
		return fmt.Errorf("must have at least %d characters and has %d; make one with: openssl rand -base64 32",
			secretBytesMin, len(value))
	}
	distinct := slices.Sorted(slices.Values([]byte(value)))
	if len(slices.Compact(distinct)) < secretDistinctMin {
		return errSecretWeak
	}
	c.SecretKey = []byte(value)
	return nil
}

func setSMTPURL(c *Config, value string) error {
	scheme, _, ok := strings.Cut(value, "://")
	if !ok || !slices.Contains([]string{"smtp", "smtps", "smtp+starttls"}, scheme) {
		return errSMTPScheme
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" || strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") {
		return errSMTPURL
	}
	c.SMTPURL = value
	return nil
}

func setMailFrom(c *Config, value string) error {
	a, err := mail.ParseAddress(value)
	if err != nil || strings.ContainsFunc(a.Address, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return errMailFrom
	}
	c.MailFrom = value
	return nil
}

func setLogLevel(c *Config, value string) error {
	levels := map[string]slog.Level{
		"trace": slog.LevelDebug - 4,
		"debug": slog.LevelDebug,
		"info":  slog.LevelInfo,
		"warn":  slog.LevelWarn,
		"error": slog.LevelError,
	}
	level, ok := levels[strings.ToLower(value)]
	if !ok {
		return errLogLevel
	}
	c.LogLevel = level
	return nil
}

func setLogFormat(c *Config, value string) error {
	value = strings.ToLower(value)
	if value != "text" && value != "json" {
		return errLogFormat
	}
	c.LogFormat = value
	return nil
}

func setOnly(c *Config, value string) error {
	var names []string
	for name := range strings.SplitSeq(value, ",") {
		name = strings.TrimSpace(name)
		if !isName(strings.TrimPrefix(name, QueuePrefix)) || slices.Contains(names, name) {
			return errOnly
		}
		names = append(names, name)
	}
	c.Only = names
	return nil
}

// isName tells whether s is written like a consumer's or a flag's name: words of a-z and 0-9 with dashes between them.
func isName(s string) bool {
	odd := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }
	return s != "" && s[0] >= 'a' && s[0] <= 'z' && !strings.HasSuffix(s, "-") && !strings.ContainsFunc(s, odd)
}

func setApply(c *Config, value string) (err error) {
	c.Apply, err = parseBool(value)
	return err
}

func setMove(c *Config, value string) error {
	topic, isRelay := strings.CutPrefix(value, "relay:")
	if !isName(value) && (!isRelay || !isName(strings.ReplaceAll(topic, "_", "-"))) {
		return errors.New("has to be the name of a consumer, such as welcome-email")
	}
	c.Move = value
	return nil
}

func setTo(c *Config, value string) error {
	_, notTime := time.Parse(time.RFC3339, value)
	_, notPosition := strconv.ParseUint(value, 10, 63)
	if value != "now" && value != "beginning" && notTime != nil && notPosition != nil {
		return errors.New("has to be now, beginning, a time such as 2026-11-23T12:00:00Z, or a position")
	}
	c.To = value
	return nil
}

func setForget(c *Config, value string) error {
	if !isName(value) {
		return errors.New("has to be the name of a consumer, such as greeting-email")
	}
	c.Forget = value
	return nil
}

// retentionLeast keeps a typing error from dropping what was just committed.
const retentionLeast = time.Hour

// setEventRetention takes what time.ParseDuration does, and whole days.
func setEventRetention(c *Config, value string) error {
	age, err := time.ParseDuration(value)
	if days, ok := strings.CutSuffix(value, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		age = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || age < retentionLeast {
		return errors.New("has to be an age of an hour at least, such as 30d or 720h")
	}
	c.EventRetention = age
	return nil
}

func setRename(c *Config, value string) error {
	from, to, ok := strings.Cut(value, ":")
	if !ok || !isName(from) || !isName(to) || from == to {
		return errors.New("has to be two names of consumers, OLD:NEW, such as greeting-email:welcome-email")
	}
	c.RenameFrom, c.RenameTo = from, to
	return nil
}

func setDead(c *Config, value string) error {
	switch value {
	case "list", "show", "retry", "discard", "release":
		c.Dead = value
		return nil
	}
	return errors.New("has to be list, show, retry, discard or release")
}

func setWhich(c *Config, value string) error {
	value, queue := strings.CutPrefix(value, QueuePrefix)
	name, rest, some := strings.Cut(value, ":")
	key, keyed := strings.CutPrefix(rest, "key=")
	group, err := hex.DecodeString(rest)
	id, notID := uuid.Parse(rest)
	switch {
	case isName(name) && !some:
	case isName(name) && keyed && key != "":
		c.WhichKey = key
	case isName(name) && notID == nil:
		c.WhichID = id
	case isName(name) && err == nil && len(group) > 0:
		c.WhichGroup = rest
	default:
		return errors.New("has to be a consumer, welcome-email, or a queue of jobs, job:outgoing-mail, or one of these with a " +
			"group, an id or key=KEY behind a colon")
	}
	if queue {
		c.WhichQueue = name
	} else {
		c.WhichConsumer = name
	}
	return nil
}

func setPayload(c *Config, value string) error {
	c.Payload = value
	return nil
}

func setNote(c *Config, value string) error {
	if len(value) > noteBytesMax {
		return fmt.Errorf("has to be at most %d bytes", noteBytesMax)
	}
	c.Note = value
	return nil
}

// noteBytesMax bounds what is kept with a dead event.
const noteBytesMax = 1000

func setPsql(c *Config, value string) (err error) {
	c.Psql, err = parseBool(value)
	return err
}

func setJoinBroker(c *Config, value string) (err error) {
	c.JoinBroker, err = parseBool(value)
	return err
}

func setLeaveBroker(c *Config, value string) (err error) {
	c.LeaveBroker, err = parseBool(value)
	return err
}

func setList(c *Config, value string) (err error) {
	c.List, err = parseBool(value)
	return err
}

func parseBool(value string) (bool, error) {
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, errBool
	}
	return on, nil
}
