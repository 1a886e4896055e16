// Package transferapi is the HTTP that CRMs and operators call: commands to the exchange, and how the bridge is.
//
// Every route is in one list, routes. A caller shows its bearer token: a CRM its endpoint's own, the operator the one of the bridge. Whatever
// goes wrong is told as application/problem+json (RFC 9457).
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

	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"

	"golang.org/x/time/rate"
)

// Exchange carries out commands. Do returns nil when the exchange has done it, else a *telephony.RefusedError or one of
// telephony's errors.
type Exchange interface {
	Do(ctx context.Context, cmd telephony.Command) error
	Connection() telephony.Connection
	// Enable connects, or hangs up until it is called again.
	Enable(enabled bool)
}

// Router takes the answers to the question where a call should go: that of an event, or the latest where its ID is empty. An empty number declines. Nil means
// that the number has won and the exchange has done the transfer, or that the decline is noted; else it is telephony.ErrNeverAsked, ErrRouteClosed,
// ErrCallOver, ErrNotKept, a *telephony.DecidedError, or what an Exchange fails with.
type Router interface {
	Answer(ctx context.Context, callID, eventID, by, to string) error
}

// Policy says which calls and SMS are allowed. Allow fails with a *telephony.NotAllowedError.
// Transfers are the Router's to judge.
type Policy interface {
	Allow(by string, cmd telephony.Command) error
}

// Outbox is where events are stored, as a whole.
type Outbox interface {
	Writable() error // nil if events can be stored
	Endpoints() ([]outbox.EndpointStatus, error)
	Backup(begin func(size int64) io.Writer) error
	// Connect keeps whether there is to be a connection to the exchange, through restarts.
	Connect(enabled bool) error
	// SendTest sends an endpoint an event that says nothing, and tells how that went.
	SendTest(ctx context.Context, endpoint string) (eventID string, made outbox.Attempt, err error)
}

// Options says what the API stands in front of, and who may use it.
type Options struct {
	Exchange   Exchange
	Router     Router
	Policy     Policy // may be nil: everything is allowed
	Outbox     Outbox
	Deliveries Deliveries
	Events     Events
	Keys       Keys
	Metrics    http.Handler // for Prometheus
	// MetricsPublic shows them to whoever asks; otherwise they are the operator's.
	MetricsPublic bool
	// Tokens holds the bearer tokens by the names of their bearers: endpoints, and Operator. One
	// may have several, as while its token is being changed.
	Tokens         map[string][]string
	CommandTimeout time.Duration // how long the exchange may take to answer
	Rate           float64       // requests a second of each token
	Logger         *slog.Logger
	WrongToken     func() // counts a request with a token that is none; may be nil
}

// Operator is the name under which the operator's token stands in Options.Tokens. No endpoint can have it.
const Operator = "operator"

// API answers the requests. It is an http.Handler.
type API struct {
	opts    Options
	tokens  map[[sha256.Size]byte]bearer // by the token's hash: looking it up tells nothing about the token
	mux     *http.ServeMux
	readers map[string]*reader // by the bearer's name
	// redeliveries is held by the one who goes through all events, to count or to send them again.
	redeliveries places
	// backups is held by the one who takes a copy of the file.
	backups  places
	busy     busy
	wrong    *repeat.Tally // requests with a token that is none
	draining chan struct{} // closed when nobody is to wait for events any more
}

// New gives the API. Two bearers of one token are an error, since nobody could tell who calls.
func New(opts Options) (*API, error) {
	if opts.Exchange == nil || opts.Router == nil || opts.Outbox == nil || opts.Deliveries == nil || opts.Events == nil || opts.Keys == nil || opts.Metrics == nil ||
		opts.Logger == nil || opts.CommandTimeout <= 0 || opts.Rate <= 0 {
		return nil, errors.New("transferapi: Options.Exchange, Router, Outbox, Deliveries, Events, Keys, Metrics, Logger, CommandTimeout and Rate must be set")
	}
	a := &API{
		opts: opts, tokens: map[[sha256.Size]byte]bearer{}, mux: http.NewServeMux(), readers: map[string]*reader{}, redeliveries: make(places, 1), backups: make(places, 1),
		busy: busy{keys: map[[32]byte]chan struct{}{}}, wrong: repeat.NewTally(opts.Logger), draining: make(chan struct{}),
	}
	for name, tokens := range opts.Tokens {
		a.readers[name] = newReader()
		b := bearer{name, rate.NewLimiter(rate.Limit(opts.Rate), max(1, int(opts.Rate)))}
		for _, token := range tokens {
			hash := sha256.Sum256([]byte(token))
			if other, ok := a.tokens[hash]; ok {
				return nil, errors.New("transferapi: " + name + " and " + other.name + " have the same token")
			}
			a.tokens[hash] = b
		}
	}
	for _, r := range a.routes() {
		handler := r.handle
		if r.who != anybody {
			handler = a.authenticated(r.who, handler)
		}
		a.mux.HandleFunc(r.method+" "+r.path, handler)
	}
	return a, nil
}

// audience says who may use a route.
type audience int

const (
	anybody      audience = iota // without a token
	bearers                      // endpoints and the operator
	operatorOnly                 // the operator
)

type route struct {
	method, path string
	who          audience
	handle       http.HandlerFunc
}

func (a *API) routes() []route {
	metrics := operatorOnly
	if a.opts.MetricsPublic {
		metrics = anybody
	}
	return []route{
		{http.MethodPost, "/v1/calls", bearers, a.command(readCall, "from", "to")},
		{http.MethodPost, "/v1/transfers", bearers, a.command(readTransfer, "call_id", "to")},
		{http.MethodPost, "/v1/sms", bearers, a.command(readSMS, "from", "to", "text")},
		{http.MethodGet, "/v1/calls/{call_id}", bearers, a.reading(a.getCall)},
		{http.MethodGet, "/v1/events", bearers, a.listEvents},
		{http.MethodGet, "/v1/connection", bearers, a.connection},
		{http.MethodPut, "/v1/connection", operatorOnly, a.switchConnection},
		{http.MethodGet, "/v1/deliveries", bearers, a.reading(a.listDeliveries)},
		{http.MethodGet, "/v1/deliveries/{id}", bearers, a.reading(a.getDelivery)},
		{http.MethodPost, "/v1/deliveries/{id}/redeliver", operatorOnly, a.redeliver},
		{http.MethodPost, "/v1/redeliver", operatorOnly, a.redeliverAll},
		{http.MethodGet, "/v1/endpoints", operatorOnly, a.listEndpoints},
		{http.MethodPost, "/v1/endpoints/{name}/test", operatorOnly, a.sendTest},
		{http.MethodGet, "/v1/backup", operatorOnly, a.backup},
		{http.MethodGet, "/healthz", anybody, a.alive},
		{http.MethodGet, "/readyz", anybody, a.ready},
		{http.MethodGet, "/metrics", metrics, a.opts.Metrics.ServeHTTP},
		{http.MethodGet, "/openapi.yaml", anybody, describe},
	}
}

// description is what the API is, for programs: OpenAPI 3.1.
//
//go:embed openapi.yaml
var description []byte

func describe(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(description)
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff") // a caller chooses some of what is in an answer
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
	problem{Status: http.StatusMethodNotAllowed, Detail: "This path takes " + strings.Join(allowed, " or ") + "."}.write(w)
}

// Drain answers whoever waits for events, so that a shutdown does not wait for them.
func (a *API) Drain() { close(a.draining) }

// bearer is who may call.
type bearer struct {
	name  string
	limit *rate.Limiter
}

// callerKey is the context key of the name of who calls.
type callerKey struct{}

// caller is the name of who calls: an endpoint's, or Operator.
func caller(r *http.Request) string {
	name, _ := r.Context().Value(callerKey{}).(string)
	return name
}

// Knows says whether a request has a token, without counting it.
func (a *API) Knows(r *http.Request) bool {
	_, _, known := a.lookUp(r)
	return known
}

func (a *API) lookUp(r *http.Request) (token string, b bearer, known bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") {
		return token, bearer{}, false
	}
	b, known = a.tokens[sha256.Sum256([]byte(token))]
	return token, b, known
}

// bearer says who calls, by the token. A token that is none is counted, and told of now and then: somebody may be guessing, or has not been told of a new one.
func (a *API) bearer(r *http.Request) (b bearer, known bool) {
	token, b, known := a.lookUp(r)
	if !known && token != "" {
		if a.opts.WrongToken != nil {
			a.opts.WrongToken()
		}
		a.wrong.Happened("requests had a wrong token", "remote", r.RemoteAddr)
	}
	return b, known
}

func (a *API) authenticated(who audience, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, known := a.bearer(r)
		if !known {
			w.Header().Set("WWW-Authenticate", `Bearer realm="pzbridge"`)
			problem{
				Status: http.StatusUnauthorized,
				Detail: "Send the header \"Authorization: Bearer TOKEN\" with a token that the bridge is configured with (ENDPOINT_<n>_TOKEN or API_TOKEN).",
			}.write(w)
			return
		}
		if wait := b.wait(time.Now()); wait > 0 {
			setRetryAfter(w, int(math.Ceil(wait.Seconds())))
			problem{Status: http.StatusTooManyRequests, Detail: "Too many requests with this token: API_RATE is how many a second it may make."}.write(w)
			return
		}
		if who == operatorOnly && b.name != Operator {
			problem{Status: http.StatusForbidden, Detail: "This is for the operator: send the token of API_TOKEN."}.write(w)
			return
		}
		next(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, b.name)))
	}
}

// wait takes the right to one request, or says how long it takes to get it.
func (b bearer) wait(now time.Time) time.Duration {
	r := b.limit.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// problem is an error as RFC 9457 has it. The type is about:blank, so the title is the status in words.
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Field  string `json:"field,omitempty"`  // which field of the request is wrong
	Winner string `json:"winner,omitempty"` // who has answered before
	Oldest string `json:"oldest,omitempty"` // the cursor from which on nothing is missing
}

// problemType is its media type.
const problemType = "application/problem+json"

// titled gives the problem with its status in words.
func (p problem) titled() problem {
	p.Title = http.StatusText(p.Status)
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
	enc.SetEscapeHTML(false) // it is no HTML, and people read it
	_ = enc.Encode(body)     // what the API answers with can be encoded
	return b.Bytes()
}

// writeBytes answers with JSON. Its error would be that the caller has gone, which nobody can be told.
func writeBytes(w http.ResponseWriter, status int, body []byte) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
