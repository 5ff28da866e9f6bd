package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// certified is a server that agrees to TLS, with a certificate that nobody trusts or with the wish for one.
func certified(t *testing.T, clientAuth tls.ClientAuthType) (addr string) {
	t.Helper()
	web := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	settings := &tls.Config{Certificates: web.TLS.Certificates, ClientAuth: clientAuth}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if _, err := io.ReadFull(conn, make([]byte, 8)); err == nil { // SSLRequest
				_, _ = conn.Write([]byte("S"))
				_ = tls.Server(conn, settings).Handshake()
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return listener.Addr().String()
}

func TestRefusal(t *testing.T) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	go func() {
		for {
			conn, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 8))
			_, _ = conn.Write([]byte("N"))
			_ = conn.Close()
		}
	}()
	for name, tt := range map[string]struct{ addr, sslmode, want string }{
		"without TLS":           {plain.Addr().String(), "require", "does not speak TLS;"},
		"untrusted certificate": {certified(t, tls.NoClientCert), "verify-full", "has a certificate that is not trusted;"},
		"own certificate":       {certified(t, tls.RequireAnyClientCert), "require", "refused the TLS connection;"},
	} {
		t.Run(name, func(t *testing.T) {
			url := fmt.Sprintf("postgres://anna:hidden@%s/db?sslmode=%s", tt.addr, tt.sslmode)
			target, err := pgconn.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			_, err = pgconn.ConnectConfig(context.Background(), target)
			if got := refusal(err, target, settingDatabase); !strings.HasPrefix(got, tt.want) || strings.Contains(got, "hidden") {
				t.Errorf("%q for %v, want %q", got, err, tt.want)
			}
		})
	}
}

// What may mend itself is waited for, and named when the patience is over.
func TestCause(t *testing.T) {
	for want, err := range map[string]error{
		"its name was not found":      &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "db.invalid", IsNotFound: true}},
		"nothing listens there":       &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED},
		"no reply":                    &net.OpError{Op: "dial", Err: context.DeadlineExceeded},
		"it is starting or stopping":  &pgconn.PgError{Code: "57P03"},
		"it has too many connections": &pgconn.PgError{Code: "53300"},
		"no route to host":            fmt.Errorf("%w", syscall.EHOSTUNREACH),
	} {
		wrapped := fmt.Errorf("connect: %w", err)
		if got := cause(wrapped); !strings.HasSuffix(got, want) {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
		if got := refusal(wrapped, &pgconn.Config{}, settingDatabase); got != "" {
			t.Errorf("%v is final: %q", err, got)
		}
	}
}

func TestExplainSetUp(t *testing.T) {
	settings, err := pgxpool.ParseConfig("postgres://anna:hidden@db.example:5433/db")
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), settings)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	d := &database{setting: settingDatabase, pool: pool}
	for code, want := range map[string]string{
		"42501": `role "anna" may not create tables in schema "public", or not use them; GRANT it CREATE, or start once as the owner`,
		"25006": "postgres at db.example:5433 is read-only; set DATABASE_URL to the primary",
	} {
		refused := fmt.Errorf("migrate account: %w", &pgconn.PgError{Code: code})
		if got := d.explainSetUp("public", refused); !errors.Is(got, refused) || !strings.HasPrefix(got.Error(), want) {
			t.Errorf("%s: %v, want %s", code, got, want)
		}
	}
	if other := errors.New("other"); d.explainSetUp("public", other).Error() != "other" || d.explainSetUp("public", nil) != nil {
		t.Error("other errors do not stay as they are")
	}
}
