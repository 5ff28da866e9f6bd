package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"postbus/internal/pgtest"
)

// passwordMarker stands in passwords that nobody may see.
const passwordMarker = "Marker-7Qx-of-a-password"

// TestRefusals starts programs with what they cannot work with. Each says one sentence, and nothing else happens.
func TestRefusals(t *testing.T) {
	parallel(t)
	const database = "postgres://postbus:" + passwordMarker + "@127.0.0.1:1/postbus"
	tests := map[string]struct {
		program string
		args    []string
		env     settings
		code    int
		want    string
	}{
		"unknown flag": {
			app, []string{"--frobnicate"}, nil, 2,
			"postbus app: --frobnicate is not a flag of app; see --help",
		},
		"flag of the other program": {
			app, []string{"--only=welcome-email"}, nil, 2,
			"postbus app: --only is not a flag of app, but of consumer",
		},
		"argument": {
			consumer, []string{"welcome-email"}, nil, 2,
			"postbus consumer: argument 1 is not expected: everything is a flag, such as --log-level=debug; see --help",
		},
		"unknown variable": {
			app, nil, settings{"POSTBUS_DATADIR": "x"}, 2,
			"postbus app: POSTBUS_DATADIR is not a setting; see --help",
		},
		"known variable with a prefix": {
			consumer, nil, settings{"POSTBUS_SMTP_URL": "smtp://localhost"}, 2,
			"postbus consumer: POSTBUS_SMTP_URL is not a setting; it is called SMTP_URL",
		},
		"setting of a later version": {
			app, nil, settings{"OPS_TOKEN": passwordMarker}, 2,
			"postbus app: OPS_TOKEN is not supported by this version",
		},
		"broker of a later version": {
			consumer, nil, settings{"BROKER_URL": "pulsar://user:" + passwordMarker + "@localhost"}, 2,
			"postbus consumer: BROKER_URL must begin with nats:// or kafka:// or amqp:// or redis:// or postgres:// or memory://; no other broker is supported by this version",
		},
		"no secret key": {
			app, nil, settings{"DATABASE_URL": database}, 2,
			"postbus app: SECRET_KEY is required with a DATABASE_URL, and has to be the same in every program; " +
				"make one with: openssl rand -base64 32",
		},
		"no secret key, consumer": {
			consumer, nil, settings{"DATABASE_URL": database}, 2,
			"postbus consumer: SECRET_KEY is required with a DATABASE_URL, and has to be the same in every program; " +
				"make one with: openssl rand -base64 32",
		},
		"mail in clear text to another machine": {
			app, nil, settings{"SMTP_URL": "smtp://mail.example.com"}, 2,
			"postbus app: SMTP_URL is refused: an SMTP URL with smtp:// is clear text and may only name this machine " +
				"(localhost, 127.0.0.0/8 or ::1); use smtps:// or smtp+starttls:// for any other, and let a mail catcher " +
				"in a container share the network namespace of the program",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			env := settings{"POSTBUS_DATA_DIR": pgtest.Dir(t), "HTTP_ADDR": "127.0.0.1:" + freePort(t), "LOG_LEVEL": "trace"}
			for name, value := range test.env {
				env[name] = value
			}
			start(t, test.program, env, test.args...).wantRefusal(test.code, test.want)
			if entries, err := os.ReadDir(env["POSTBUS_DATA_DIR"]); err != nil || len(entries) > 0 {
				t.Errorf("the data directory has %v (%v), want nothing", entries, err)
			}
		})
	}
}

// wantRefusal waits for the process to end with that code and that sentence.
func (p *process) wantRefusal(code int, sentence string) {
	p.t.Helper()
	p.exits(code)
	if got := p.err.String(); got != sentence+"\n" {
		p.t.Errorf("%s says\n%swant\n%s", p, got, sentence)
	}
	if strings.Contains(p.out.String()+p.err.String(), passwordMarker) {
		p.t.Errorf("%s shows the password", p)
	}
}

func TestHelp(t *testing.T) {
	parallel(t)
	for program, about := range map[string]string{
		app:      "postbus app serves the pages and the API, and runs the consumers.\n",
		consumer: "postbus consumer runs the consumers in a process of their own.\n",
	} {
		help := start(t, program, nil, "--help")
		help.exits(0)
		said := help.out.String()
		if !strings.HasPrefix(said, about) || help.err.String() != "" {
			t.Errorf("%s says %q, and %q on stderr", help, said, help.err.String())
		}
		for _, setting := range []string{"DATABASE_URL", "POSTBUS_DATA_DIR", "SECRET_KEY", "SMTP_URL", "LOG_LEVEL", "--help"} {
			if !strings.Contains(said, setting) {
				t.Errorf("%s does not tell about %s", help, setting)
			}
		}
		version := start(t, program, nil, "--version")
		version.exits(0)
		if said := version.out.String(); !strings.HasPrefix(said, "postbus "+program+" ") || strings.Count(said, "\n") != 1 {
			t.Errorf("%s says %q", version, said)
		}
	}
}

// TestPortInUse is told before anything else is begun.
func TestPortInUse(t *testing.T) {
	parallel(t)
	s := newSite(t)
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s.start(app, nil).wantRefusal(1, "postbus app: address "+s.addr+
		" is in use by another program; stop it, or set HTTP_ADDR to another, such as 127.0.0.1:8081")
	s.wantEmptyDir()
}

// TestUnknownConsumer is told before anything is begun.
func TestUnknownConsumer(t *testing.T) {
	parallel(t)
	s := newSite(t)
	for _, args := range [][]string{
		{"--only", "nobody"},
		{"--only", "welcome-email,nobody"},
		{"--move", "nobody", "--to", "now", "--apply"},
		{"--rename", "welcome-email:nobody", "--apply"},
		{"--dead", "show", "--which", "nobody"},
	} {
		s.start(consumer, nil, args...).wantRefusal(1,
			`postbus consumer: there is no consumer "nobody"; there are verification-email, welcome-email`)
		s.wantEmptyDir()
	}
	for _, args := range [][]string{{"--only", "welcome-email,job:nowhere"}, {"--dead", "show", "--which", "job:nowhere"}} {
		s.start(consumer, nil, args...).wantRefusal(1, `postbus consumer: there is no queue "nowhere"; there are default, outgoing-mail`)
		s.wantEmptyDir()
	}
}

// TestOwnPostgres has a Postgres that is away, comes, refuses, goes and comes back.
func TestOwnPostgres(t *testing.T) {
	parallel(t)
	server := pgtest.Own(t)
	s := newSiteWith(t, closedOffice(t))
	s.env["DATABASE_URL"], s.env["SECRET_KEY"] = server.URL(), secretKey
	place := fmt.Sprintf("127.0.0.1:%d", server.Port())

	s.wantRefusedByPostgres(place)

	server.Stop()
	web := s.start(app, nil)
	worker := s.start(consumer, nil)
	web.says(&web.out, "postbus: waiting for Postgres at "+place+"\n")
	worker.says(&worker.err, "postbus: waiting for Postgres at "+place+"\n")
	server.Start()
	web.says(&web.out, "  stop       Ctrl-C\n")
	worker.says(&worker.out, "  stop       Ctrl-C\n")
	s.wantReady(http.StatusOK)

	s.signUp(anna) // the mail server is away: the mail waits
	server.Stop()
	s.wantReady(http.StatusServiceUnavailable)
	s.wantUnavailable()
	server.Start()
	until(t, "the app is ready again", func() bool { return s.get("/readyz").status == http.StatusOK })
	s.office.open()
	s.confirm(s.office.await(anna, verification).link)
	s.office.await(anna, welcome)
	s.signUp(bert)
	s.office.await(bert, verification)
}

// wantRefusedByPostgres starts programs with a DATABASE_URL that the server has no place for.
func (s *site) wantRefusedByPostgres(place string) {
	s.t.Helper()
	wrong, err := url.Parse(s.env["DATABASE_URL"])
	if err != nil {
		s.t.Fatal(err)
	}
	nowhere := *wrong
	wrong.User = url.UserPassword("postbus", passwordMarker)
	nowhere.Path = "/nothing_here"
	for _, program := range []string{app, consumer} {
		s.start(program, settings{"DATABASE_URL": wrong.String(), "LOG_LEVEL": "trace"}).wantRefusal(1,
			"postbus "+program+": postgres at "+place+` refused user "postbus"; check user and password in DATABASE_URL`)
		s.start(program, settings{"DATABASE_URL": nowhere.String(), "LOG_LEVEL": "trace"}).wantRefusal(1,
			"postbus "+program+": postgres at "+place+` has no database "nothing_here"; create it, or name another in DATABASE_URL`)
	}
}

// wantReady checks readiness, and that the process is healthy either way.
func (s *site) wantReady(status int) {
	s.t.Helper()
	if a := s.get("/readyz"); a.status != status {
		s.t.Errorf("/readyz answers %v, want %d", a, status)
	}
	if a := s.get("/healthz"); a.status != http.StatusOK {
		s.t.Errorf("/healthz answers %v, want 200", a)
	}
}

// wantUnavailable checks what people and programs are told while Postgres is away.
func (s *site) wantUnavailable() {
	s.t.Helper()
	for contentType, body := range map[string]string{
		typeForm: "email=" + url.QueryEscape(bert),
		typeJSON: `{"email":"` + bert + `"}`,
	} {
		a := s.post("/users", contentType, body)
		if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") != "5" ||
			!strings.Contains(a.body, "nothing was changed. Please try again in a few seconds.") {
			s.t.Errorf("sign-up by %s answers %v with Retry-After %q", contentType, a, a.header.Get("Retry-After"))
		}
	}
}
