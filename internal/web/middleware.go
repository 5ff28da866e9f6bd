package web

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

type requestIDKey struct{}

// requestID is the number under which a request stands in the log, or "" outside of one.
func requestID(r *http.Request) string {
	id, _ := r.Context().Value(requestIDKey{}).(string)
	return id
}

func (a *App) log(r *http.Request) *slog.Logger {
	return a.config.Logger.With("request_id", requestID(r))
}

// observe gives the request a number of our own, since a client's could be anything, and logs it when it is over: the
// route's pattern and never the path, which a person typed and which may hold a token.
func (a *App) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		id := rand.Text()
		r = r.WithContext(context.WithValue(r.Context(), requestIDKey{}, id))
		w.Header().Set("X-Request-Id", id)
		seen := &recorder{ResponseWriter: w}
		// Deferred, since recoverPanic may break the connection off by a panic of its own.
		defer a.logAccess(r, seen, started)
		next.ServeHTTP(seen, r)
	})
}

func (a *App) logAccess(r *http.Request, seen *recorder, started time.Time) {
	route := routeOf(r)
	a.config.Logger.Log(r.Context(), accessLevel(route, seen.status), "request",
		"request_id", requestID(r), "duration", time.Since(started), slog.Group("http",
			"method", knownMethod(r.Method), "route", route, "status", seen.status, "bytes", seen.bytes))
}

// routeOf is the pattern that took the request, without its method. The mux writes it into the request.
func routeOf(r *http.Request) string {
	_, path, found := strings.Cut(r.Pattern, " ")
	if !found {
		path = r.Pattern
	}
	switch path {
	case "", "/":
		return "none"
	case "/{$}":
		return "/"
	}
	return path
}

// quietRoutes are asked for by machines every few seconds, or along with every page.
var quietRoutes = []string{"/healthz", "/readyz", "/mailbox", "/static/{name}"}

func accessLevel(route string, status int) slog.Level {
	if status < http.StatusBadRequest && slices.Contains(quietRoutes, route) {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// knownMethod keeps a method that somebody invented out of the log.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	}
	return "OTHER"
}

// recoverPanic turns a panic into a 500, once, with the stack in the log. Of the panic's value only a runtime error's
// text is logged: any other may quote what a person typed.
func (a *App) recoverPanic(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			value := recover()
			if value == nil {
				return
			}
			if err, ok := value.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(value)
			}
			reason := fmt.Sprintf("panic with a %T", value)
			if err, ok := value.(runtime.Error); ok {
				reason = err.Error()
			}
			a.log(r).Error("handler panicked", "error", reason, "stack", string(debug.Stack()))
			if seen, ok := w.(*recorder); ok && seen.status != 0 {
				// Part of another answer is out. Only a broken connection tells the client that it is not whole.
				panic(http.ErrAbortHandler)
			}
			a.refuse(w, r, internalProblem())
		}()
		next.ServeHTTP(w, r)
	})
}

// pagePolicy is the Content-Security-Policy of everything but a mail's HTML: own styles, images and scripts, forms to
// ourselves, no frames around us.
const pagePolicy = "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; connect-src 'self'; " +
	"frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// secure sets the headers that every answer has. A handler may tighten or replace one.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// recorder remembers what was answered, for the access log and for recoverPanic.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
