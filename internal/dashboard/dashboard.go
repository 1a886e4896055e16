// Package dashboard is the operator's page: in ten seconds it shows whether it is the exchange, the bridge or a CRM.
//
// Everything is rendered on the server and embedded in the program. The page works without JavaScript; with it, it is live. Every route is in one
// list, Handler. Whoever looks shows the operator's token once; a cookie that follows from it is kept.
package dashboard

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// Exchange is the session.
type Exchange interface {
	Connection() telephony.Connection
	Enable(enabled bool)
}

// Outbox is the outbox, as far as it is looked at.
type Outbox interface {
	Writable() error
	Endpoints() ([]outbox.EndpointStatus, error)
	OldestPending(endpoint string) (time.Time, error)
	InUse() int64
	LatestCalls(limit int) ([]string, error)
	Call(callID string, after uint64) (outbox.CallPage, error)
	// Sent gives what an endpoint is sent of an event: the content type, and the body as its format has it.
	Sent(endpoint, eventID string) (contentType string, body []byte, err error)
	Delivery(id string) (outbox.Delivery, []outbox.Attempt, error)
	Redeliver(id string) (outbox.Delivery, error)
	SendTest(ctx context.Context, endpoint string) (eventID string, made outbox.Attempt, err error)
	Connect(enabled bool) error
	// Sessions is the generation of the sessions that are good; EndSessions begins another one, which is kept through restarts.
	Sessions() (uint64, error)
	EndSessions() (uint64, error)
}

// Options says what is shown, and to whom.
type Options struct {
	Exchange Exchange
	Outbox   Outbox
	Stats    *Stats
	Tokens   []string // the operator's; none shows nothing to anybody
	MaxBytes int64    // of the outbox's file
	// BehindProxy trusts the header X-Forwarded-Proto: a proxy in front of the bridge sets it.
	BehindProxy bool
	Version     string
	Logger      *slog.Logger
	WrongToken  func() // counts an attempt to sign in with a wrong token; may be nil
}

// Dashboard shows the pages.
type Dashboard struct {
	opts     Options
	pages    *template.Template
	logins   *rate.Limiter // with a wrong token
	wrong    *repeat.Tally // likewise
	sessions atomic.Uint64 // the generation of those that are good
	watchers chan struct{} // holds one for each page that is watched
	draining chan struct{} // closed when nobody is to wait for news any more
}

//go:embed templates
var templates embed.FS

//go:embed assets
var assets embed.FS

// New checks the options.
func New(opts Options) (*Dashboard, error) {
	if opts.Exchange == nil || opts.Outbox == nil || opts.Stats == nil || opts.Logger == nil || opts.MaxBytes <= 0 {
		return nil, errors.New("dashboard: Options.Exchange, Outbox, Stats, Logger and MaxBytes must be set")
	}
	pages, err := template.New("").Funcs(functions).ParseFS(templates, "templates/*.html")
	if err != nil {
		return nil, err
	}
	d := &Dashboard{
		opts: opts, pages: pages, logins: rate.NewLimiter(1, 5), wrong: repeat.NewTally(opts.Logger), watchers: make(chan struct{}, maxWatchers),
		draining: make(chan struct{}),
	}
	generation, err := opts.Outbox.Sessions()
	d.sessions.Store(generation)
	return d, err
}

// Drain lets go of whoever watches, so that a shutdown does not wait for them.
func (d *Dashboard) Drain() { close(d.draining) }

// Handler serves the pages, and leaves to next what is none of them.
func (d *Dashboard) Handler(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	files, _ := fs.Sub(assets, "assets") // the folder is embedded
	mux.Handle("GET /assets/{file}", http.StripPrefix("/assets/", http.FileServerFS(files)))
	mux.HandleFunc("GET /login", d.loginPage)
	mux.HandleFunc("POST /login", d.login)
	mux.HandleFunc("POST /logout", d.logout)
	mux.Handle("GET /{$}", d.behindToken(d.home))
	mux.Handle("GET /live", d.behindToken(d.live))
	mux.Handle("GET /calls/{id}", d.behindToken(d.call))
	mux.Handle("POST /actions/redeliver", d.behindToken(d.redeliver))
	mux.Handle("POST /actions/test", d.behindToken(d.sendTest))
	mux.Handle("POST /actions/connection", d.behindToken(d.switchConnection))
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern == "" {
			next.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
			"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		// Not no-referrer: a browser then says of a form on this very page that it comes from nowhere, and over plain HTTP it cannot say it in another way.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		guarded.ServeHTTP(w, r)
	})
}

const cookieName = "pzbridge"

// pass is what the cookie holds: it follows from the token and does not tell it, and it is good
// until that token is none any more or somebody signs out.
func (d *Dashboard) pass(token string) string {
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("pzbridge dashboard"))
	mac.Write(binary.BigEndian.AppendUint64(nil, d.sessions.Load()))
	return hex.EncodeToString(mac.Sum(nil))
}

// Knows says whether a request comes from a browser that is signed in.
func (d *Dashboard) Knows(r *http.Request) bool {
	cookie, err := r.Cookie(cookieName)
	return err == nil && slices.ContainsFunc(d.opts.Tokens, func(token string) bool {
		return same(cookie.Value, d.pass(token))
	})
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func (d *Dashboard) behindToken(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case d.Knows(r):
			next(w, r)
		case r.URL.Path == "/live":
			http.Error(w, wordsFor(r)["Sign in again."], http.StatusUnauthorized)
		default:
			http.Redirect(w, r, "/login", http.StatusSeeOther)
		}
	})
}

// overHTTPS says whether the browser reached the bridge by HTTPS.
func (d *Dashboard) overHTTPS(r *http.Request) bool {
	first, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ",") // what the browser spoke; proxies behind the first add theirs
	return r.TLS != nil || d.opts.BehindProxy && strings.EqualFold(strings.TrimSpace(first), "https")
}

func (d *Dashboard) loginPage(w http.ResponseWriter, r *http.Request) {
	d.render(w, r, http.StatusOK, "login", map[string]any{"NoToken": len(d.opts.Tokens) == 0})
}

func (d *Dashboard) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4096)
	token := strings.TrimSpace(r.PostFormValue("token"))
	right := slices.ContainsFunc(d.opts.Tokens, func(known string) bool { return same(token, known) })
	if !right && d.opts.WrongToken != nil {
		d.opts.WrongToken()
	}
	switch {
	case right:
		d.setCookie(w, r, d.pass(token), 30*24*time.Hour)
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case !d.logins.Allow(): // only wrong ones are counted, or anybody could keep the operator out
		d.render(w, r, http.StatusTooManyRequests, "login", map[string]any{"Problem": "Too many attempts. Wait a few seconds."})
	default:
		d.wrong.Happened("somebody tried to open the dashboard with a wrong token", "remote", r.RemoteAddr)
		d.render(w, r, http.StatusUnauthorized, "login", map[string]any{"Problem": "That is not the token of API_TOKEN.", "NoToken": len(d.opts.Tokens) == 0})
	}
}

// logout ends all sessions, those of other browsers too: there is one operator, and a cookie that was stolen is good no longer then. Who is not signed in ends none.
func (d *Dashboard) logout(w http.ResponseWriter, r *http.Request) {
	known := d.Knows(r)
	d.setCookie(w, r, "", -time.Second)
	if known {
		generation, err := d.opts.Outbox.EndSessions()
		if err != nil {
			d.failed(w, r, fmt.Errorf("only this browser is signed out, since that cannot be stored: %w", err))
			return
		}
		d.sessions.Store(generation)
	}
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

func (d *Dashboard) setCookie(w http.ResponseWriter, r *http.Request, value string, life time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: value, Path: "/", MaxAge: int(life.Seconds()), HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: d.overHTTPS(r),
	})
}

// redeliver sends a delivery again and shows its call.
func (d *Dashboard) redeliver(w http.ResponseWriter, r *http.Request) {
	delivery, err := d.opts.Outbox.Redeliver(r.PostFormValue("id"))
	if err != nil {
		d.failed(w, r, err)
		return
	}
	d.opts.Logger.Info("delivery is made again", "event_id", delivery.EventID, "endpoint", delivery.Endpoint, "call_id", delivery.CallID)
	if delivery.CallID == "" {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	back := callPath(delivery.CallID) + "?again=" + url.QueryEscape(delivery.ID)
	if !d.awaitAttempt(r.Context(), delivery) {
		back += "&waits=true"
	}
	http.Redirect(w, r, back, http.StatusSeeOther)
}

// awaitAttempt gives the attempt at what is sent again a moment to end, so that the page can say
// how it did, and says whether it has. An endpoint may be slow, or only be probed.
func (d *Dashboard) awaitAttempt(ctx context.Context, again outbox.Delivery) (made bool) {
	const patience, look = 2 * time.Second, 25 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		now, _, err := d.opts.Outbox.Delivery(again.ID)
		if err == nil && now.Attempts != again.Attempts {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		case <-d.draining:
			return false
		}
	}
}

// sendTest sends an endpoint a test and shows what it said.
func (d *Dashboard) sendTest(w http.ResponseWriter, r *http.Request) {
	name := r.PostFormValue("endpoint")
	_, made, err := d.opts.Outbox.SendTest(r.Context(), name)
	if err != nil {
		d.failed(w, r, err)
		return
	}
	d.render(w, r, http.StatusOK, "test", map[string]any{"Endpoint": name, "Attempt": made, "Taken": made.Status >= 200 && made.Status <= 299})
}

// switchConnection hangs up, or connects again.
func (d *Dashboard) switchConnection(w http.ResponseWriter, r *http.Request) {
	enabled, err := strconv.ParseBool(r.PostFormValue("enabled"))
	if err != nil {
		d.failed(w, r, errors.New("the form does not say whether to switch the connection on or off"))
		return
	}
	if err := d.opts.Outbox.Connect(enabled); err != nil {
		d.failed(w, r, err)
		return
	}
	d.opts.Exchange.Enable(enabled)
	d.opts.Logger.Info("the connection was switched", "enabled", enabled, "by", "dashboard")
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (d *Dashboard) failed(w http.ResponseWriter, r *http.Request, err error) {
	d.render(w, r, http.StatusBadRequest, "failed", map[string]any{"Problem": wordsFor(r).say(err.Error())})
}
