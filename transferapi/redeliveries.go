package transferapi

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// undelivered is the default of states in redeliverAll. Delivered events are redelivered only if
// the request names that state.
var undelivered = []string{"dead", "expired"}

// redeliverAll queues again all deliveries that a filter selects, or with dry_run counts them.
func (a *API) redeliverAll(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Endpoint string   `json:"endpoint"`
		Since    string   `json:"since"`
		Until    string   `json:"until"`
		States   []string `json:"states"`
		Types    []string `json:"types"`
		DryRun   bool     `json:"dry_run"`
	}
	if refusal := readJSON(w, r, &request); refusal != nil {
		refusal.write(w)
		return
	}
	what := store.Redelivery{Endpoint: request.Endpoint, States: request.States, DryRun: request.DryRun}
	if len(what.States) == 0 {
		what.States = undelivered
	}
	var errSince, errUntil, errEndpoint, errTypes error
	if what.Since, errSince = readTime("since", request.Since); request.Since == "" {
		errSince = &fieldError{
			"since",
			"is missing: say from when on events are to be sent again, with a time such as 2026-11-23T06:25:53Z",
		}
	}
	what.Until, errUntil = readTime("until", request.Until)
	if request.Endpoint == "" {
		errEndpoint = &fieldError{"endpoint", "is missing: name the endpoint that is to get its events again"}
	}
	what.Types, errTypes = readTypes(request.Types)
	if err := errors.Join(errEndpoint, errSince, errUntil, errTypes); err != nil {
		badFields(err).write(w)
		return
	}
	if !a.redeliveries.acquire(r.Context(), maxSlotWait) {
		tooManyRequests("Other deliveries are being made again: wait until that is done.").write(w)
		return
	}
	defer a.redeliveries.release()
	// It runs to its end even if the caller disconnects, else only a part would be redelivered.
	ctx, cancel := detach(r)
	defer cancel()
	number, n, err := a.opts.Deliveries.RedeliverAll(ctx, what)
	if !what.DryRun && (n > 0 || err == nil) {
		a.opts.Logger.Info("deliveries are made again", "endpoint", what.Endpoint, "deliveries", n)
		if n > 0 {
			a.audit(r, store.Audit{Action: store.AuditRedeliveredAll, Subject: what.Endpoint, Count: n})
		}
	}
	if err != nil {
		p := deliveryProblem(err)
		if p.Field == "state" {
			p.Field = "states"
		}
		if n > 0 {
			p.Detail += fmt.Sprintf(" Until then it was done for %d deliveries.", n)
		}
		p.write(w)
		return
	}
	id := ""
	if !what.DryRun {
		id = strconv.FormatUint(uint64(number), 10)
	}
	writeJSON(w, http.StatusOK, struct {
		ID         string `json:"id,omitempty"`
		Deliveries int    `json:"deliveries"`
		DryRun     bool   `json:"dry_run"`
	}{id, n, what.DryRun})
}

// redelivery is the JSON form of a redelivery of many, and of what has come of it.
type redelivery struct {
	ID         string                `json:"id"`
	Endpoint   string                `json:"endpoint"`
	Since      time.Time             `json:"since"`
	Until      time.Time             `json:"until,omitzero"`
	States     []string              `json:"states"`
	Types      []telephony.EventType `json:"types,omitempty"`
	At         time.Time             `json:"requested_at"`
	Whole      bool                  `json:"all_chosen"`
	Chosen     int                   `json:"deliveries"`
	Pending    int                   `json:"pending"`
	Delivered  int                   `json:"delivered"`
	Expired    int                   `json:"expired"`
	Dead       int                   `json:"dead"`
	Superseded int                   `json:"superseded"`
}

func showRedelivery(r *store.RedeliveryState) redelivery {
	return redelivery{
		ID:         strconv.FormatUint(uint64(r.Number), 10),
		Endpoint:   r.Endpoint,
		Since:      r.Since.UTC(),
		Until:      r.Until.UTC(),
		States:     r.States,
		Types:      r.Types,
		At:         r.At.UTC(),
		Whole:      r.Whole,
		Chosen:     r.Chosen,
		Pending:    r.Pending(),
		Delivered:  r.Delivered,
		Expired:    r.Expired,
		Dead:       r.Dead,
		Superseded: r.Superseded,
	}
}

// getRedelivery returns a redelivery of many and what has come of it.
func (a *API) getRedelivery(r *http.Request) answer {
	number, err := strconv.ParseUint(r.PathValue("id"), 10, 32)
	if err != nil {
		return problemAnswer(deliveryProblem(store.ErrNoRedelivery))
	}
	state, err := a.opts.Deliveries.Redelivery(r.Context(), uint32(number))
	if err != nil {
		return problemAnswer(deliveryProblem(err))
	}
	return okAnswer(showRedelivery(&state))
}

// listRedeliveries returns the latest redeliveries of many, the newest first.
func (a *API) listRedeliveries(r *http.Request) answer {
	limit, refusal := readOnlyLimit(r)
	if refusal != nil {
		return problemAnswer(*refusal)
	}
	list, err := a.opts.Deliveries.Redeliveries(r.Context(), limit)
	if err != nil {
		return problemAnswer(deliveryProblem(err))
	}
	shown := struct {
		Redeliveries []redelivery `json:"redeliveries"`
	}{[]redelivery{}}
	for i := range list {
		shown.Redeliveries = append(shown.Redeliveries, showRedelivery(&list[i]))
	}
	return okAnswer(shown)
}
