package web

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"postbus/internal/uow"
)

// problem is an answer that says no. Handlers return it; respond.go writes it.
type problem struct {
	status     int
	code       string // for programs; stable
	message    string // for people: one or two sentences, free of anything secret
	retryAfter time.Duration
	page       *view // what a browser sees in place of the plain error page
}

func (p *problem) Error() string { return p.code + ": " + p.message }

// title is the headline of the error page.
func (p *problem) title() string {
	switch p.status {
	case http.StatusNotFound:
		return "Nothing here"
	case http.StatusForbidden:
		return "Not from here"
	case http.StatusTooManyRequests:
		return "A little slower, please"
	case http.StatusServiceUnavailable:
		return "Back in a moment"
	case http.StatusInternalServerError:
		return "That went wrong"
	}
	return "That did not work"
}

func badRequest(code, message string) *problem {
	return &problem{status: http.StatusBadRequest, code: code, message: message}
}

// retryPause is what a client is told to wait after the database was not there. Long enough for a failover to pass
// under fewer requests, short enough for a person.
const retryPause = 5 * time.Second

// accountProblem turns what the account service returned into the answer, or nil if the work was done. An error that is
// not the client's doing is logged here, once, without any of the secrets: what the client sent in this request.
func (a *App) accountProblem(r *http.Request, err error, secrets ...string) error {
	var dispatch *uow.DispatchError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &dispatch):
		// The commit stands: what was asked for is done, and no repetition of the request can mend the handler.
		a.log(r).Error("in-process handler failed after the commit", "error", hide(err, secrets))
		return nil
	case errors.Is(err, uow.ErrOutcomeUnknown):
		a.log(r).Error("outcome of the commit unknown", "error", hide(err, secrets))
		return &problem{
			status: http.StatusServiceUnavailable, code: "outcome_unknown", retryAfter: retryPause,
			message: "We lost the connection to the database at the last moment and do not know whether this was done. " +
				"Trying again is safe.",
		}
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		a.log(r).Debug("client went away", "error", hide(err, secrets))
	default:
		a.log(r).Error("work with the database not done", "error", hide(err, secrets))
	}
	return &problem{
		status: http.StatusServiceUnavailable, code: "unavailable", retryAfter: retryPause,
		message: "We cannot do this at the moment, and nothing was changed. Please try again in a few seconds.",
	}
}

// hidden is an error whose text is free of what the client sent. The packages below do not put that there; Postgres
// may, when it quotes the value it refuses. What it wraps stays reachable.
type hidden struct {
	err     error
	secrets []string
}

func hide(err error, secrets []string) error { return &hidden{err: err, secrets: secrets} }

func (h *hidden) Error() string {
	text := h.err.Error()
	for _, secret := range h.secrets {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "[hidden]")
		}
	}
	return text
}

func (h *hidden) Unwrap() error { return h.err }
