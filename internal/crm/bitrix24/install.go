package bitrix24

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/http"
	"strconv"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// InstallPath is where an application is installed: behind it stands the endpoint's name. A portal
// posts to it that it has the application, and an administrator may open it in a browser.
const InstallPath = "/hooks/bitrix24/{name}/install"

// installPause is the least time between two tries to install an application.
const installPause = time.Second

// Install takes the tokens of an application, in any of the forms in which a portal gives them:
//
//   - a code, with which it leads the browser of an administrator back (a GET);
//   - the event ONAPPINSTALL, which also has the token of later events;
//   - the form that it opens in a frame if the application has pages.
//
// Without any, it leads the browser to the portal. What it is given is proved by an exchange at the
// server of Bitrix24, which knows whose it is.
func (h *Hook) Install(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the request cannot be read", http.StatusBadRequest)
		return
	}
	s := h.Senders[r.PathValue("name")]
	if s == nil || s.app == nil {
		http.Error(w, "there is no such endpoint with a local application", http.StatusNotFound)
		return
	}
	grant, value := "refresh_token", r.PostForm.Get("auth[refresh_token]")
	switch {
	case r.Form.Get("code") != "":
		grant, value = "authorization_code", r.Form.Get("code")
	case value == "":
		value = r.PostForm.Get("REFRESH_ID")
	}
	if value == "" {
		if r.Method != http.MethodGet {
			http.Error(w, "the request has no tokens", http.StatusBadRequest)
			return
		}
		http.Redirect(w, r, s.app.authorizeURL(s.base.Scheme), http.StatusFound)
		return
	}
	select {
	case h.installing <- struct{}{}:
	default:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "an application is being installed: try again", http.StatusTooManyRequests)
		return
	}
	time.AfterFunc(installPause, func() { <-h.installing })
	o := s.install(context.WithoutCancel(r.Context()), grant, value, r.PostForm.Get("auth[application_token]"))
	logger := h.Logger.With("endpoint", s.endpoint.Name)
	if o.Verdict == store.CutOff {
		o.Err = errNoAnswerInTime
	}
	if o.Verdict != store.Done {
		logger.Warn("the application could not be installed", "err", o.Failure())
		h.page(w, http.StatusBadGateway, "Приложение не подключено: "+h.Russian(o.Failure())+".",
			"The application is not installed: "+h.English(o.Failure())+".")
		return
	}
	logger.Info("the application is installed")
	h.page(w, http.StatusOK, "Приложение подключено: звонки пойдут в портал.",
		"The application is installed: the portal will be told of calls.")
}

// install exchanges what an application was given, and stores the tokens.
func (s *Sender) install(ctx context.Context, grant, value, event string) store.Outcome {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	got, o := s.app.exchange(ctx, grant, value)
	if o.Verdict != store.Done {
		return o
	}
	if got.User, o = s.administrator(ctx, got.Access); o.Verdict != store.Done {
		return o
	}
	if err := s.app.install(ctx, got, event); err != nil {
		return store.Outcome{Verdict: store.Later, Err: err}
	}
	return o
}

// administrator returns whose a token is. It must be an administrator's: anybody of the portal may
// open the address, and offline events are for administrators alone.
func (s *Sender) administrator(ctx context.Context, token string) (id int, o store.Outcome) {
	a := s.once(ctx, request{method: "profile", params: map[string]any{}}, token)
	if a.Verdict != store.Done {
		return 0, a.Outcome
	}
	var profile struct {
		ID      text  `json:"ID"`
		IsAdmin *bool `json:"ADMIN"`
	}
	_ = json.Unmarshal(a.result, &profile) // what cannot be read names nobody
	id, err := strconv.Atoi(string(profile.ID))
	if err != nil || profile.IsAdmin != nil && !*profile.IsAdmin {
		return 0, store.Outcome{Verdict: store.Misconfigured, Err: errNoAdministrator}
	}
	return id, a.Outcome
}

var errNoAnswerInTime = errors.New("Bitrix24 does not answer in time")

var errNoAdministrator = &telephony.Fault{
	Code: telephony.CodePortalInstall, Text: "an administrator of the portal has to install the application",
}

// page says how it went, in Russian and in English.
func (h *Hook) page(w http.ResponseWriter, status int, russian, english string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'")
	w.Header().Set("Referrer-Policy", "no-referrer") // the address has a code
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<!doctype html><html lang=ru><meta charset=utf-8><title>pzbridge</title>"+
		"<p>%s</p><p lang=en>%s</p></html>\n", html.EscapeString(russian), html.EscapeString(english))
}
