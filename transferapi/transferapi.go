// Package transferapi is the HTTP API that CRMs and operators call: commands to the exchange,
// reading of events and deliveries, redelivery, health and metrics.
//
// Every route of its own stands in one list, API.routes. A caller authenticates with a bearer
// token: a CRM with the token of its endpoint, the operator with the token of the bridge. Every
// error is answered as application/problem+json (RFC 9457).
package transferapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // for the description
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/ratelimit"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"

	"golang.org/x/time/rate"
)

// Exchange carries out commands. Do returns nil when the exchange has carried out the command, else
// a *telephony.RefusedError or one of telephony's errors.
type Exchange interface {
	Do(ctx context.Context, cmd telephony.Command) error
	Connection() telephony.Connection
	// Enable opens the connection, or closes it until the next call with true.
	Enable(enabled bool)
}

// Router receives the answers to routing questions. eventID names the question; if it is empty, the
// answer belongs to the latest question of the call. An empty number declines. Answer returns nil
// if the number has won and the exchange has done the transfer, or if the decline is recorded; else
// it returns telephony.ErrNeverAsked, ErrRouteClosed, ErrCallOver, ErrNotKept, a
// *telephony.DecidedError, or an error of Exchange.Do.
type Router interface {
	Answer(ctx context.Context, callID, eventID, by, to string) error
}

// Policy decides which calls and SMS are allowed. Allow fails with a *telephony.NotAllowedError.
// Transfers do not pass through it; the Router decides about them.
type Policy interface {
	Allow(by string, cmd telephony.Command) error
}

// Outbox is the part of the outbox that concerns it as a whole.
type Outbox interface {
	Writable(ctx context.Context) error // nil if events can be stored
	Endpoints(ctx context.Context) ([]outbox.EndpointStatus, error)
	// Connect stores whether the bridge keeps a connection to the exchange, and who has decided
	// that; it survives restarts.
	Connect(ctx context.Context, enabled bool, by string) error
	// Audit keeps what the operator has done.
	Audit(ctx context.Context, e store.Audit)
	Audits(ctx context.Context, limit int) ([]store.Audit, error)
	// SendTest sends a test event without content to an endpoint, once, and returns the attempt.
	SendTest(ctx context.Context, endpoint string) (eventID string, made store.Attempt, err error)
}

// Backup copies the store of an engine that is a file.
type Backup interface {
	// Backup writes a copy of the file as it stands now; begin gets its size in bytes first.
	Backup(begin func(size int64) io.Writer) error
}

// Options holds what the API serves and who may use it.
type Options struct {
	Exchange Exchange
	Router   Router
	Policy   Policy // nil allows everything
	Outbox   Outbox
	Backup   Backup // nil: the outbox is not a file
	Bridges  Bridges
	// Verdict sums up how the bridge stands in sentences, the worst first and one at least, in the
	// language that a request prefers.
	Verdict func(r *http.Request) ([]Finding, error)
	// Charts gives the charts of a span: hour, day or week.
	Charts func(ctx context.Context, span string) (Charts, error)
	// OthersTransfer means that other bridges may carry transfers out while this one is not
	// connected.
	OthersTransfer bool
	Deliveries     Deliveries
	Events         Events
	Calls          Calls
	Keys           Keys
	Recordings     http.Handler // by signed links; nil: none are kept
	Metrics        http.Handler // for Prometheus
	// CRMs are the senders of the endpoints with a preset, by name.
	CRMs map[string]crm.Checker
	// MetricsPublic serves the metrics without a token; otherwise they need the operator's.
	MetricsPublic bool
	// Tokens maps the name of a bearer, an endpoint or Operator, to its tokens. A bearer has
	// several while its token is being replaced.
	Tokens         map[string][]string
	CommandTimeout time.Duration // limit on one command, including the exchange's answer
	Rate           float64       // requests per second of each bearer, all its tokens together
	// Others are interfaces of other makers that CRMs know, by path. Each authenticates its callers
	// and carries out commands through the API.
	Others     map[string]func(*API) http.Handler
	Logger     *slog.Logger
	WrongToken func() // called for each request with an unknown token; may be nil
}

// Operator is the operator's name in Options.Tokens. No endpoint can have this name.
const Operator = "operator"

// API is the http.Handler of all routes.
type API struct {
	opts         Options
	tokens       map[[sha256.Size]byte]bearer // by SHA-256, so that a lookup's time reveals nothing
	mux          *http.ServeMux
	readSlots    map[string]*readSlots // by the bearer's name
	redeliveries slots                 // one: a request that scans all events, to count or to redeliver them
	backups      slots                 // one: a request that copies the outbox's file
	keyLocks     keyLocks
	wrongTokens  *repeat.Tally // requests with an unknown token
	draining     chan struct{} // closed by Drain; ends every wait for events
}

// New returns the API. It fails if a required option is missing, or if two bearers share a token,
// since the token alone identifies the caller.
func New(opts Options) (*API, error) {
	if opts.Exchange == nil || opts.Router == nil || opts.Outbox == nil || opts.Bridges == nil ||
		opts.Verdict == nil || opts.Charts == nil || opts.Deliveries == nil || opts.Events == nil ||
		opts.Calls == nil || opts.Keys == nil || opts.Metrics == nil || opts.Logger == nil ||
		opts.CommandTimeout <= 0 || opts.Rate <= 0 {
		return nil, errors.New(
			"transferapi: Options.Exchange, Router, Outbox, Bridges, Verdict, Charts, Deliveries, Events, Calls, " +
				"Keys, Metrics, Logger, CommandTimeout and Rate must be set",
		)
	}
	a := &API{
		opts:         opts,
		tokens:       map[[sha256.Size]byte]bearer{},
		mux:          http.NewServeMux(),
		readSlots:    map[string]*readSlots{},
		redeliveries: make(slots, 1),
		backups:      make(slots, 1),
		keyLocks:     keyLocks{keys: map[[32]byte]chan struct{}{}},
		wrongTokens:  repeat.NewTally(opts.Logger),
		draining:     make(chan struct{}),
	}
	for name, tokens := range opts.Tokens {
		a.readSlots[name] = newReadSlots()
		b := bearer{name, rate.NewLimiter(rate.Limit(opts.Rate), max(1, int(opts.Rate)))}
		for _, token := range tokens {
			hash := sha256.Sum256([]byte(token))
			if other, ok := a.tokens[hash]; ok {
				return nil, errors.New("transferapi: " + name + " and " + other.name + " have the same token")
			}
			a.tokens[hash] = b
		}
	}
	for path, open := range opts.Others {
		handler := open(a)
		a.mux.Handle(http.MethodGet+" "+path, handler)
		a.mux.Handle(http.MethodPost+" "+path, handler)
	}
	for _, r := range a.routes() {
		handler := r.handle
		if r.access != public {
			handler = a.authenticated(r.access, handler)
		}
		a.mux.HandleFunc(r.method+" "+r.path, handler)
	}
	return a, nil
}

// access is the authentication that a route requires.
type access int

const (
	public       access = iota // no token
	anyBearer                  // the token of an endpoint or of the operator
	operatorOnly               // the operator's token
)

type route struct {
	method, path string
	access       access
	handle       http.HandlerFunc
}

func (a *API) routes() []route {
	metrics := operatorOnly
	if a.opts.MetricsPublic {
		metrics = public
	}
	return []route{
		{http.MethodPost, "/v1/calls", anyBearer, a.command(readCall, "from", "to")},
		{http.MethodPost, "/v1/transfers", anyBearer, a.command(readTransfer, "call_id", "to")},
		{http.MethodPost, "/v1/sms", anyBearer, a.command(readSMS, "from", "to", "text")},
		{http.MethodGet, "/v1/calls", operatorOnly, a.readHandler(a.findCalls)},
		{http.MethodGet, "/v1/calls/{call_id}", anyBearer, a.readHandler(a.getCall)},
		{http.MethodGet, "/v1/events", anyBearer, a.listEvents},
		{http.MethodGet, "/v1/connection", anyBearer, a.connection},
		{http.MethodPut, "/v1/connection", operatorOnly, a.switchConnection},
		{http.MethodGet, "/v1/deliveries", anyBearer, a.readHandler(a.listDeliveries)},
		{http.MethodGet, "/v1/deliveries/{id}", anyBearer, a.readHandler(a.getDelivery)},
		{http.MethodPost, "/v1/deliveries/{id}/redeliver", operatorOnly, a.redeliver},
		{http.MethodPost, "/v1/redeliver", operatorOnly, a.redeliverAll},
		{http.MethodGet, "/v1/redeliveries", operatorOnly, a.readHandler(a.listRedeliveries)},
		{http.MethodGet, "/v1/redeliveries/{id}", operatorOnly, a.readHandler(a.getRedelivery)},
		{http.MethodGet, "/v1/audit", operatorOnly, a.readHandler(a.listAudits)},
		{http.MethodDelete, "/v1/numbers/{number}", operatorOnly, a.forget},
		{http.MethodGet, "/v1/endpoints", operatorOnly, a.listEndpoints},
		{http.MethodGet, "/v1/bridges", operatorOnly, a.readHandler(a.listBridges)},
		{http.MethodGet, "/v1/verdict", operatorOnly, a.readHandler(a.getVerdict)},
		{http.MethodGet, "/v1/charts", operatorOnly, a.readHandler(a.getCharts)},
		{http.MethodPost, "/v1/endpoints/{name}/test", operatorOnly, a.sendTest},
		{http.MethodPost, "/v1/endpoints/{name}/check", operatorOnly, a.checkEndpoint},
		{http.MethodGet, "/v1/backup", operatorOnly, a.backup},
		{http.MethodGet, "/v1/recordings/{file}", public, a.recording},
		{http.MethodGet, "/healthz", public, a.alive},
		{http.MethodGet, "/readyz", public, a.ready},
		{http.MethodGet, "/metrics", metrics, a.opts.Metrics.ServeHTTP},
		{http.MethodGet, "/openapi.yaml", public, serveDescription},
	}
}

// recording serves the recording of a call.
func (a *API) recording(w http.ResponseWriter, r *http.Request) {
	if a.opts.Recordings == nil {
		problem{Status: http.StatusNotFound, Detail: "No recordings are kept here: see RECORDINGS."}.write(w)
		return
	}
	a.opts.Recordings.ServeHTTP(w, r)
}

// description is the API in OpenAPI 3.1.
//
//go:embed openapi.yaml
var description []byte

func serveDescription(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(description)
}

// ServeHTTP answers one request. An unknown path is answered 404, an unknown method of a known path
// 405, both as a problem.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff") // answers quote parts of requests
	if _, pattern := a.mux.Handler(r); pattern != "" {
		a.mux.ServeHTTP(w, r)
		return
	}
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := a.mux.Handler(other); pattern != "" {
			allowed = append(allowed, method)
		}
	}
	if len(allowed) == 0 {
		problem{Status: http.StatusNotFound, Detail: "There is nothing at this path."}.write(w)
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	problem{
		Status: http.StatusMethodNotAllowed,
		Detail: "This path takes " + strings.Join(allowed, " or ") + ".",
	}.write(w)
}

// Drain answers all requests that wait for events, so that a shutdown does not wait for them. Call
// it once.
func (a *API) Drain() { close(a.draining) }

// bearer is an authenticated caller.
type bearer struct {
	name  string
	limit *rate.Limiter
}

// callerKey is the context key of the caller's name.
type callerKey struct{}

// caller returns the caller's name: an endpoint's, or Operator.
func caller(r *http.Request) string {
	name, _ := r.Context().Value(callerKey{}).(string)
	return name
}

// Knows reports whether a request carries a valid token. It neither counts nor logs a wrong one.
func (a *API) Knows(r *http.Request) bool {
	_, _, known := a.identify(r)
	return known
}

func (a *API) identify(r *http.Request) (token string, b bearer, known bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") {
		return token, bearer{}, false
	}
	b, known = a.bearerOf(token)
	return token, b, known
}

func (a *API) bearerOf(token string) (b bearer, known bool) {
	b, known = a.tokens[sha256.Sum256([]byte(token))]
	return b, known
}

// authenticate returns the bearer of the request's token.
func (a *API) authenticate(r *http.Request) (b bearer, known bool) {
	token, b, known := a.identify(r)
	if !known {
		a.noteWrong(r, token)
	}
	return b, known
}

// noteWrong counts an unknown token, and logs at intervals: either somebody guesses tokens, or a
// CRM still uses a replaced one.
func (a *API) noteWrong(r *http.Request, token string) {
	if token == "" {
		return
	}
	if a.opts.WrongToken != nil {
		a.opts.WrongToken()
	}
	a.wrongTokens.Happened("requests had a wrong token", "remote", r.RemoteAddr)
}

// Bearer returns whose token came with a request, for an interface that has it in a place of its
// own. Wait is how long until the bearer may make another request, 0 if it may make this one.
func (a *API) Bearer(r *http.Request, token string) (name string, wait time.Duration, known bool) {
	b, known := a.bearerOf(token)
	if !known {
		a.noteWrong(r, token)
		return "", 0, false
	}
	return b.name, b.wait(time.Now()), true
}

func (a *API) authenticated(required access, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, known := a.authenticate(r)
		if !known {
			w.Header().Set("WWW-Authenticate", `Bearer realm="pzbridge"`)
			problem{
				Status: http.StatusUnauthorized,
				Detail: "Send the header \"Authorization: Bearer TOKEN\" with a token that the bridge is " +
					"configured with (ENDPOINT_<n>_TOKEN or API_TOKEN).",
			}.write(w)
			return
		}
		if wait := b.wait(time.Now()); wait > 0 {
			setRetryAfter(w, int(math.Ceil(wait.Seconds())))
			problem{
				Status: http.StatusTooManyRequests,
				Detail: "Too many requests with this token: API_RATE is how many a second it may make.",
			}.write(w)
			return
		}
		if required == operatorOnly && b.name != Operator {
			problem{
				Status: http.StatusForbidden,
				Detail: "This is for the operator: send the token of API_TOKEN.",
			}.write(w)
			return
		}
		next(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, b.name)))
	}
}

// wait takes one request from the bearer's rate and returns 0. If the rate is used up, it takes
// nothing and returns how long until a request is free.
func (b bearer) wait(now time.Time) time.Duration {
	return ratelimit.Take(b.limit, now)
}

// problem is an error in the form of RFC 9457. The type is about:blank, so the title is the text of
// the status.
type problem struct {
	Title  string         `json:"title"`
	Status int            `json:"status"`
	Code   telephony.Code `json:"code"` // for programs; if it is empty, titled sets that of the status
	Detail string         `json:"detail"`
	Field  string         `json:"field,omitempty"`  // the request's field that is wrong
	Winner string         `json:"winner,omitempty"` // the endpoint whose answer has decided the call
	Oldest string         `json:"oldest,omitempty"` // the cursor after which no event is missing
}

// problemType is the media type of a problem.
const problemType = "application/problem+json"

// titled returns the problem with its title and its code set.
func (p problem) titled() problem {
	p.Title = http.StatusText(p.Status)
	if p.Code == "" {
		p.Code = statusCodes[p.Status]
	}
	return p
}

func (p problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", problemType)
	writeJSON(w, p.Status, p.titled())
}

func writeJSON(w http.ResponseWriter, status int, body any) { writeBytes(w, status, encodeJSON(body)) }

func encodeJSON(body any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // the answer is not HTML, and people read it
	_ = enc.Encode(body)     // no type of the API's answers can fail to encode
	return b.Bytes()
}

// writeBytes answers with JSON. It drops a write error: the caller has disconnected.
func writeBytes(w http.ResponseWriter, status int, body []byte) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
