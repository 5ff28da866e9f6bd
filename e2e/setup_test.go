package e2e_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

const nothingSetUp = "postbus consumer: nothing was set up yet; start the app first"

// TestListOnlyReads lists consumers where there is nothing, and where one has no place yet. Nothing is made.
func TestListOnlyReads(t *testing.T) {
	parallel(t)
	private := newSite(t)
	private.start(consumer, nil, "--list").wantRefusal(1, nothingSetUp)
	private.wantEmptyDir()

	s := newSiteOn(t, openOffice(t))
	s.start(consumer, nil, "--list").wantRefusal(1, nothingSetUp)
	s.wantEmptyDir()
	const tables = `SELECT table_name::text FROM information_schema.tables WHERE table_schema IN ('public', 'postbus')`
	if made := s.texts(tables); len(made) > 0 {
		t.Errorf("--list has made the tables %q", made)
	}

	s.startApp(settings{"CONSUMERS": "none"}).stop(os.Interrupt)
	conn := s.connect()
	defer s.close(conn)
	if _, err := conn.Exec(context.Background(), `DELETE FROM postbus.consumers WHERE consumer = 'welcome-email'`); err != nil {
		t.Fatal(err)
	}
	list := s.start(consumer, nil, "--list")
	list.exits(0)
	want := "CONSUMER             TOPIC   WAITING   OLDEST   PARKED   DEAD   RUNS IN   TYPES\n" +
		"verification-email   user    0         -        0        0      -         user.registered, user.verification_requested, user.registration_repeated\n" +
		"welcome-email        user    new       -        0        0      -         user.email_verified\n" +
		"job:default          -       0         -        0        0      -         -\n" +
		"job:outgoing-mail    -       0         -        0        0      -         -\n"
	if said := list.out.String(); said != want {
		t.Errorf("--list says\n%s\nwant\n%s", said, want)
	}
	if known := s.textsOf(conn, `SELECT consumer FROM postbus.consumers`); len(known) != 1 {
		t.Errorf("after --list the consumers %q have places", known)
	}
}

// TestPostgresThatAllowsTooLittle starts programs with roles and connections that cannot do what has to be done.
func TestPostgresThatAllowsTooLittle(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSiteOn(t, openOffice(t))
	address, err := url.Parse(s.databaseURL())
	if err != nil {
		t.Fatal(err)
	}
	tls := *address
	query := tls.Query()
	query.Set("sslmode", "require")
	tls.RawQuery = query.Encode()
	s.start(app, settings{"DATABASE_URL": tls.String()}).wantRefusal(1, "postbus app: postgres at "+address.Host+
		" does not speak TLS; let it, or choose another sslmode in DATABASE_URL")

	conn := s.connect()
	defer s.close(conn)
	role := "limited_" + address.Path[len(address.Path)-6:] // of the database's random end; a longer name looks like a token
	for _, statement := range []string{
		`CREATE ROLE ` + role + ` LOGIN PASSWORD '` + passwordMarker + `'`,
		`REVOKE CREATE ON SCHEMA public FROM PUBLIC`,
	} {
		if _, err := conn.Exec(context.Background(), statement); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if _, err := conn.Exec(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	}()
	limited := *address
	limited.User = url.UserPassword(role, passwordMarker)
	refused := func(schema string) string {
		return fmt.Sprintf("postbus app: role %q may not create tables in schema %q, or not use them; GRANT it CREATE, or start once "+
			"as the owner and grant it the use: migrate ", role, schema)
	}
	for _, tt := range []struct{ schema, then string }{
		{"public", `GRANT CREATE ON SCHEMA public TO ` + role},
		{"postbus", ""},
	} {
		p := s.start(app, settings{"DATABASE_URL": limited.String()})
		p.exits(1)
		if said := p.err.String(); !strings.HasPrefix(said, refused(tt.schema)) || strings.Count(said, "\n") != 1 {
			t.Errorf("%s says\n%s\nwant\n%s…", p, said, refused(tt.schema))
		}
		if _, err := conn.Exec(context.Background(), tt.then); err != nil {
			t.Fatal(err)
		}
	}

	s.startApp(nil).stop(os.Interrupt) // once as the owner
	if _, err := conn.Exec(context.Background(), `REVOKE CREATE ON SCHEMA public FROM `+role+`;
		GRANT USAGE ON SCHEMA public, postbus TO `+role+`;
		GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, postbus TO `+role); err != nil {
		t.Fatal(err)
	}
	p := s.startApp(settings{"DATABASE_URL": limited.String()})
	s.signUp(anna)
	s.confirm(s.office.await(anna, verification).link)
	s.office.await(anna, welcome)
	p.stop(os.Interrupt)
}

// TestDataDirThatCannotBe has a file in its place, whose name looks like a token, and a place where nothing can be made.
func TestDataDirThatCannotBe(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	file := filepath.Join(pgtest.Dir(t), "Some_Long_Directory_Name_With_Capitals_2026")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	problems := map[string]string{file: "is not a directory; set it to one: "}
	if _, err := os.Stat("/proc/self"); err == nil {
		problems["/proc/postbus"] = "cannot be made; set it to a directory on a disk: "
	}
	list := start(t, consumer, settings{"POSTBUS_DATA_DIR": file}, "--list")
	list.exits(1)
	if want := "postbus consumer: POSTBUS_DATA_DIR, which is " + file + ", is not a directory"; !strings.HasPrefix(list.err.String(), want) {
		t.Errorf("%s says\n%s\nwant\n%s…", list, list.err.String(), want)
	}
	for dir, problem := range problems {
		for name, env := range map[string]settings{
			"first run":  {},
			"own secret": {"SECRET_KEY": secretKey},
			"own mail":   {"SECRET_KEY": secretKey, "SMTP_URL": "smtp://127.0.0.1:1"},
		} {
			for _, program := range []string{app, consumer} {
				env["POSTBUS_DATA_DIR"], env["HTTP_ADDR"] = dir, "127.0.0.1:"+freePort(t)
				p := start(t, program, env)
				p.exits(1)
				if want := "postbus " + program + ": POSTBUS_DATA_DIR, which is " + dir + ", " + problem; !strings.HasPrefix(
					p.err.String(), want) || strings.Count(p.err.String(), "\n") != 1 {
					t.Errorf("%s: it says\n%s\nwant\n%s…", name, p.err.String(), want)
				}
			}
		}
	}
}

// TestPsql has a psql that tells what it was told.
func TestPsql(t *testing.T) {
	parallel(t)
	s := newSiteOn(t, openOffice(t))
	bin := pgtest.Dir(t)
	script := "#!/bin/sh\nenv | grep '^PG' | grep -v PASSWORD | sort\n"
	if err := os.WriteFile(filepath.Join(bin, "psql"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	address, err := url.Parse(s.databaseURL())
	if err != nil {
		t.Fatal(err)
	}
	query := address.Query()
	cert, key := writeCertificate(t)
	query.Set("sslmode", "disable")
	query.Set("sslrootcert", cert)
	query.Set("sslcert", cert)
	query.Set("sslkey", key)
	address.RawQuery = query.Encode()
	p := s.start(app, settings{"DATABASE_URL": address.String(), "PATH": bin + ":" + os.Getenv("PATH")}, "--psql")
	p.exits(0)
	want := fmt.Sprintf("PGDATABASE=%s\nPGHOST=%s\nPGPORT=%s\nPGSSLCERT=%s\nPGSSLKEY=%s\n"+
		"PGSSLMODE=disable\nPGSSLROOTCERT=%s\nPGUSER=%s\n",
		strings.TrimPrefix(address.Path, "/"), address.Hostname(), address.Port(), cert, key, cert, address.User.Username())
	if said := p.out.String(); said != want {
		t.Errorf("psql was told\n%swant\n%s", said, want)
	}
}

// TestCtrlCIsForPsql interrupts the app while psql runs: it stays until psql ends, and says nothing into its screen.
func TestCtrlCIsForPsql(t *testing.T) {
	parallel(t)
	s := newSiteOn(t, openOffice(t))
	bin := pgtest.Dir(t)
	script := "#!/bin/sh\necho psql runs\nuntil [ -e " + bin + "/enough ]; do sleep 0.02; done\n"
	if err := os.WriteFile(filepath.Join(bin, "psql"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	p := s.start(app, settings{"PATH": bin + ":" + os.Getenv("PATH")}, "--psql")
	p.says(&p.out, "psql runs\n")
	interrupts := 0
	until(t, "there were enough interrupts", func() bool {
		p.signal(os.Interrupt)
		interrupts++
		return interrupts == 5
	})
	if err := os.WriteFile(filepath.Join(bin, "enough"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.exits(0)
	if p.err.String() != "" {
		t.Errorf("%s says\n%s", p, p.err.String())
	}
}

// writeCertificate stores a certificate, which the programs read before they connect, and its key.
func writeCertificate(t *testing.T) (cert, key string) {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	pair := server.TLS.Certificates[0]
	private, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := pgtest.Dir(t)
	cert, key = filepath.Join(dir, "own.pem"), filepath.Join(dir, "own.key")
	for path, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		key:  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
