package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"postbus/internal/account"
	"postbus/internal/domain/user"
)

// Accounts are the use cases behind the pages. Register and Resend return nil whether or not the address is known.
type Accounts interface {
	Register(ctx context.Context, address user.Address) error
	Resend(ctx context.Context, address user.Address) error
	Inspect(ctx context.Context, token account.Token) (account.LinkState, error)
	Verify(ctx context.Context, token account.Token) (account.LinkState, error)
}

// App answers the requests. It is safe for concurrent use.
type App struct {
	accounts Accounts
	config   Config
	public   *url.URL
	posts    *limiter
	pages    *pages
	assets   assets
	handler  http.Handler

	crossOrigin http.CrossOriginProtection
}

// New checks the configuration and puts the app together. It starts nothing.
func New(accounts Accounts, c Config) (*App, error) {
	if accounts == nil {
		return nil, errors.New("configure web: accounts are missing")
	}
	c.defaults()
	public, err := c.validate()
	if err != nil {
		return nil, err
	}
	assets, err := loadAssets()
	if err != nil {
		return nil, err
	}
	pages, err := parsePages(assets)
	if err != nil {
		return nil, err
	}
	a := &App{
		accounts: accounts, config: c, public: public, assets: assets, pages: pages,
		posts: newLimiter(c.RateBurst, c.RateInterval, c.RateClients),
	}
	// Behind a proxy that rewrites Host, a browser's Origin still names the public host.
	if err := a.crossOrigin.AddTrustedOrigin(public.Scheme + "://" + public.Host); err != nil {
		return nil, errors.New("configure web: PublicURL is no origin")
	}
	a.handler = a.observe(a.recoverPanic(secure(a.routes())))
	return a, nil
}

// ShowsMailbox tells whether the app has the mailbox's pages: there is a mailbox, and PublicURL names this machine. An app
// with a public name has others who reach it, perhaps through a proxy that passes their requests on like its own.
func (a *App) ShowsMailbox() bool {
	return a.config.Mailbox != nil && isLocalHost(a.public.Hostname())
}

// Handler is the whole app, for a server of the caller's own; Serve is the usual way.
func (a *App) Handler() http.Handler { return a.handler }

// handlerFunc answers a request, or returns why not: a *problem, or an error that is the app's own fault.
type handlerFunc func(w http.ResponseWriter, r *http.Request) error

func (a *App) handle(h handlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			a.refuse(w, r, err)
		}
	})
}

type route struct {
	method, path string
	handler      handlerFunc
}

func (a *App) routes() http.Handler {
	routes := []route{
		{http.MethodGet, "/{$}", a.showSignUp},
		{http.MethodPost, "/users", a.signUp},
		{http.MethodGet, "/verify", a.showLink},
		{http.MethodPost, "/verify", a.verify},
		{http.MethodPost, "/verify/resend", a.resend},
		{http.MethodGet, "/healthz", a.healthy},
		{http.MethodGet, "/readyz", a.ready},
		{http.MethodGet, "/static/{name}", a.static},
	}
	if a.ShowsMailbox() {
		routes = append(routes,
			route{http.MethodGet, "/mailbox", a.showMailbox},
			route{http.MethodGet, "/mailbox/{id}", a.showLetter},
			route{http.MethodGet, "/mailbox/{id}/html", a.showLetterHTML},
		)
	}
	mux := http.NewServeMux()
	allowed := make(map[string][]string)
	for _, route := range routes {
		handler := route.handler
		if route.method == http.MethodPost {
			handler = a.guard(handler, pageAgain[route.path])
		} else {
			allowed[route.path] = append(allowed[route.path], http.MethodHead)
		}
		mux.Handle(route.method+" "+route.path, a.handle(handler))
		allowed[route.path] = append(allowed[route.path], route.method)
	}
	// A path without a method takes what no route above takes.
	for path, methods := range allowed {
		mux.Handle(path, a.handle(methodNotAllowed(methods)))
	}
	mux.Handle("/", a.handle(notFound))
	return mux
}

func notFound(http.ResponseWriter, *http.Request) error {
	return &problem{
		status: http.StatusNotFound, code: "not_found",
		message: "There is nothing at this address.",
	}
}

func methodNotAllowed(methods []string) handlerFunc {
	allow := strings.Join(methods, ", ")
	return func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Allow", allow)
		return &problem{
			status: http.StatusMethodNotAllowed, code: "method_not_allowed",
			message: "This address only answers to " + allow + ".",
		}
	}
}

// pageAgain are the pages from which a form is sent once more that came too early, with what was typed.
var pageAgain = map[string]func(http.ResponseWriter, *http.Request) view{
	"/users":         func(w http.ResponseWriter, r *http.Request) view { return formAgain(w, r, signUpPage()) },
	"/verify/resend": func(w http.ResponseWriter, r *http.Request) view { return formAgain(w, r, resendPage()) },
	"/verify":        confirmAgain,
}

// guard lets a POST through to h if it does not come from another website's page and the client has not sent too many.
func (a *App) guard(h handlerFunc, again func(http.ResponseWriter, *http.Request) view) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if a.crossOrigin.Check(r) != nil {
			return &problem{
				status: http.StatusForbidden, code: "cross_origin",
				message: "This request came from another website and was not carried out. Please use the form on our page.",
			}
		}
		if wait := a.posts.allow(network(a.clientIP(r)), time.Now()); wait > 0 {
			no := tooMany(wait)
			if wantsJSON(r) {
				return no // and reads nothing
			}
			return withForm(no, again(w, r))
		}
		return h(w, r)
	}
}

func tooMany(wait time.Duration) *problem {
	pause := "1 second"
	if n := seconds(wait); n > 1 {
		pause = fmt.Sprintf("%d seconds", n)
	}
	return &problem{
		status: http.StatusTooManyRequests, code: "too_many_requests", retryAfter: wait,
		message: "Too many requests came from your network. Please wait " + pause + " and try again.",
	}
}
