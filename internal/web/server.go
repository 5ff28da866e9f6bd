package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"golang.org/x/net/netutil"
)

// Serve answers on the listener until ctx ends, then lets the requests under way finish within ShutdownTimeout and
// closes the listener. It returns nil after a complete shutdown, and an error if requests had to be cut off or the
// listener failed. The end of ctx does not cancel requests.
func (a *App) Serve(ctx context.Context, listener net.Listener) error {
	server := a.server()
	served := make(chan error, 1)
	go func() { served <- server.Serve(netutil.LimitListener(listener, a.config.ConnectionsMax)) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve http: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.config.ShutdownTimeout)
	defer cancel()
	err := server.Shutdown(grace)
	if err != nil {
		err = fmt.Errorf("finish requests: %w", errors.Join(err, server.Close()))
	}
	if ended := <-served; err == nil && !errors.Is(ended, http.ErrServerClosed) {
		err = fmt.Errorf("serve http: %w", ended)
	}
	return err
}

func (a *App) server() *http.Server {
	return &http.Server{
		Handler:           a.handler,
		ReadHeaderTimeout: a.config.ReadHeaderTimeout,
		ReadTimeout:       a.config.ReadTimeout,
		WriteTimeout:      a.config.WriteTimeout,
		IdleTimeout:       a.config.IdleTimeout,
		MaxHeaderBytes:    headerBytesMax,
		// net/http tells here of broken connections, which are the clients' doing.
		ErrorLog: slog.NewLogLogger(a.config.Logger.Handler(), slog.LevelDebug),
	}
}
