package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// reply is an answer that says yes, for both kinds of client.
type reply struct {
	status  int
	code    string // "status" in JSON
	message string
	page    view
}

// send writes a reply in the client's form.
func (a *App) send(w http.ResponseWriter, r *http.Request, yes reply) {
	if wantsJSON(r) {
		a.sendJSON(w, r, yes.status, map[string]string{"status": yes.code, "message": yes.message})
		return
	}
	a.sendPage(w, r, yes.status, yes.page)
}

// refuse writes what a handler returned. An error that is no *problem is the app's own fault.
func (a *App) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var no *problem
	if !errors.As(err, &no) {
		a.log(r).Error("request not handled", "error", err)
		no = internalProblem()
	}
	if no.status == http.StatusRequestEntityTooLarge {
		// The rest of the body is nobody's to read. http.MaxBytesReader would see to that if it were given net/http's own
		// writer; it does not look behind a recorder.
		w.Header().Set("Connection", "close")
	}
	if wantsJSON(r) {
		a.refuseJSON(w, r, no)
		return
	}
	setRetryAfter(w.Header(), no.retryAfter)
	page := view{Name: "error", Title: no.title(), Alert: no.message}
	if no.page != nil {
		page = *no.page
	}
	page.Status = no.status
	page.Reload = no.status >= http.StatusInternalServerError && r.Method == http.MethodGet
	a.sendPage(w, r, no.status, page)
}

func (a *App) refuseJSON(w http.ResponseWriter, r *http.Request, no *problem) {
	setRetryAfter(w.Header(), no.retryAfter)
	a.sendJSON(w, r, no.status, map[string]any{"error": map[string]string{"code": no.code, "message": no.message}})
}

// setRetryAfter rounds up, so that a client that comes back exactly then is not a moment too early.
func setRetryAfter(h http.Header, wait time.Duration) {
	if wait > 0 {
		h.Set("Retry-After", strconv.FormatInt(seconds(wait), 10))
	}
}

// seconds rounds up.
func seconds(wait time.Duration) int64 { return int64((wait + time.Second - 1) / time.Second) }

func internalProblem() *problem {
	return &problem{
		status: http.StatusInternalServerError, code: "internal",
		message: "Something went wrong on our side. Please try again; if it stays, tell us the number below.",
	}
}

// wantsJSON decides the form of an answer. It is that of the request's body; where there is none that we know, Accept
// decides, and last what the method suggests: a page for a GET, JSON for anything else.
func wantsJSON(r *http.Request) bool {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && media == typeJSON {
		return true
	}
	if err == nil && media == typeForm {
		return false
	}
	if acceptsHTML(r) {
		return false
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return strings.Contains(r.Header.Get("Accept"), typeJSON)
	}
	return true
}

func acceptsHTML(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

func (a *App) sendJSON(w http.ResponseWriter, r *http.Request, status int, body any) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(body); err != nil {
		a.log(r).Error("answer not encoded", "error", err)
		status = http.StatusInternalServerError
	}
	a.write(w, r, status, "application/json; charset=utf-8", out.Bytes())
}

// sendPage renders before it writes, so that a page is whole or is not sent at all.
func (a *App) sendPage(w http.ResponseWriter, r *http.Request, status int, page view) {
	page.RequestID = requestID(r)
	page.Mailbox = a.ShowsMailbox() && a.mailboxRefusal(r) == nil
	var out bytes.Buffer
	if err := a.pages.render(&out, page); err != nil {
		a.log(r).Error("page not rendered", "error", err)
		status = http.StatusInternalServerError
		out.Reset()
		out.WriteString("<!doctype html><title>Error</title><p>Something went wrong on our side. Please try again.")
	}
	if needsOrigin(r) {
		w.Header().Set("Referrer-Policy", "strict-origin")
	}
	a.write(w, r, status, "text/html; charset=utf-8", out.Bytes())
}

// needsOrigin tells a browser that will not send Sec-Fetch-Site along with a form: an old one, or any over plain http
// to a host that is not loopback. Its forms are told from a stranger's by their Origin header, and that is "null" under
// Referrer-Policy no-referrer. strict-origin keeps it, and keeps path and query, hence the token, out of Referer.
func needsOrigin(r *http.Request) bool {
	return r.Header.Get("Sec-Fetch-Site") == "" && acceptsHTML(r)
}

// write sends a finished body. An error of writing means that the client is gone; there is nobody to tell.
func (a *App) write(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := w.Write(body); err != nil {
		a.log(r).Debug("answer not written", "error", err)
	}
}
