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
	"embed"
	"errors"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
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
	FindCalls(ctx context.Context, f outbox.CallFilter) (outbox.FoundCalls, error)
	CallHead(ctx context.Context, callID string) (store.CallHead, error)
	Call(ctx context.Context, callID string, after uint64) (store.CallPage, error)
	// Sent returns the webhook of an event in the endpoint's format: content type and body.
	Sent(ctx context.Context, endpoint, eventID string) (contentType string, body []byte, err error)
	Deliveries(ctx context.Context, q store.DeliveryQuery) (store.DeliveryPage, error)
	Delivery(ctx context.Context, id string) (store.DeliveryView, []store.Attempt, error)
	Redeliver(ctx context.Context, id string) (store.DeliveryView, error)
	RedeliverAll(ctx context.Context, r store.Redelivery) (number uint32, count int, err error)
	Redelivery(ctx context.Context, number uint32) (store.RedeliveryState, error)
	Redeliveries(ctx context.Context, limit int) ([]store.RedeliveryState, error)
	SendTest(ctx context.Context, endpoint string) (eventID string, made store.Attempt, err error)
	Connect(ctx context.Context, enabled bool, by string) error
	Paused(ctx context.Context) (outbox.Pause, error)
	// Audit keeps what the operator has done, and Audits returns it, the latest first.
	Audit(ctx context.Context, e store.Audit)
	Audits(ctx context.Context, limit int) ([]store.Audit, error)
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
	// Headers returns the headers of the webhooks at an endpoint, without secrets, and nil for one
	// that is told otherwise. May be nil: then they are not known.
	Headers  func(endpoint string) http.Header
	Tokens   []string // the operator's; without one, sign-in is impossible
	MaxBytes int64    // the limit of the outbox's file
	// BehindProxy trusts the headers X-Forwarded-Proto and X-Forwarded-Prefix, which a proxy in
	// front of the bridge sets.
	BehindProxy bool
	Version     string
	// Bridge is the name of this bridge, and Bridges lists all that share the outbox. Bridge is
	// empty if the outbox is a file, which no other bridge shares.
	Bridge     string
	Bridges    Bridges
	Logger     *slog.Logger
	WrongToken func() // called for each sign-in with a wrong token; may be nil
}

// Dashboard serves the pages.
type Dashboard struct {
	opts         Options
	pages        map[string]*template.Template // by language
	wrongLogins  *rate.Limiter                 // limits sign-ins with a wrong token
	wrongTokens  *repeat.Tally                 // logs them
	generation   generation                    // of the valid sessions
	watchers     chan struct{}                 // a semaphore of the live pages
	redelivering chan struct{}                 // a semaphore: one redelivery of many is chosen at a time
	running      context.Context               // ends with Drain, and with it every live page
	drain        context.CancelFunc
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
	if opts.Bridge != "" && opts.Bridges == nil {
		return nil, errors.New("dashboard: Options.Bridges must be set with Options.Bridge")
	}
	if opts.Headers == nil {
		opts.Headers = func(string) http.Header { return http.Header{} }
	}
	pages, err := newPages()
	if err != nil {
		return nil, err
	}
	d := &Dashboard{
		opts:         opts,
		pages:        pages,
		wrongLogins:  rate.NewLimiter(1, 5),
		wrongTokens:  repeat.NewTally(opts.Logger),
		watchers:     make(chan struct{}, maxWatchers),
		redelivering: make(chan struct{}, 1),
	}
	d.running, d.drain = context.WithCancel(context.Background())
	generation, err := opts.Outbox.Sessions(context.Background())
	if err != nil {
		return nil, err
	}
	d.generation.set(generation)
	return d, nil
}

// Drain ends the responses of all live pages, so that a shutdown does not wait for them.
func (d *Dashboard) Drain() { d.drain() }

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
	mux.Handle("GET /live", d.live("overview", d.liveOverview))
	mux.Handle("GET /calls", d.requireSession(d.calls))
	mux.Handle("GET /calls/{id}", d.requireSession(d.call))
	mux.Handle("GET /calls/{id}/live", d.live("callparts", d.liveCall))
	mux.Handle("GET /deliveries", d.requireSession(d.deliveries))
	mux.Handle("GET /redeliveries/new", d.requireSession(d.choose))
	mux.Handle("POST /redeliveries", d.requireSession(d.redeliverMany))
	mux.Handle("GET /redeliveries/{number}", d.requireSession(d.redelivery))
	mux.Handle("GET /redeliveries/{number}/live", d.live("progress", d.liveRedelivery))
	mux.Handle("GET /charts", d.requireSession(d.charts))
	mux.Handle("GET /audit", d.requireSession(d.audit))
	mux.Handle("GET /connection", d.requireSession(d.connection))
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
