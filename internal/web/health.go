package web

import (
	"context"
	"net/http"
)

// healthy says that the process answers, whatever the database does: restarting the app would not mend that.
func (a *App) healthy(w http.ResponseWriter, r *http.Request) error {
	a.sendJSON(w, r, http.StatusOK, map[string]string{"status": "ok"})
	return nil
}

// ready says whether requests should be sent here.
func (a *App) ready(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	if err := a.config.Ready(ctx); err != nil {
		a.log(r).Warn("not ready", "error", err)
		a.refuseJSON(w, r, &problem{
			status: http.StatusServiceUnavailable, code: "not_ready", retryAfter: retryPause,
			message: "The app is running but cannot do its work at the moment.",
		})
		return nil
	}
	a.sendJSON(w, r, http.StatusOK, map[string]string{"status": "ready"})
	return nil
}
