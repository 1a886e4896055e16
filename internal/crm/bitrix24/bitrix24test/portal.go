// Package bitrix24test has a fake Bitrix24 portal for tests and the demo: the REST methods that a
// PBX calls through an inbound webhook or as a local application, the authorization server of the
// latter, and the click on a number, which the portal reports to the PBX. It behaves as Bitrix24's
// documentation says and its source does, lists what a client did against them, and has switches
// for what goes wrong with a portal.
package bitrix24test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// webhookUser is the user who made the webhook.
	webhookUser = 1
	// drainRate is how many requests leave the bucket in a second.
	drainRate = 2
	// pageSize is the number of rows on a page of a list.
	pageSize = 50
)

// Portal is a portal with one inbound webhook, and with a local application once Install has made
// one. It is an http.Handler for /rest/.
type Portal struct {
	// Now is the portal's clock, whose location is the server's time zone. It and the other
	// exported fields may be replaced before the first request.
	Now func() time.Time
	// Domain is the portal's address in the events that it sends.
	Domain string
	// Endpoint is the address of the REST interface in what an application is told; empty is
	// https://, Domain, and /rest/.
	Endpoint string
	// ServerDomain is the address of the authorization server in what an application is told.
	ServerDomain string
	// Burst is how many requests fit into the portal's leaky bucket, which drains 2 a second.
	Burst int

	mu       sync.Mutex
	code     string
	switches switches
	level    float64 // of the bucket, at the time filled
	filled   time.Time
	serial   int // the last identifier that was given to anything

	users      []User
	clients    []client
	calls      []*Call
	statistics []row
	uploads    map[string]*Call // by token
	comments   []Comment

	app      *application // nil before the first Install
	grants   []*grant
	codes    []*code
	bindings []binding
	offline  []*offlineEvent

	requests []Request
	arrived  chan struct{} // closed and replaced when a request arrives
	faults   []string

	tokenRequests []TokenRequest
	tokenArrived  chan struct{} // as arrived
}

// New makes a portal whose webhook has this code. Its users are a manager without an extension, the
// employees 101 to 103, and a former one.
func New(code string) *Portal {
	return &Portal{
		Now: time.Now, Domain: "firm.bitrix24.ru", ServerDomain: "oauth.bitrix24.tech", Burst: 50,
		code: code, serial: 1000, uploads: map[string]*Call{},
		arrived: make(chan struct{}), tokenArrived: make(chan struct{}),
		users: []User{
			{ID: webhookUser, Name: "Olga", LastName: "Orlova", Email: "olga@firm.example"},
			{ID: 15, Name: "Anna", LastName: "Antonova", Email: "anna@firm.example", Extension: "101"},
			{ID: 16, Name: "Boris", LastName: "Belov", Email: "boris@firm.example", Extension: "102"},
			{ID: 17, Name: "Vera", LastName: "Volkova", Email: "vera@firm.example", Extension: "103"},
			{ID: 18, Name: "Gleb", LastName: "Gusev", Email: "gleb@firm.example", Extension: "104", Inactive: true},
		},
	}
}

// Path returns the path of the webhook, which follows the address of the server.
func (p *Portal) Path() string {
	return fmt.Sprintf("/rest/%d/%s/", webhookUser, p.code)
}

// Request is a request that came, or a sub-call of a batch. The sub-calls follow the batch, with
// the status that they would have had by themselves.
type Request struct {
	Time    time.Time
	Method  string         // as documented; "upload" is the second step of attachRecord
	Command string         // the name of a sub-call in its batch, or its index there; else empty
	Params  map[string]any // the names are in upper case, the numbers are json.Number
	Token   string         // the access token of an application; empty for the webhook
	Status  int
	Lost    bool // processed, but not answered
}

// Requests returns the requests in order of arrival, and a channel that closes when the next one
// arrives.
func (p *Portal) Requests() ([]Request, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests), p.arrived
}

// Faults returns what the client did against the documentation, one sentence each.
func (p *Portal) Faults() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.faults)
}

func (p *Portal) fault(format string, args ...any) {
	p.faults = append(p.faults, fmt.Sprintf(format, args...))
}

// answer is what the portal answers.
type answer struct {
	status   int
	body     map[string]any
	commands []Request // the sub-calls of a batch
}

func done(result any) answer {
	return answer{status: http.StatusOK, body: map[string]any{"result": result}}
}

func refused(status int, code, text string) answer {
	return answer{status: status, body: map[string]any{"error": code, "error_description": text}}
}

// invalid refuses what a method's own validation does not accept: its error has no code.
func invalid(text string) answer {
	return refused(http.StatusBadRequest, "", text)
}

// method is a method of the REST interface, with the scope that it needs; empty is none.
type method struct {
	name, scope string
	handle      func(*Portal, query) answer
}

var methods = []method{
	{"telephony.externalCall.register", "telephony", (*Portal).register},
	{"telephony.externalCall.show", "telephony", (*Portal).show},
	{"telephony.externalCall.hide", "telephony", (*Portal).hide},
	{"telephony.externalCall.finish", "telephony", (*Portal).finish},
	{"telephony.externalCall.attachRecord", "telephony", (*Portal).attachRecord},
	{"telephony.externalCall.searchCrmEntities", "telephony", (*Portal).searchCRMEntities},
	{"voximplant.statistic.get", "telephony", (*Portal).getStatistics},
	{"user.get", "user", (*Portal).getUsers},
	{"user.current", "user", (*Portal).currentUser},
	{"profile", "", (*Portal).profile},
	{"scope", "", (*Portal).scope},
	{"feature.get", "", (*Portal).getFeature},
	{"crm.timeline.comment.add", "crm", (*Portal).addComment},
	{"event.bind", "", forApp((*Portal).bindEvent)},
	{"event.unbind", "", forApp((*Portal).unbindEvent)},
	{"event.get", "", forApp((*Portal).getBindings)},
	{"event.offline.get", "", forApp((*Portal).getOffline)},
	{"event.offline.clear", "", forApp((*Portal).clearOffline)},
	{batchMethod, "", nil}, // run calls it, and nothing else may
}

// lookUp returns the method with a name, whose case does not matter, spelled as the documentation
// does. An unknown one has no handle.
func lookUp(name string) method {
	i := slices.IndexFunc(methods, func(m method) bool { return strings.EqualFold(m.name, name) })
	if i < 0 {
		return method{name: name}
	}
	return methods[i]
}

// ServeHTTP receives a request of the client.
func (p *Portal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, fault := read(w, r)
	logged, text := p.process(q, fault)
	if logged.Lost {
		panic(http.ErrAbortHandler) // net/http closes the connection
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(logged.Status)
	_, _ = w.Write(text)
}

// process answers a request, and logs it.
func (p *Portal) process(q query, fault string) (logged Request, text []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	start := p.Now()
	name, a := p.run(q, start)
	if fault != "" {
		p.fault("The request %s %s.", name, fault)
	}
	if a.status == http.StatusOK {
		a.body["time"] = timing(start)
	}
	text, err := json.Marshal(a.body)
	if err != nil {
		panic(fmt.Sprintf("bitrix24test: the answer to %s: %v", name, err))
	}

	logged = Request{Time: start, Method: name, Params: q.params, Token: q.token, Status: a.status}
	if p.switches.lose > 0 {
		p.switches.lose--
		logged.Lost = p.switches.lose == 0
	}
	p.requests = append(p.requests, logged)
	for _, command := range a.commands {
		command.Token, command.Lost = q.token, logged.Lost
		p.requests = append(p.requests, command)
	}
	close(p.arrived)
	p.arrived = make(chan struct{})
	return logged, text
}

// timing returns how long a request took that came at the start.
func timing(start time.Time) map[string]any {
	return map[string]any{
		"start": start.Unix(), "date_start": start.Format(time.RFC3339),
		"finish": start.Unix(), "date_finish": start.Format(time.RFC3339), "duration": 0.1, "processing": 0.1,
		"operating": 0.1, "operating_reset_at": start.Add(10 * time.Minute).Unix(),
	}
}

// run runs the method of a request, if the portal is able and willing to.
func (p *Portal) run(q query, now time.Time) (name string, a answer) {
	m := lookUp(q.method)
	switch {
	case p.overflows(now):
		return m.name, refused(http.StatusServiceUnavailable, "QUERY_LIMIT_EXCEEDED", "Too many requests")
	case p.switches.fail > 0:
		p.switches.fail--
		return m.name, refused(http.StatusInternalServerError, "INTERNAL_SERVER_ERROR", "Internal server error")
	case q.upload:
		return m.name, p.upload(q)
	}
	refusal := p.authorize(&q, now)
	switch {
	case refusal != nil:
		return m.name, *refusal
	case p.switches.freePlan:
		return m.name, refused(http.StatusForbidden, "ACCESS_DENIED", "REST API is available only on commercial plans.")
	case m.name == batchMethod:
		return m.name, p.batch(q, now)
	}
	return m.name, p.invoke(m, q)
}

const insufficientScope = "insufficient_scope"

// invoke calls a method, by a request or in a batch, if it exists and the caller has its scope.
func (p *Portal) invoke(m method, q query) answer {
	switch {
	case m.handle == nil:
		return refused(http.StatusNotFound, "ERROR_METHOD_NOT_FOUND", "Method not found!")
	case m.scope != "" && q.app != nil && !slices.Contains(q.app.Scopes, m.scope):
		return refused(http.StatusUnauthorized, insufficientScope,
			"The request requires higher privileges than provided by the access token")
	case m.scope != "" && q.app == nil && !slices.Contains(p.scopes(), m.scope):
		return refused(http.StatusForbidden, insufficientScope,
			"The request requires higher privileges than provided by the webhook token")
	}
	if id, given := q.params["CALL_ID"]; given {
		switch id.(type) {
		case string:
		case []any, map[string]any: // in a batch it refers to a call whose register failed
		default:
			p.fault("The request %s has the CALL_ID %v, which is no string.", m.name, id)
		}
	}
	return m.handle(p, q)
}

// overflows puts a request into the leaky bucket, if there is room for it.
func (p *Portal) overflows(now time.Time) bool {
	p.level = max(0, p.level-drainRate*max(0, now.Sub(p.filled).Seconds()))
	p.filled = now
	if p.level+1 > float64(p.Burst) {
		return true
	}
	p.level++
	return false
}

// next returns a new identifier.
func (p *Portal) next() int {
	p.serial++
	return p.serial
}
