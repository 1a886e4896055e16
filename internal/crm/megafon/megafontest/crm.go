// Package megafontest has fakes of the CRMs that take the address of an operator's virtual PBX
// (the ITooLabs API, known as "MegaFon's virtual PBX"): Webasyst CRM, SalesMan CRM, Rukovoditel,
// and a strict home-made one. Each is an http.Handler that receives what the PBX sends
// and behaves as that CRM does; what it embeds, CRM, logs the requests, lists the PBX's faults, and
// has the switches. The methods Click, Accounts, and History go the other way: they make the
// requests that the CRM makes to its PBX.
package megafontest

import (
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// maxBody bounds the body of a request or a response, in bytes.
const maxBody = 8 << 20

// CRM is what all the fakes have in common.
type CRM struct {
	// Now is the CRM's clock. It may be replaced before the first request.
	Now func() time.Time

	mu                sync.Mutex
	key               string
	revoked           bool
	responsible       map[string]any // by the client's phone
	limit, fail, lose int            // the switches' countdowns; 0 is off
	requests          []Request
	arrived           chan struct{} // closed and replaced when a request arrives
	faults            []string
	calls             map[string]*progress // by callid
}

// newCRM makes a CRM that gave the PBX this key.
func newCRM(key string) CRM {
	return CRM{
		Now: time.Now, key: key, responsible: map[string]any{}, arrived: make(chan struct{}),
		calls: map[string]*progress{},
	}
}

// Request is a request that came, with its answer.
type Request struct {
	Time   time.Time
	Method string
	Header http.Header
	Form   url.Values // what the CRM read
	Status int
	Answer string
	Lost   bool // processed, but not answered
}

// Requests returns the requests in order of arrival, and a channel that closes when the next one
// arrives.
func (c *CRM) Requests() ([]Request, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests), c.arrived
}

// Faults returns what the PBX did against the protocol, one sentence each.
func (c *CRM) Faults() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.faults)
}

// Assign sets whom cmd=contact names for a client's phone (digits): a login, an extension, a JSON
// number, or nil.
func (c *CRM) Assign(phone string, responsible any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.responsible[phone] = responsible
}

// Revoke makes the PBX's key invalid until Restore.
func (c *CRM) Revoke() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revoked = true
}

// Restore makes the PBX's key valid again.
func (c *CRM) Restore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revoked = false
}

// Limit makes the CRM answer the next n requests with 429, and not process them.
func (c *CRM) Limit(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = n
}

// Fail makes the CRM answer the next n requests with 500, and not process them. It comes after
// Limit, if both are set.
func (c *CRM) Fail(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = n
}

// Lose makes the CRM process the nth request from now, 1 being the next one, and close the
// connection instead of answering.
func (c *CRM) Lose(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lose = n
}

// reply is a JSON object to answer with; nil is an empty body.
type reply map[string]any

// refusal is the reply to a request that a CRM does not accept.
func refusal(text string) reply {
	return reply{"error": text}
}

// serve receives a request: read gets the parameters, and handle, under the lock, processes them as
// the CRM in question does.
func (c *CRM) serve(
	w http.ResponseWriter, r *http.Request,
	read func(*http.Request) (url.Values, error), handle func(Request) (status int, body reply),
) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	form, err := read(r)
	done := c.process(Request{Method: r.Method, Header: r.Header, Form: form}, err, handle)
	if done.Lost {
		panic(http.ErrAbortHandler) // net/http closes the connection
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(done.Status)
	_, _ = io.WriteString(w, done.Answer)
}

// process runs the switches and handle, and logs the request. A request that could not be read is
// processed with what could be, as PHP does.
func (c *CRM) process(r Request, errRead error, handle func(Request) (int, reply)) Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errRead != nil {
		c.faults = append(c.faults, fmt.Sprintf("A request cannot be read: %v.", errRead))
	}
	c.faults = append(c.faults, fieldFaults(r)...)

	var body reply
	switch {
	case c.limit > 0:
		c.limit--
		r.Status = http.StatusTooManyRequests
	case c.fail > 0:
		c.fail--
		r.Status = http.StatusInternalServerError
	default:
		if r.Status, body = handle(r); r.Status == http.StatusOK && body["error"] == nil {
			c.follow(r.Form)
		}
	}
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			panic(fmt.Sprintf("megafontest: Assign got what JSON does not take: %v", err))
		}
		r.Answer = string(text)
	}
	if c.lose > 0 {
		c.lose--
		r.Lost = c.lose == 0
	}

	r.Time = c.Now()
	c.requests = append(c.requests, r)
	close(c.arrived)
	c.arrived = make(chan struct{})
	return r
}

// posted reads a form post, and nothing else.
func posted(r *http.Request) (url.Values, error) {
	err := r.ParseForm()
	return r.PostForm, err
}

// mediaType returns the Content-Type without its parameters.
func mediaType(header http.Header) string {
	kind, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	return kind
}

// knows reports whether a key is the PBX's and valid.
func (c *CRM) knows(key string) bool {
	return key == c.key && !c.revoked
}

// contact answers cmd=contact, with nobody if no one is responsible for the client.
func (c *CRM) contact(phone string, nobody reply) reply {
	responsible, found := c.responsible[phone]
	if !found {
		return nobody
	}
	return reply{"contact_name": "Client " + phone, "responsible": responsible}
}
