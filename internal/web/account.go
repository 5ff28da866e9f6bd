package web

import (
	"context"
	"errors"
	"net/http"
	"time"

	"postbus/internal/account"
	"postbus/internal/domain/user"
)

// accepted is the one answer to a sign-up and to a repetition of the mail. It must be true for a known and for an
// unknown address, since it is the same for both.
const accepted = "Please check your inbox: the email from us says what to do next."

func (a *App) showSignUp(w http.ResponseWriter, r *http.Request) error {
	a.sendPage(w, r, http.StatusOK, signUpPage())
	return nil
}

func (a *App) signUp(w http.ResponseWriter, r *http.Request) error {
	return a.takeAddress(w, r, a.accounts.Register, signUpPage())
}

func (a *App) resend(w http.ResponseWriter, r *http.Request) error {
	return a.takeAddress(w, r, a.accounts.Resend, resendPage())
}

// takeAddress reads an address, does the work with it and answers. form is the page to show again when it did not work.
func (a *App) takeAddress(
	w http.ResponseWriter, r *http.Request, work func(context.Context, user.Address) error, form view,
) error {
	typed, err := readField(w, r, "email")
	if err != nil {
		return withForm(err, form)
	}
	form.Email = typed
	address, err := user.ParseAddress(typed)
	if err != nil {
		return withForm(addressProblem(err), form)
	}
	started := time.Now()
	err = a.work(r, func(ctx context.Context) error { return work(ctx, address) })
	waitUntil(r.Context(), started.Add(answerFloor))
	if err := a.accountProblem(r, err, typed, address.String(), address.Canonical()); err != nil {
		return withForm(err, form)
	}
	a.send(w, r, reply{
		status: http.StatusAccepted, code: "accepted", message: accepted,
		page: view{Name: "sent", Title: "Check your inbox"},
	})
	return nil
}

// work runs do under the time that one request may spend with the database.
func (a *App) work(r *http.Request, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(r.Context(), a.config.WorkTimeout)
	defer cancel()
	return do(ctx)
}

// waitUntil returns at t, or earlier if the client is gone.
func waitUntil(ctx context.Context, t time.Time) {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func addressProblem(err error) error {
	var refused *user.AddressError
	if !errors.As(err, &refused) {
		return err
	}
	return &problem{status: http.StatusUnprocessableEntity, code: "invalid_address", message: refused.Reason}
}

// withForm makes a browser see the form again, with the message where it belongs: beside the field if it is about what
// was typed, above the form otherwise.
func withForm(err error, form view) error {
	var no *problem
	if !errors.As(err, &no) {
		return err
	}
	form.Status = no.status
	if no.code == "invalid_address" {
		form.EmailError = no.message
	} else {
		form.Alert = no.message
	}
	shown := *no
	shown.page = &form
	return &shown
}

// formAgain is the form with the address that was typed, as far as it can be read.
func formAgain(w http.ResponseWriter, r *http.Request, form view) view {
	if typed, err := readField(w, r, "email"); err == nil {
		form.Email = typed
	}
	return form
}

// confirmAgain is the page with the button that was pressed, if the link is one.
func confirmAgain(w http.ResponseWriter, r *http.Request) view {
	if typed, err := readField(w, r, "token"); err == nil {
		if token, err := account.ParseToken(typed); err == nil {
			return confirmPage(token)
		}
	}
	return view{Name: "error", Title: (&problem{status: http.StatusTooManyRequests}).title()}
}

// showLink shows what the link in the mail can do and changes nothing.
func (a *App) showLink(w http.ResponseWriter, r *http.Request) error {
	tokens := r.URL.Query()["token"]
	if len(tokens) != 1 {
		return linkMalformed()
	}
	token, err := account.ParseToken(tokens[0])
	if err != nil {
		return linkMalformed()
	}
	var state account.LinkState
	err = a.work(r, func(ctx context.Context) (err error) {
		state, err = a.accounts.Inspect(ctx, token)
		return err
	})
	if err := a.accountProblem(r, err, token.Encode()); err != nil {
		return err
	}
	if state != account.LinkOpen {
		return linkProblem(state)
	}
	a.sendPage(w, r, http.StatusOK, confirmPage(token))
	return nil
}

// verify consumes the link.
func (a *App) verify(w http.ResponseWriter, r *http.Request) error {
	typed, err := readField(w, r, "token")
	if err != nil {
		return err
	}
	token, err := account.ParseToken(typed)
	if err != nil {
		return linkMalformed()
	}
	var state account.LinkState
	err = a.work(r, func(ctx context.Context) (err error) {
		state, err = a.accounts.Verify(ctx, token)
		return err
	})
	if err := a.accountProblem(r, err, typed, token.Encode()); err != nil {
		return withForm(err, confirmPage(token))
	}
	if state != account.LinkVerified {
		return linkProblem(state)
	}
	a.send(w, r, reply{
		status: http.StatusOK, code: "verified", message: "Your email address is confirmed.",
		page: view{Name: "verified", Title: "Address confirmed"},
	})
	return nil
}

func linkMalformed() error {
	return &problem{
		status: http.StatusBadRequest, code: "link_malformed",
		message: "This link is not complete. Please copy it from the email once more, all of it.",
		page:    &view{Name: "link", Title: "This link is not complete", State: "malformed"},
	}
}

// linkProblem is the answer to a link that cannot be confirmed, or cannot any more.
func linkProblem(state account.LinkState) error {
	switch state {
	case account.LinkUsed:
		return &problem{
			status: http.StatusGone, code: "link_used",
			message: "This link has been used already; the address is confirmed.",
			page:    &view{Name: "link", Title: "Already confirmed", State: "used"},
		}
	case account.LinkExpired:
		return &problem{
			status: http.StatusGone, code: "link_expired",
			message: "This link has expired. Please ask for a new one.",
			page:    &view{Name: "link", Title: "This link has expired", State: "expired"},
		}
	case account.LinkUnknown:
		return &problem{
			status: http.StatusNotFound, code: "link_unknown",
			message: "We do not know this link. Please use the one in the latest email.",
			page:    &view{Name: "link", Title: "We do not know this link", State: "unknown"},
		}
	case account.LinkOpen, account.LinkVerified:
		// Neither is a refusal: the one comes from Inspect alone, the other from Verify alone.
	}
	return errors.New("link in an unexpected state")
}
