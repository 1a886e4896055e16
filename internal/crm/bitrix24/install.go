package bitrix24

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// InstallPath is where an application is installed: behind it stands the endpoint's name. A portal
// posts to it that it has the application, and an administrator may open it in a browser.
const InstallPath = "/hooks/bitrix24/{name}/install"

const (
	// installPause is the least time between two tries to install an application from one address:
	// anybody may try, and each asks the server of Bitrix24.
	installPause = time.Second
	// maxInstalling bounds the tries under way, and maxTriers the addresses that are remembered.
	maxInstalling, maxTriers = 8, 1000
)

// installGate bounds the tries to install an application.
type installGate struct {
	underWay chan struct{}
	mu       sync.Mutex
	last     map[string]time.Time // by address
}

// enter reports whether an address may try now. If so, leave is to be called.
func (g *installGate) enter(address string, now time.Time) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.last, func(_ string, at time.Time) bool { return now.Sub(at).Abs() >= installPause })
	if _, isKnown := g.last[host]; isKnown || len(g.last) >= maxTriers {
		return false
	}
	select {
	case g.underWay <- struct{}{}:
		g.last[host] = now
		return true
	default:
		return false
	}
}

func (g *installGate) leave() { <-g.underWay }

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
	grant, value := grantOf(r)
	switch {
	case value == "" && r.Method == http.MethodGet:
		http.Redirect(w, r, s.app.authorizeURL(s.base.Scheme), http.StatusFound)
		return
	case value == "":
		http.Error(w, "the request has no tokens", http.StatusBadRequest)
		return
	case !h.installing.enter(r.RemoteAddr, time.Now()):
		w.Header().Set("Retry-After", "1")
		http.Error(w, "an application is being installed: try again", http.StatusTooManyRequests)
		return
	}
	defer h.installing.leave()
	o := s.install(context.WithoutCancel(r.Context()), grant, value, r.PostForm.Get("auth[application_token]"))
	logger := h.Logger.With("endpoint", s.endpoint.Name)
	switch o.Verdict {
	case store.Done:
		logger.Info("the application is installed")
		h.page(w, http.StatusOK, "Приложение подключено: звонки пойдут в портал.",
			"The application is installed: the portal will be told of calls.")
		return
	case store.Later: // of the outbox, of which a stranger is not to read
		h.page(w, http.StatusServiceUnavailable, "Не получилось: почему — в журнале моста. Попробуйте ещё раз.",
			"It did not work: the log of the bridge says why. Try again.")
	default:
		h.page(w, http.StatusBadGateway, "Не получилось: "+h.Russian(o.Failure())+".",
			"It did not work: "+h.English(o.Failure())+".")
	}
	logger.Warn("the application could not be installed", "err", o.Failure())
}

// grantOf returns what a request has for an exchange; value is "" if it has nothing.
func grantOf(r *http.Request) (grant, value string) {
	if code := r.Form.Get("code"); code != "" {
		return "authorization_code", code
	}
	return "refresh_token", cmp.Or(r.PostForm.Get("auth[refresh_token]"), r.PostForm.Get("REFRESH_ID"))
}

// install exchanges what an application was given, and stores the tokens.
func (s *Sender) install(ctx context.Context, grant, value, event string) store.Outcome {
	limited, cancel := context.WithTimeout(ctx, 2*exchangeTime) // for two requests
	defer cancel()
	got, o := s.app.exchange(limited, grant, value)
	if o.Verdict != store.Done {
		return o
	}
	if got.User, o = s.administrator(limited, got.Access); o.Verdict != store.Done {
		if o.Verdict == store.CutOff || errors.Is(o.Err, errBusy) {
			return store.Outcome{Verdict: store.Again, Err: errSlowPortal}
		}
		return o
	}
	if err := s.app.install(ctx, got, event); err != nil {
		return notKept(err)
	}
	return o
}

var errSlowPortal = &telephony.Fault{Code: telephony.CodePortalOAuth, Text: "the portal does not answer in time"}

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

var errNoAdministrator = &telephony.Fault{
	Code: telephony.CodePortalAdmin, Text: "an administrator of the portal has to install the application",
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
