package megafon

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Path is where the exchanges of this interface take the requests of CRMs.
const Path = "/sys/crm_api.wcgp"

// Events reads what is stored.
type Events interface {
	Events(ctx context.Context, q store.EventQuery) (store.EventPage, error)
}

// PBXOptions configures a PBX.
type PBXOptions struct {
	Gate     crm.Gate
	Events   Events
	Notes    store.Notes
	Settings map[string]crm.Settings // of the endpoints with this preset, by name
	// Recordings give the links of recordings; nil if the bridge has none, so that those of the
	// exchange are passed on.
	Recordings crm.Recordings
	Logger     *slog.Logger
}

// PBX takes the requests of CRMs that take the bridge for MegaFon's virtual PBX: it is the
// http.Handler of Path. The token in a request tells the endpoint. Requests come as a query, as a
// form or as multipart/form-data.
type PBX struct{ opts PBXOptions }

// NewPBX returns the handler.
func NewPBX(opts PBXOptions) *PBX { return &PBX{opts} }

const maxRequest = 64 << 10 // bytes

// problem is an error as this interface has it: a status, and an object with the text.
type problem struct {
	status int
	text   string
	after  time.Duration // of a Retry-After; 0: none
}

func badParameter(name string) *problem {
	return &problem{status: http.StatusBadRequest, text: "Invalid parameters: [" + name + "]"}
}

// caller is an endpoint that makes a request.
type caller struct {
	*PBX
	name     string
	settings crm.Settings
	clicks   crm.Clicks
}

// ServeHTTP answers one request.
func (p *PBX) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	c, refusal := p.identify(w, r)
	if refusal == nil {
		refusal = c.serve(w, r)
	}
	if refusal == nil {
		return
	}
	if refusal.after > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(refusal.after.Seconds()))))
	}
	answer(w, refusal.status, map[string]string{"error": refusal.text})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // else the CRM has hung up
}

func (p *PBX) identify(w http.ResponseWriter, r *http.Request) (*caller, *problem) {
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	err := r.ParseForm()
	if err == nil {
		err = r.ParseMultipartForm(maxRequest)
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &problem{status: http.StatusRequestEntityTooLarge, text: "The request is larger than 64 KiB"}
	case err != nil && !errors.Is(err, http.ErrNotMultipart):
		return nil, &problem{status: http.StatusBadRequest, text: "Invalid request"}
	}
	name, wait, known := p.opts.Gate.Bearer(r, r.Form.Get("token"))
	settings, hasPreset := p.opts.Settings[name]
	switch {
	case !known || !hasPreset:
		return nil, &problem{status: http.StatusUnauthorized, text: "Invalid token"}
	case wait > 0:
		return nil, &problem{status: http.StatusTooManyRequests, text: "Too many requests: see API_RATE", after: wait}
	}
	return &caller{p, name, settings, crm.Clicks{Notes: p.opts.Notes, Endpoint: name}}, nil
}

func (c *caller) serve(w http.ResponseWriter, r *http.Request) *problem {
	switch r.Form.Get("cmd") {
	case "makeCall":
		return c.makeCall(w, r)
	case "history":
		return c.history(w, r)
	case "accounts":
		return c.accounts(w, r)
	case "groups":
		answer(w, http.StatusOK, []struct{}{})
		return nil
	case "subscribeOnCalls", "subscriptionStatus", "set_dnd", "get_dnd":
		return &problem{status: http.StatusBadRequest, text: "Not supported"}
	}
	return badParameter("cmd")
}

// makeCall rings an employee and then the client. The same again within some seconds makes no
// second call.
func (c *caller) makeCall(w http.ResponseWriter, r *http.Request) *problem {
	to, err := telephony.CleanNumber(r.Form.Get("phone"))
	if err != nil || to == "" {
		return badParameter("phone")
	}
	from, known := c.settings.People.Named(r.Form.Get("user"))
	if !known {
		return badParameter("user")
	}
	client := plain(c.settings.People.Plan.Client(to))
	if client == "" {
		client = to
	}
	// The call goes on if the CRM hangs up: it may ring already.
	ctx := context.WithoutCancel(r.Context())
	id, isNew, err := c.clicks.Begin(ctx, from.Extension, client, uuid.Must(uuid.NewV7()).String())
	if err != nil {
		c.opts.Logger.Error("a click cannot be kept", "endpoint", c.name, "err", err)
		return &problem{status: http.StatusServiceUnavailable, text: "The outbox cannot be written: try again"}
	}
	if isNew {
		err = c.opts.Gate.Command(ctx, c.name, telephony.Command{
			Kind: telephony.CommandCall, From: from.Extension, To: to,
		})
	}
	mayRing := err == nil || errors.Is(err, telephony.ErrNoAnswer)
	failure := err
	if mayRing {
		failure = nil
	}
	if err := c.clicks.Clicked(ctx, failure); err != nil {
		c.opts.Logger.Error("a click cannot be kept", "endpoint", c.name, "err", err)
	}
	if !mayRing {
		if err := c.clicks.Drop(ctx, client, id); err != nil {
			c.opts.Logger.Error("a click cannot be kept", "endpoint", c.name, "err", err)
		}
	}
	if err != nil {
		return commandProblem(err)
	}
	answer(w, http.StatusOK, map[string]string{"uuid": id})
	return nil
}

func commandProblem(err error) *problem {
	var notAllowed *telephony.NotAllowedError
	var refused *telephony.RefusedError
	switch {
	case errors.As(err, &notAllowed) && notAllowed.RetryAfter > 0:
		return &problem{status: http.StatusTooManyRequests, text: err.Error(), after: notAllowed.RetryAfter}
	case errors.As(err, &notAllowed):
		return &problem{status: http.StatusForbidden, text: err.Error()}
	case errors.Is(err, telephony.ErrNotConnected):
		return &problem{status: http.StatusServiceUnavailable, text: "PBX is not connected"}
	case errors.As(err, &refused):
		return &problem{status: http.StatusBadGateway, text: err.Error()}
	case errors.Is(err, telephony.ErrNoAnswer):
		return &problem{status: http.StatusGatewayTimeout, text: err.Error()}
	}
	return &problem{status: http.StatusServiceUnavailable, text: err.Error()}
}

// seenCalls is of how many calls, the latest, the extensions count as accounts.
const seenCalls = 500

// accounts lists the employees: those that are configured, and those that have telephoned.
func (c *caller) accounts(w http.ResponseWriter, r *http.Request) *problem {
	extensions := c.settings.People.Extensions()
	n := 0
	err := c.eachCall(r.Context(), func(e *crm.Event, _ time.Time) bool {
		if e.Extension != "" && !slices.Contains(extensions, e.Extension) {
			extensions = append(extensions, e.Extension)
		}
		n++
		return n < seenCalls
	})
	if err != nil {
		return c.unreadable(err)
	}
	slices.Sort(extensions)
	type account struct {
		Name   string `json:"name"`
		Real   string `json:"realName"`
		Ext    string `json:"ext"`
		Telnum string `json:"telnum"`
		Email  string `json:"email"`
	}
	list := []account{}
	for _, extension := range extensions {
		name := c.settings.People.Of(extension).Name
		a := account{Name: name, Real: name, Ext: extension}
		if strings.Contains(name, "@") {
			a.Email = name
		}
		list = append(list, a)
	}
	answer(w, http.StatusOK, list)
	return nil
}

func (c *caller) unreadable(err error) *problem {
	c.opts.Logger.Error("calls cannot be read for a CRM", "endpoint", c.name, "err", err)
	return &problem{status: http.StatusServiceUnavailable, text: "The calls cannot be read: try again"}
}

// eachCall calls do for each finished call of which the CRM is told, the latest first, until it
// returns false.
func (c *caller) eachCall(ctx context.Context, do func(e *crm.Event, read time.Time) bool) error {
	q := store.EventQuery{
		Endpoint: c.name, Backwards: true, Limit: 100, Types: []telephony.EventType{telephony.EventCompleted},
	}
	for {
		page, err := c.opts.Events.Events(ctx, q)
		if err != nil {
			return err
		}
		for _, body := range page.Events {
			var stored struct {
				ID   string
				Read time.Time `json:"timestamp"`
				Data struct {
					Call string `json:"call_id"`
				} `json:"data"`
			}
			if err := json.Unmarshal(body, &stored); err != nil {
				return err
			}
			e, err := crm.Read(store.Event{
				Type: telephony.EventCompleted, Call: stored.Data.Call, At: stored.Read, Body: body,
			})
			if err != nil {
				return err
			}
			if c.opts.Recordings != nil {
				e.Recording = c.opts.Recordings.LinkOf(stored.ID)
			}
			if !e.Internal && !do(&e, stored.Read) {
				return nil
			}
		}
		if page.Cursor == "" || !page.More {
			return nil
		}
		q.After = page.Cursor
	}
}
