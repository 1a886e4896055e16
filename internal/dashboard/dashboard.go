// Package dashboard is the operator's web page. It shows at a glance whether a problem lies with
// the exchange, the bridge or a CRM.
//
// The server renders all pages; templates and assets are embedded in the program. The pages work
// without JavaScript; with it, the overview updates itself. Every route stands in one list,
// Dashboard.Handler. The operator signs in with the API token; the browser then keeps a cookie that
// is derived from the token.
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
	"pzbridge/outbox/store"
)

// Exchange is the session with the exchange.
type Exchange interface {
	Connection() telephony.Connection
	Enable(enabled bool)
}

// Outbox is the part of the outbox that the pages show and change.
type Outbox interface {
	Writable(ctx context.Context) error
	Endpoints(ctx context.Context) ([]outbox.EndpointStatus, error)
	OldestPending(ctx context.Context, endpoint string) (time.Time, error)
	InUse(ctx context.Context) (int64, error)
	LatestCalls(ctx context.Context, limit int) ([]string, error)
	Call(ctx context.Context, callID string, after uint64) (store.CallPage, error)
	// Sent returns the webhook of an event in the endpoint's format: content type and body.
	Sent(ctx context.Context, endpoint, eventID string) (contentType string, body []byte, err error)
	Delivery(ctx context.Context, id string) (store.DeliveryView, []store.Attempt, error)
	Redeliver(ctx context.Context, id string) (store.DeliveryView, error)
	SendTest(ctx context.Context, endpoint string) (eventID string, made store.Attempt, err error)
	Connect(ctx context.Context, enabled bool, by string) error
	// Sessions returns the generation of the valid sessions. EndSessions stores the next generation
	// and returns it; it survives restarts.
	Sessions(ctx context.Context) (uint64, error)
	EndSessions(ctx context.Context) (uint64, error)
}

// Options holds what the dashboard shows and who may see it.
type Options struct {
	Exchange Exchange
	Outbox   Outbox
	Stats    *Stats
	Tokens   []string // the operator's; without one, sign-in is impossible
	MaxBytes int64    // the limit of the outbox's file
	// BehindProxy trusts the header X-Forwarded-Proto, which a proxy in front of the bridge sets.
	BehindProxy bool
	Version     string
	Logger      *slog.Logger
	WrongToken  func() // called for each sign-in with a wrong token; may be nil
}

// Dashboard serves the pages.
type Dashboard struct {
	opts              Options
	pages             *template.Template
	wrongLogins       *rate.Limiter // limits sign-ins with a wrong token
	wrongTokens       *repeat.Tally // logs them
	sessionGeneration atomic.Uint64 // of the valid sessions
	watchers          chan struct{} // a semaphore of the live pages
	draining          chan struct{} // closed by Drain; ends every live page
}

//go:embed templates
var templates embed.FS

//go:embed assets
var assets embed.FS

// New returns the dashboard. It fails if a required option is missing, or if the generation of the
// sessions cannot be read.
func New(opts Options) (*Dashboard, error) {
	if opts.Exchange == nil || opts.Outbox == nil || opts.Stats == nil || opts.Logger == nil || opts.MaxBytes <= 0 {
		return nil, errors.New("dashboard: Options.Exchange, Outbox, Stats, Logger and MaxBytes must be set")
	}
	pages, err := template.New("").Funcs(templateFuncs).ParseFS(templates, "templates/*.html")
	if err != nil {
		return nil, err
	}
	d := &Dashboard{
		opts:        opts,
		pages:       pages,
		wrongLogins: rate.NewLimiter(1, 5),
		wrongTokens: repeat.NewTally(opts.Logger),
		watchers:    make(chan struct{}, maxWatchers),
		draining:    make(chan struct{}),
	}
	generation, err := opts.Outbox.Sessions(context.Background())
	if err != nil {
		return nil, err
	}
	d.sessionGeneration.Store(generation)
	return d, nil
}

// Drain ends the responses of all live pages, so that a shutdown does not wait for them. Call it
// once.
func (d *Dashboard) Drain() { close(d.draining) }

// Handler serves the pages and passes every other request to next. It sets the security headers and
// refuses cross-origin changes.
func (d *Dashboard) Handler(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	files, _ := fs.Sub(assets, "assets") // the folder is embedded
	mux.Handle("GET /assets/{file}", http.StripPrefix("/assets/", http.FileServerFS(files)))
	mux.HandleFunc("GET /login", d.loginPage)
	mux.HandleFunc("POST /login", d.login)
	mux.HandleFunc("POST /logout", d.logout)
	mux.Handle("GET /{$}", d.requireSession(d.home))
	mux.Handle("GET /live", d.requireSession(d.live))
	mux.Handle("GET /calls/{id}", d.requireSession(d.call))
	mux.Handle("POST /actions/redeliver", d.requireSession(d.redeliver))
	mux.Handle("POST /actions/test", d.requireSession(d.sendTest))
	mux.Handle("POST /actions/connection", d.requireSession(d.switchConnection))
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern == "" {
			next.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy",
			"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
				"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		// With no-referrer, a browser sends "Origin: null" for a form of this very page. Over plain
		// HTTP it sends no Sec-Fetch-Site either, so the form would be refused as cross-origin.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		guarded.ServeHTTP(w, r)
	})
}

const cookieName = "pzbridge"

// cookieValue returns the value of the session cookie: an HMAC with the token as its key, which
// does not reveal the token. It is valid until the token is removed or the operator signs out.
func (d *Dashboard) cookieValue(token string) string {
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("pzbridge dashboard"))
	mac.Write(binary.BigEndian.AppendUint64(nil, d.sessionGeneration.Load()))
	return hex.EncodeToString(mac.Sum(nil))
}

// Knows reports whether a request comes from a signed-in browser.
func (d *Dashboard) Knows(r *http.Request) bool {
	cookie, err := r.Cookie(cookieName)
	return err == nil && slices.ContainsFunc(d.opts.Tokens, func(token string) bool {
		return equalSecrets(cookie.Value, d.cookieValue(token))
	})
}

func equalSecrets(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func (d *Dashboard) requireSession(next http.HandlerFunc) http.Handler {
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

// overHTTPS reports whether the browser's connection is HTTPS, also through a trusted proxy.
func (d *Dashboard) overHTTPS(r *http.Request) bool {
	// The first value is the browser's protocol; further proxies append theirs.
	first, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ",")
	return r.TLS != nil || d.opts.BehindProxy && strings.EqualFold(strings.TrimSpace(first), "https")
}

func (d *Dashboard) loginPage(w http.ResponseWriter, r *http.Request) {
	d.render(w, r, http.StatusOK, "login", map[string]any{"NoToken": len(d.opts.Tokens) == 0})
}

func (d *Dashboard) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4096)
	token := strings.TrimSpace(r.PostFormValue("token"))
	valid := slices.ContainsFunc(d.opts.Tokens, func(known string) bool { return equalSecrets(token, known) })
	if !valid && d.opts.WrongToken != nil {
		d.opts.WrongToken()
	}
	switch {
	case valid:
		d.setCookie(w, r, d.cookieValue(token), 30*24*time.Hour)
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case !d.wrongLogins.Allow(): // limits wrong tokens only, so that a stranger cannot lock the operator out
		d.render(w, r, http.StatusTooManyRequests, "login",
			map[string]any{"Problem": "Too many attempts. Wait a few seconds."})
	default:
		d.wrongTokens.Happened("somebody tried to open the dashboard with a wrong token", "remote", r.RemoteAddr)
		d.render(w, r, http.StatusUnauthorized, "login",
			map[string]any{"Problem": "That is not the token of API_TOKEN.", "NoToken": len(d.opts.Tokens) == 0})
	}
}

// logout ends the sessions of all browsers: there is one operator, and a stolen cookie becomes
// invalid too. A request without a valid session ends none.
func (d *Dashboard) logout(w http.ResponseWriter, r *http.Request) {
	known := d.Knows(r)
	d.setCookie(w, r, "", -time.Second)
	if known {
		generation, err := d.opts.Outbox.EndSessions(r.Context())
		if err != nil {
			t := wordsFor(r)
			d.renderProblem(w, r, t[notSignedOut]+": "+t.explain(err))
			return
		}
		d.sessionGeneration.Store(generation)
	}
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

func (d *Dashboard) setCookie(w http.ResponseWriter, r *http.Request, value string, life time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name:     cookieName,
		Value:    value,
		Path:     "/",
		MaxAge:   int(life.Seconds()),
		HttpOnly: true,
		SameSite: http.SameSiteStrictMode,
		Secure:   d.overHTTPS(r),
	})
}

// redeliver queues a delivery again and redirects to the page of its call.
func (d *Dashboard) redeliver(w http.ResponseWriter, r *http.Request) {
	delivery, err := d.opts.Outbox.Redeliver(r.Context(), r.PostFormValue("id"))
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	d.opts.Logger.Info("delivery is made again",
		"event_id", delivery.EventID, "endpoint", delivery.Endpoint, "call_id", delivery.CallID)
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

// awaitAttempt waits up to 2 s until the attempt at a redelivery has ended, so that the page can
// show its outcome. It returns false if it has not ended by then: the endpoint may be slow, or
// failing and only probed.
func (d *Dashboard) awaitAttempt(ctx context.Context, again store.DeliveryView) (made bool) {
	const maxWait, interval = 2 * time.Second, 25 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		now, _, err := d.opts.Outbox.Delivery(ctx, again.ID)
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

// sendTest sends a test event to an endpoint and shows the attempt with its response.
func (d *Dashboard) sendTest(w http.ResponseWriter, r *http.Request) {
	name := r.PostFormValue("endpoint")
	_, made, err := d.opts.Outbox.SendTest(r.Context(), name)
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	d.render(w, r, http.StatusOK, "test",
		map[string]any{"Endpoint": name, "Attempt": made, "Taken": made.Status >= 200 && made.Status <= 299})
}

// switchConnection closes or opens the connection to the exchange. The choice is stored first and
// survives restarts.
func (d *Dashboard) switchConnection(w http.ResponseWriter, r *http.Request) {
	enabled, err := strconv.ParseBool(r.PostFormValue("enabled"))
	if err != nil {
		d.renderProblem(w, r, wordsFor(r)[badSwitch])
		return
	}
	if err := d.opts.Outbox.Connect(r.Context(), enabled, "dashboard"); err != nil {
		d.renderError(w, r, err)
		return
	}
	d.opts.Exchange.Enable(enabled)
	d.opts.Logger.Info("the connection was switched", "enabled", enabled, "by", "dashboard")
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (d *Dashboard) renderError(w http.ResponseWriter, r *http.Request, err error) {
	d.renderProblem(w, r, wordsFor(r).explain(err))
}

func (d *Dashboard) renderProblem(w http.ResponseWriter, r *http.Request, text string) {
	d.render(w, r, http.StatusBadRequest, "failed", map[string]any{"Problem": text})
}
