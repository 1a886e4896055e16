package megafontest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// maxExt is how long an extension may be, in characters.
const maxExt = 10

var notDigits = regexp.MustCompile(`[^0-9]+`)

// SalesMan is SalesMan CRM. It takes parameters in any form, and answers errors with status 200.
type SalesMan struct {
	CRM
	records []*Record
}

// Record is what SalesMan keeps of a call.
type Record struct {
	CallID    string
	Ext       string
	Phone     string
	Direction string // in or out
	Status    string // the latest event's type or the history's status
	Link      string
	Duration  time.Duration
}

// NewSalesMan makes a SalesMan CRM that gave the PBX this key.
func NewSalesMan(key string) *SalesMan {
	return &SalesMan{CRM: newCRM(key)}
}

// Records returns the records in the order in which they were made.
func (c *SalesMan) Records() (records []Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records {
		records = append(records, *r)
	}
	return records
}

// ServeHTTP receives a request of the PBX.
func (c *SalesMan) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.serve(w, r, merged, c.handle)
}

// merged reads the query and the body, be it a form, JSON, or multipart.
func merged(r *http.Request) (url.Values, error) {
	if err := r.ParseForm(); err != nil {
		return r.Form, err
	}
	switch mediaType(r.Header) {
	case "multipart/form-data":
		return r.Form, r.ParseMultipartForm(maxBody)
	case "application/json":
		var body map[string]any
		decoder := json.NewDecoder(r.Body)
		decoder.UseNumber()
		if err := decoder.Decode(&body); err != nil {
			return r.Form, err
		}
		for name, value := range body {
			r.Form.Set(name, fmt.Sprint(value))
		}
	}
	return r.Form, nil
}

func (c *SalesMan) handle(r Request) (int, reply) {
	return http.StatusOK, c.answer(r.Form)
}

func (c *SalesMan) answer(form url.Values) reply {
	if !c.knows(form.Get("crm_token")) {
		return refusal("Invalid token")
	}
	switch form.Get("cmd") {
	case "event":
		if !slices.Contains(eventTypes, form.Get("type")) {
			return refusal("Invalid parameters: [type]")
		}
		return c.keep(form)
	case "history":
		return c.keep(form)
	case "contact":
		return c.contact(form.Get("phone"), reply{"contact_name": "", "responsible": 0})
	}
	return refusal("Invalid request")
}

// keep updates a call's record by an event or a history.
func (c *SalesMan) keep(form url.Values) reply {
	ext := form.Get("ext")
	if login, _, found := strings.Cut(form.Get("user"), "@"); found && ext == "" {
		ext = notDigits.ReplaceAllString(login, "")
	}
	if len(ext) > maxExt {
		return refusal("Invalid parameters: [ext]")
	}

	r := c.record(form.Get("callid"))
	r.Ext, r.Phone = ext, form.Get("phone")
	kind := form.Get("type")
	if form.Get("cmd") == "event" {
		r.Status = kind
		if direction, rings := ringing[kind]; rings {
			r.Direction = direction
		}
		return reply{}
	}
	isKnown := r.Status != ""
	r.Status, r.Direction = form.Get("status"), kind
	if ext != "" && isKnown { // a new record gets neither
		r.Link, r.Duration = form.Get("link"), seconds(form.Get("duration"))
	}
	return reply{}
}

// record returns the record of a call, and makes it if need be.
func (c *SalesMan) record(id string) *Record {
	for _, r := range c.records {
		if r.CallID == id {
			return r
		}
	}
	r := &Record{CallID: id}
	c.records = append(c.records, r)
	return r
}

// Click makes the PBX at an address (https://host) call a client, and files a record under the
// uuid that the PBX names.
func (c *SalesMan) Click(
	ctx context.Context, client *http.Client, bridge, token, user, phone string,
) (uuid string, err error) {
	uuid, err = pbx{client, bridge, token, multipartPost}.makeCall(ctx, user, phone)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.record(uuid); r.Status == "" { // else the call has begun to ring meanwhile
		r.Phone, r.Direction = phone, "out"
	}
	return uuid, nil
}

// Accounts gets the PBX's employees.
func (c *SalesMan) Accounts(ctx context.Context, client *http.Client, bridge, token string) ([]Account, error) {
	return pbx{client, bridge, token, multipartPost}.accounts(ctx)
}

// History polls the PBX for the calls between two moments.
func (c *SalesMan) History(
	ctx context.Context, client *http.Client, bridge, token string, start, end time.Time,
) ([]PastCall, error) {
	return pbx{client, bridge, token, multipartPost}.history(ctx, url.Values{
		"start": {start.UTC().Format(compactUTC)}, "end": {end.UTC().Format(compactUTC)}, "type": {"all"},
	})
}
