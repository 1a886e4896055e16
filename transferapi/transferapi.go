// Package transferapi is the HTTP that CRMs and operators call: commands to the exchange, and how the bridge is.
//
// Every route is in one list, routes. A caller shows its bearer token: a CRM its endpoint's own, the operator the one of the bridge. Whatever
// goes wrong is told as application/problem+json (RFC 9457).
package transferapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// Exchange carries out commands. Do returns nil when the exchange has done it, else a *telephony.RefusedError or one of
// telephony's errors.
type Exchange interface {
	Do(ctx context.Context, cmd telephony.Command) error
	Connection() telephony.Connection
}

// Router takes the answers to the question where a call should go. An empty number declines. Nil means that the number has won and the exchange has done
// the transfer, or that the decline is noted; else it is telephony.ErrNeverAsked, ErrRouteClosed, ErrCallOver, a *telephony.DecidedError, or what an
// Exchange fails with.
type Router interface {
	Answer(ctx context.Context, callID, by, to string) error
}

// Outbox is where events are stored, as a whole.
type Outbox interface {
	Writable() error // nil if events can be stored
	Endpoints() ([]outbox.EndpointStatus, error)
	Backup(begin func(size int64) io.Writer) error
}

// Options says what the API stands in front of, and who may use it.
type Options struct {
	Exchange   Exchange
	Router     Router
	Outbox     Outbox
	Deliveries Deliveries
	// Tokens holds the bearer tokens by the names of their bearers: endpoints, and Operator.
	Tokens         map[string]string
	CommandTimeout time.Duration // how long the exchange may take to answer
	Logger         *slog.Logger
}

// Operator is the name under which the operator's token stands in Options.Tokens. No endpoint can have it.
const Operator = "operator"

// API answers the requests. It is an http.Handler.
type API struct {
	opts   Options
	tokens map[[sha256.Size]byte]string // the bearer's name by the token's hash: looking it up tells nothing about the token
	mux    *http.ServeMux
}

// New gives the API. Two bearers of one token are an error, since nobody could tell who calls.
func New(opts Options) (*API, error) {
	if opts.Exchange == nil || opts.Router == nil || opts.Outbox == nil || opts.Deliveries == nil || opts.Logger == nil || opts.CommandTimeout <= 0 {
		return nil, errors.New("transferapi: Options.Exchange, Router, Outbox, Deliveries, Logger and CommandTimeout must be set")
	}
	a := &API{opts: opts, tokens: map[[sha256.Size]byte]string{}, mux: http.NewServeMux()}
	for name, token := range opts.Tokens {
		hash := sha256.Sum256([]byte(token))
		if other, ok := a.tokens[hash]; ok {
			return nil, errors.New("transferapi: " + name + " and " + other + " have the same token")
		}
		a.tokens[hash] = name
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
	return []route{
		{http.MethodPost, "/v1/calls", bearers, a.command(readCall, "from", "to")},
		{http.MethodPost, "/v1/transfers", bearers, a.command(readTransfer, "call_id", "to")},
		{http.MethodPost, "/v1/sms", bearers, a.command(readSMS, "from", "to", "text")},
		{http.MethodGet, "/v1/connection", bearers, a.connection},
		{http.MethodGet, "/v1/deliveries", bearers, a.listDeliveries},
		{http.MethodGet, "/v1/deliveries/{id}", bearers, a.getDelivery},
		{http.MethodPost, "/v1/deliveries/{id}/redeliver", operatorOnly, a.redeliver},
		{http.MethodPost, "/v1/redeliver", operatorOnly, a.redeliverAll},
		{http.MethodGet, "/v1/endpoints", operatorOnly, a.listEndpoints},
		{http.MethodGet, "/v1/backup", operatorOnly, a.backup},
		{http.MethodGet, "/healthz", anybody, a.alive},
		{http.MethodGet, "/readyz", anybody, a.ready},
	}
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, pattern := a.mux.Handler(r); pattern != "" {
		a.mux.ServeHTTP(w, r)
		return
	}
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost} {
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

// bearer is the context key of who calls.
type bearer struct{}

// caller is the name of who calls: an endpoint's, or Operator.
func caller(r *http.Request) string {
	name, _ := r.Context().Value(bearer{}).(string)
	return name
}

func (a *API) authenticated(who audience, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		name, known := a.tokens[sha256.Sum256([]byte(strings.TrimSpace(token)))]
		if !strings.EqualFold(scheme, "Bearer") || !known {
			w.Header().Set("WWW-Authenticate", `Bearer realm="pzbridge"`)
			problem{
				Status: http.StatusUnauthorized,
				Detail: "Send the header \"Authorization: Bearer TOKEN\" with a token that the bridge is configured with (ENDPOINT_<n>_TOKEN or API_TOKEN).",
			}.write(w)
			return
		}
		if who == operatorOnly && name != Operator {
			problem{Status: http.StatusForbidden, Detail: "This is for the operator: send the token of API_TOKEN."}.write(w)
			return
		}
		next(w, r.WithContext(context.WithValue(r.Context(), bearer{}, name)))
	}
}

// problem is an error as RFC 9457 has it. The type is about:blank, so the title is the status in words.
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Field  string `json:"field,omitempty"`  // which field of the request is wrong
	Winner string `json:"winner,omitempty"` // who has answered before
}

func (p problem) write(w http.ResponseWriter) {
	p.Title = http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	writeJSON(w, p.Status, p)
}

// writeJSON answers with a body. Its error would be that the caller has gone, which nobody can be told.
func writeJSON(w http.ResponseWriter, status int, body any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // it is no HTML, and people read it
	_ = enc.Encode(body)
}
