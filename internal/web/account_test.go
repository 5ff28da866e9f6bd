package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postbus/internal/account"
	"postbus/internal/uow"
)

func TestSignUpAnswersJSON(t *testing.T) {
	for _, target := range []string{"/users", "/verify/resend"} {
		f := &accounts{}
		w := postJSON(target, `{"email":" Ada@EXAMPLE.com "}`).do(newApp(t, f).Handler())
		wantStatus(t, w, http.StatusAccepted)
		want := `{"message":"` + accepted + `","status":"accepted"}` + "\n"
		if w.Body.String() != want {
			t.Errorf("%s: body is %s, want %s", target, w.Body, want)
		}
		if got := f.address.String(); got != "Ada@example.com" {
			t.Errorf("%s: address is %s", target, got)
		}
	}
}

func TestSignUpAnswersForm(t *testing.T) {
	app := newApp(t, &accounts{}, withMailbox)
	w := postForm("/users", "email=ada%40example.com").do(app.Handler())
	wantStatus(t, w, http.StatusAccepted)
	wantPage(t, w, "Check your inbox", `href="/mailbox"`)

	app = newApp(t, &accounts{})
	w = postForm("/users", "email=ada%40example.com").do(app.Handler())
	wantStatus(t, w, http.StatusAccepted)
	if wantPage(t, w, "Check your inbox"); strings.Contains(w.Body.String(), "mailbox") {
		t.Error("page tells of a mailbox that is not there")
	}
}

// The answer to a known and to an unknown address differs in nothing, time included. The fake takes as long as the
// database would; time is the bubble's, so the comparison is exact.
func TestAnswerHidesWhetherAddressIsKnown(t *testing.T) {
	for _, target := range []string{"/users", "/verify/resend"} {
		for _, form := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var answers []string
				for _, takes := range []time.Duration{time.Millisecond, 90 * time.Millisecond, answerFloor - 1} {
					h := newApp(t, &accounts{takes: takes}).Handler()
					q := postJSON(target, `{"email":"ada@example.com"}`)
					if form {
						q = postForm(target, "email=ada%40example.com")
					}
					started := time.Now()
					w := q.do(h)
					w.Header().Del("X-Request-Id")
					answers = append(answers, fmt.Sprint(time.Since(started), w.Code, w.Header(), w.Body))
				}
				if answers[0] != answers[1] || answers[0] != answers[2] {
					t.Errorf("answers differ: %q", answers)
				}
				if !strings.HasPrefix(answers[0], answerFloor.String()) {
					t.Errorf("answer did not take %s: %q", answerFloor, answers[0])
				}
			})
		}
	}
}

// A client that sends its body slowly must not use the floor up with that.
func TestFloorBeginsAfterTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := &slowBody{rest: `{"email":"ada@example.com"}`, pause: answerFloor}
		r, err := http.NewRequest(http.MethodPost, "/users", body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", typeJSON)
		w := &timedWriter{header: http.Header{}}
		newApp(t, &accounts{}).Handler().ServeHTTP(w, r)
		if got := w.at.Sub(body.ended); got != answerFloor {
			t.Errorf("answer came %s after the body, want %s", got, answerFloor)
		}
	})
}

func TestRefusalsAreImmediateAndReachNoAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &accounts{}
		started := time.Now()
		wantStatus(t, postJSON("/users", `{"email":"ada"}`).do(newApp(t, f).Handler()), http.StatusUnprocessableEntity)
		if took := time.Since(started); took != 0 || f.called() != "" {
			t.Errorf("refusal took %s and called %q", took, f.called())
		}
	})
}

func TestInvalidAddress(t *testing.T) {
	for name, typed := range map[string]string{
		"empty":             "",
		"header injection":  "ada@example.com\r\nBcc: eve@example.com",
		"command injection": `"a@x> ORCPT=b@y"@z`,
		"255 characters":    strings.Repeat("a", 64) + "@" + strings.Repeat("b", 61) + strings.Repeat("."+strings.Repeat("c", 61), 2) + ".example",
		"markup":            `<script>alert(1)</script>@example.com`,
		"no dot":            "a@b",
	} {
		t.Run(name, func(t *testing.T) {
			f := &accounts{}
			h := newApp(t, f).Handler()
			w := postJSON("/users", mustJSON(t, map[string]string{"email": typed})).do(h)
			wantStatus(t, w, http.StatusUnprocessableEntity)
			code, message := errorOf(t, w)
			if code != "invalid_address" || (typed != "" && strings.Contains(message, typed)) {
				t.Errorf("error is %s: %s", code, message)
			}
			for _, target := range []string{"/users", "/verify/resend"} {
				w = postForm(target, formOf("email", typed)).do(h)
				wantStatus(t, w, http.StatusUnprocessableEntity)
				wantPage(t, w, `action="`+target+`"`, `aria-invalid="true"`, `aria-describedby="email-error email-hint"`,
					`id="email-error"`, `value="`+escaped(typed)+`"`, escaped(message))
			}
			if f.called() != "" {
				t.Errorf("called %s", f.called())
			}
		})
	}
}

func TestWorkWithTheDatabaseFails(t *testing.T) {
	token := account.Token{7}.Encode()
	for name, c := range map[string]struct {
		err      error
		status   int
		code     string
		sentence string
	}{
		"down":     {errors.New("connection refused"), 503, "unavailable", "nothing was changed"},
		"deadline": {context.DeadlineExceeded, 503, "unavailable", "try again"},
		"unknown":  {fmt.Errorf("commit: %w", uow.ErrOutcomeUnknown), 503, "outcome_unknown", "Trying again is safe"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newApp(t, &accounts{err: c.err, state: account.LinkVerified}).Handler()
			for _, q := range []request{
				postJSON("/users", `{"email":"ada@example.com"}`),
				postJSON("/verify/resend", `{"email":"ada@example.com"}`),
				postJSON("/verify", `{"token":"`+token+`"}`),
				get("/verify?token="+token).with("Accept", typeJSON),
			} {
				w := q.do(h)
				wantStatus(t, w, c.status)
				if code, message := errorOf(t, w); code != c.code || !strings.Contains(message, c.sentence) {
					t.Errorf("%s %s: error is %s: %s", q.method, q.target, code, message)
				}
				if got := w.Header().Get("Retry-After"); got != "5" {
					t.Errorf("%s %s: Retry-After is %q", q.method, q.target, got)
				}
			}
			w := get("/verify?token=" + token).do(h)
			wantStatus(t, w, c.status)
			wantPage(t, w, `role="alert"`, c.sentence, `<a class="button" href="">Try again</a>`)
			w = postForm("/users", "email=ada%40example.com").do(h)
			wantStatus(t, w, c.status)
			wantPage(t, w, `role="alert"`, c.sentence, `value="ada@example.com"`, `action="/users"`)
			w = postForm("/verify", "token="+token).do(h)
			wantStatus(t, w, c.status)
			wantPage(t, w, `role="alert"`, c.sentence, `value="`+token+`"`, `action="/verify"`)
		})
	}
}

func TestDispatchErrorIsNotTheClientsConcern(t *testing.T) {
	var log syncBuffer
	f := &accounts{err: fmt.Errorf("register: %w", &uow.DispatchError{Err: errors.New("handler x")}), state: account.LinkVerified}
	h := newApp(t, f, logTo(&log)).Handler()
	wantStatus(t, postJSON("/users", `{"email":"ada@example.com"}`).do(h), http.StatusAccepted)
	wantStatus(t, postJSON("/verify", `{"token":"`+account.Token{}.Encode()+`"}`).do(h), http.StatusOK)
	if got := strings.Count(log.String(), "in-process handler failed after the commit"); got != 2 {
		t.Errorf("logged %d times: %s", got, log.String())
	}
}

func TestWorkIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &accounts{onWork: func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }}
		started := time.Now()
		w := postJSON("/users", `{"email":"ada@example.com"}`).do(newApp(t, f).Handler())
		wantStatus(t, w, http.StatusServiceUnavailable)
		if took := time.Since(started); took != 5*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestLinkStates(t *testing.T) {
	token := account.Token{1, 2, 3}.Encode()
	for _, c := range []struct {
		state     account.LinkState
		getStatus int
		getPage   string
		status    int
		code      string
		page      string
	}{
		{account.LinkOpen, 200, `<button type="submit">Confirm</button>`, 500, "internal", ""},
		{account.LinkVerified, 500, "", 200, "verified", "Address confirmed"},
		{account.LinkUsed, 410, "Already confirmed", 410, "link_used", "Already confirmed"},
		{account.LinkExpired, 410, `action="/verify/resend"`, 410, "link_expired", `action="/verify/resend"`},
		{account.LinkUnknown, 404, "We do not know this link", 404, "link_unknown", `action="/verify/resend"`},
	} {
		t.Run(c.state.String(), func(t *testing.T) {
			f := &accounts{state: c.state}
			h := newApp(t, f).Handler()
			w := get("/verify?utm_source=mail&token=" + token).do(h)
			wantStatus(t, w, c.getStatus)
			wantPage(t, w, c.getPage)
			if f.called() != "inspect" {
				t.Errorf("GET called %s", f.called())
			}
			w = postForm("/verify", "token="+token).do(h)
			wantStatus(t, w, c.status)
			wantPage(t, w, c.page)
			w = postJSON("/verify", `{"token":"`+token+`"}`).do(h)
			wantStatus(t, w, c.status)
			if c.status == http.StatusOK {
				if !strings.Contains(w.Body.String(), `"status":"verified"`) {
					t.Errorf("body is %s", w.Body)
				}
			} else if code, _ := errorOf(t, w); code != c.code {
				t.Errorf("code is %s, want %s", code, c.code)
			}
			if f.called() != "inspect verify verify" {
				t.Errorf("called %s", f.called())
			}
		})
	}
}

func TestMalformedToken(t *testing.T) {
	token := account.Token{9}.Encode()
	f := &accounts{state: account.LinkOpen}
	h := newApp(t, f).Handler()
	for _, target := range []string{
		"/verify", "/verify?token=", "/verify?token=abc", "/verify?token=" + token + "A",
		"/verify?token=" + token + "&token=" + token, "/verify?token=%00", "/verify?token=" + token[:42] + "%3D",
	} {
		w := get(target).do(h)
		wantStatus(t, w, http.StatusBadRequest)
		wantPage(t, w, "This link is not complete", `action="/verify/resend"`)
	}
	for _, q := range []request{postJSON("/verify", `{"token":"abc"}`), postJSON("/verify?token="+token, `{"token":""}`)} {
		w := q.do(h)
		wantStatus(t, w, http.StatusBadRequest)
		if code, _ := errorOf(t, w); code != "link_malformed" {
			t.Errorf("code is %s", code)
		}
	}
	if f.called() != "" {
		t.Errorf("called %s", f.called())
	}
}

func TestHeadChangesNothing(t *testing.T) {
	f := &accounts{state: account.LinkOpen}
	q := get("/verify?token=" + account.Token{}.Encode())
	q.method = http.MethodHead
	w := q.do(newApp(t, f).Handler())
	wantStatus(t, w, http.StatusOK)
	if w.Body.Len() != 0 || f.called() != "inspect" {
		t.Errorf("HEAD gave %d bytes and called %s", w.Body.Len(), f.called())
	}
}
