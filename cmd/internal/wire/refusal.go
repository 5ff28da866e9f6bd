package wire

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"postbus/internal/telemetry"
)

// SQLSTATEs that are told apart.
const (
	stateWrongPassword  = "28P01"
	stateNotAuthorized  = "28000"
	stateNoDatabase     = "3D000"
	stateStarting       = "57P03"
	stateNoConnections  = "53300"
	stateNotAllowed     = "42501"
	stateReadOnly       = "25006"
	stateUndefinedTable = "42P01"
)

// refusal puts into words what no waiting will mend about a connection to what the setting names; "" for anything else.
func refusal(err error, target *pgconn.Config, setting string) string {
	var (
		pg          *pgconn.PgError
		certificate *tls.CertificateVerificationError
		network     *net.OpError
	)
	switch {
	case errors.As(err, &pg):
		return refusalBy(pg.Code, target, setting)
	case strings.Contains(err.Error(), "server refused TLS connection"): // pgx has no error to compare with
		return "does not speak TLS; let it, or choose another sslmode in " + setting
	case errors.As(err, &certificate):
		return "has a certificate that is not trusted; check sslmode and sslrootcert in " + setting + ": " +
			telemetry.ErrorText(certificate.Err)
	case errors.As(err, &network) && network.Op == "remote error": // a TLS alert
		return "refused the TLS connection; check sslcert and sslkey in " + setting + ": " + telemetry.ErrorText(network.Err)
	}
	return ""
}

func refusalBy(code string, target *pgconn.Config, setting string) string {
	switch code {
	case stateWrongPassword, stateNotAuthorized:
		return fmt.Sprintf("refused user %q; check user and password in %s", target.User, setting)
	case stateNoDatabase:
		return fmt.Sprintf("has no database %q; create it, or name another in %s", target.Database, setting)
	case stateStarting, stateNoConnections:
		return ""
	default:
		return "refused the connection with SQLSTATE " + code
	}
}

// cause is the innermost reason of a failed connection, in a few words.
func cause(err error) string {
	var (
		pg      *pgconn.PgError
		dns     *net.DNSError
		timeout net.Error
	)
	switch {
	case errors.As(err, &pg) && pg.Code == stateStarting:
		return "it is starting or stopping"
	case errors.As(err, &pg) && pg.Code == stateNoConnections:
		return "it has too many connections"
	case errors.As(err, &dns):
		return "its name was not found"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no reply"
	}
	return telemetry.ErrorText(err)
}

// explainSetUp puts what Postgres refuses while tables are made into a sentence that says what to do. It returns other
// errors, and nil, as they are.
func (d *database) explainSetUp(schema string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case stateNotAllowed:
		return fmt.Errorf("role %q may not create tables in schema %q, or not use them; GRANT it CREATE, or start once as the owner "+
			"and grant it the use: %w", d.pool.Config().ConnConfig.User, schema, err)
	case stateReadOnly:
		return fmt.Errorf("postgres at %s is read-only; set %s to the primary: %w", d.place(), d.setting, err)
	}
	return err
}
