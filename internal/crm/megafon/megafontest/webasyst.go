package megafontest

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Webasyst is Webasyst CRM with its plugin "Gravitel". It makes a row for each ringing employee,
// but finds a row by its callid alone: when several employees ring, the call keeps the login of the
// first, even if another one answers.
type Webasyst struct {
	CRM
	rows []*row
}

// Call is one row of Webasyst's calls.
type Call struct {
	CallID    string
	Login     string
	Phone     string
	Direction string // in or out
	State     State
	Link      string
	Duration  time.Duration // by Webasyst's clock, until a history with a link corrects it
}

// State is the state of a call in Webasyst.
type State string

// The states of a call in Webasyst.
const (
	Pending   State = "pending" // it rings
	Accepted  State = "accepted"
	Completed State = "completed"
	Dropped   State = "dropped"
)

// row is a call, and when it was accepted.
type row struct {
	Call
	accepted time.Time
}

// NewWebasyst makes a Webasyst CRM that gave the PBX this key.
func NewWebasyst(key string) *Webasyst {
	return &Webasyst{CRM: newCRM(key)}
}

// Calls returns the rows in the order in which they were made.
func (c *Webasyst) Calls() (calls []Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.rows {
		calls = append(calls, r.Call)
	}
	return calls
}

// ServeHTTP receives a form post of the PBX.
func (c *Webasyst) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.serve(w, r, posted, c.handle)
}

func (c *Webasyst) handle(r Request) (int, reply) {
	if !c.knows(r.Form.Get("crm_token")) {
		return http.StatusUnauthorized, refusal("Invalid token")
	}
	switch r.Form.Get("cmd") {
	case "event":
		c.event(r.Form)
	case "history":
		c.history(r.Form)
	case "contact":
		return http.StatusOK, nil // it has no such command
	}
	return http.StatusOK, nil
}

func (c *Webasyst) event(form url.Values) {
	id, kind := form.Get("callid"), form.Get("type")
	if direction, rings := ringing[kind]; rings {
		login, _, found := strings.Cut(form.Get("user"), "@")
		if !found {
			login = ""
		}
		r := c.row(id, login)
		r.Phone, r.Direction, r.State = form.Get("phone"), direction, Pending
		return
	}

	r := c.first(id)
	if r == nil {
		return
	}
	switch kind {
	case "ACCEPTED":
		r.State, r.accepted = Accepted, c.Now()
		c.rows = slices.DeleteFunc(c.rows, func(twin *row) bool {
			return twin != r && twin.CallID == id && (twin.State == Pending || twin.State == Dropped)
		})
	case "COMPLETED":
		r.State = Completed
		if !r.accepted.IsZero() {
			r.Duration = c.Now().Sub(r.accepted)
		}
	case "CANCELLED":
		r.State = Dropped
	}
}

func (c *Webasyst) history(form url.Values) {
	link := form.Get("link")
	if r := c.first(form.Get("callid")); r != nil && link != "" {
		r.Link, r.Duration = link, seconds(form.Get("duration"))
	}
}

// row returns the row of a call and a login, and makes it if need be.
func (c *Webasyst) row(id, login string) *row {
	for _, r := range c.rows {
		if r.CallID == id && r.Login == login {
			return r
		}
	}
	r := &row{Call: Call{CallID: id, Login: login}}
	c.rows = append(c.rows, r)
	return r
}

// first returns the first row of a call, nil if there is none.
func (c *Webasyst) first(id string) *row {
	for _, r := range c.rows {
		if r.CallID == id {
			return r
		}
	}
	return nil
}

// Click makes the PBX at an address (https://host) call a client, and makes the call's row, which
// is dropped if the PBX names no uuid.
func (c *Webasyst) Click(
	ctx context.Context, client *http.Client, bridge, token, user, phone string,
) (uuid string, err error) {
	uuid, err = pbx{client, bridge, token, formPost}.makeCall(ctx, user, phone)
	login, _, _ := strings.Cut(user, "@")
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.row(uuid, login)
	if r.State == "" { // else the call has begun to ring meanwhile
		r.Phone, r.Direction, r.State = phone, "out", Pending
	}
	if uuid == "" {
		r.State = Dropped
	}
	return uuid, err
}

// Accounts gets the PBX's employees.
func (c *Webasyst) Accounts(ctx context.Context, client *http.Client, bridge, token string) ([]Account, error) {
	return pbx{client, bridge, token, formPost}.accounts(ctx)
}

// History gets today's calls from the PBX, and closes those that hang in the CRM.
func (c *Webasyst) History(ctx context.Context, client *http.Client, bridge, token string) ([]PastCall, error) {
	calls, err := pbx{client, bridge, token, formPost}.history(ctx, url.Values{"period": {"today"}})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, call := range calls {
		for _, r := range c.rows {
			if r.CallID != call.UID || r.State != Pending && r.State != Accepted {
				continue
			}
			if r.State, r.Duration, r.Link = Completed, call.Duration, call.Record; call.Type == "missed" {
				r.State = Dropped
			}
		}
	}
	return calls, err
}
