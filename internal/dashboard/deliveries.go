package dashboard

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// deliveriesView is the data of the list of deliveries.
type deliveriesView struct {
	deliveryFilter
	Endpoints, States, Types []choice
	Rows                     []deliveryRow
	IsLater                  bool   // it is not the first page
	First, Older             string // paths of other pages; Older is empty if there is none
	CanResend                bool   // something of the list can be sent again
	Past                     []progress
}

// deliveryFilter selects deliveries, as the form does.
type deliveryFilter struct {
	Endpoint, State, Type string
	period
}

// deliveryRow is a delivery in a list.
type deliveryRow struct {
	store.DeliveryView
	Name   string // of its type
	Shown  string // its state: pending, delivered, expired, dead, or unread
	Result string // of the last attempt; empty if there was none, or it succeeded
	Path   string // to it on the page of its call; empty if it is of no call
	Again  bool   // it can be chosen to be sent again
}

const (
	// deliveriesOnPage is the number of deliveries on a page.
	deliveriesOnPage = 50
	// maxReads bounds how many pages of the engine one page looks at: each of them is bounded.
	maxReads = 8
	// pastOnPage is the number of latest redeliveries that the page links to.
	pastOnPage = 5
)

func (t words) readDeliveryFilter(q url.Values) deliveryFilter {
	return deliveryFilter{
		Endpoint: q.Get("endpoint"),
		State:    oneOf(q.Get("state"), states...),
		Type:     oneOf(q.Get("type"), typeNames...),
		period:   t.readPeriod(q),
	}
}

// path returns the path of a page with the filter.
func (f *deliveryFilter) path(path, cursor string) string {
	return link(path, "endpoint", f.Endpoint, "state", f.State, "type", f.Type, "since", f.Since, "until", f.Until,
		"cursor", cursor)
}

// types returns the types that the filter selects; none means all.
func (f *deliveryFilter) types() []telephony.EventType {
	if f.Type == "" {
		return nil
	}
	return []telephony.EventType{telephony.EventType(f.Type)}
}

// IsNarrow reports whether the filter does not match everything.
func (f deliveryFilter) IsNarrow() bool { return f.Endpoint+f.State+f.Type+f.Since+f.Until != "" }

// typeNames are the names of all types of events.
var typeNames = func() (names []string) {
	for _, t := range slices.Concat(telephony.EventTypes, telephony.OperationalTypes) {
		names = append(names, string(t))
	}
	return names
}()

// listPath returns the path of a list of deliveries.
func listPath(endpoint, state string) string {
	f := deliveryFilter{Endpoint: endpoint, State: state}
	return f.path("/deliveries", "")
}

// deliveries serves the list of deliveries.
func (d *Dashboard) deliveries(w http.ResponseWriter, r *http.Request) {
	t, q := wordsFor(r), r.URL.Query()
	v := deliveriesView{deliveryFilter: t.readDeliveryFilter(q), IsLater: q.Get("cursor") != ""}
	v.States, v.Types = t.choices(v.State, "", states...), t.choices(v.Type, "", typeNames...)
	v.First = v.path("/deliveries", "")
	endpoints, err := d.opts.Outbox.Endpoints(r.Context())
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	for _, e := range endpoints {
		v.Endpoints = append(v.Endpoints, choice{e.Name, e.Name, e.Name == v.Endpoint})
	}
	if !v.isValid() {
		d.render(w, r, http.StatusBadRequest, "deliveries", t["Deliveries"], v)
		return
	}
	list, cursor, err := d.listDeliveries(r.Context(), store.DeliveryQuery{
		Endpoint: v.Endpoint,
		State:    v.State,
		Types:    v.types(),
		Since:    v.since,
		Until:    v.until,
		Limit:    deliveriesOnPage,
		Cursor:   q.Get("cursor"),
	})
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	for i := range list {
		row := t.newDeliveryRow(&list[i], endpoints)
		v.CanResend = v.CanResend || row.Again
		v.Rows = append(v.Rows, row)
	}
	if cursor != "" {
		v.Older = v.path("/deliveries", cursor)
	}
	past, err := d.opts.Outbox.Redeliveries(r.Context(), pastOnPage)
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	for i := range past {
		v.Past = append(v.Past, newProgress(&past[i]))
	}
	d.render(w, r, http.StatusOK, "deliveries", t["Deliveries"], v)
}

// listDeliveries reads pages of the engine until one of its own is full, there are no more, or
// maxReads were read.
func (d *Dashboard) listDeliveries(
	ctx context.Context, q store.DeliveryQuery,
) (list []store.DeliveryView, cursor string, err error) {
	limit := q.Limit
	for range maxReads {
		q.Limit = limit - len(list)
		page, err := d.opts.Outbox.Deliveries(ctx, q)
		if err != nil {
			return nil, "", err
		}
		list = append(list, page.Deliveries...)
		if q.Cursor = page.Cursor; q.Cursor == "" || len(list) == limit {
			break
		}
	}
	return list, q.Cursor, nil
}

func (t words) newDeliveryRow(delivery *store.DeliveryView, endpoints []outbox.EndpointStatus) deliveryRow {
	row := deliveryRow{
		DeliveryView: *delivery,
		Name:         t[string(delivery.Type)],
		Shown:        delivery.State,
		Again:        delivery.State != "pending" && delivery.Type != telephony.EventTransferRequested,
	}
	i := slices.IndexFunc(endpoints, func(e outbox.EndpointStatus) bool { return e.Name == delivery.Endpoint })
	row.Again = row.Again && i >= 0 && endpoints[i].State != "reads"
	switch last := (store.Attempt{Status: delivery.LastStatus, Error: delivery.LastError, Cause: delivery.LastCause}); {
	case delivery.ToBeRead:
		row.Shown = "unread"
	case last.Error != "" || last.Status != 0 && (last.Status < 200 || last.Status > 299):
		row.Result = t.explain(last.Failure())
	}
	if path := callPath(delivery.CallID); path != "" {
		row.Path = path + "#d-" + delivery.ID
	}
	return row
}

// WaitsUntil returns when a pending delivery is tried next; zero if it is none, is due, or waits
// for an earlier event of its call.
func (r *deliveryRow) WaitsUntil() time.Time {
	if r.State != "pending" || r.NextAttempt.Before(time.Now()) {
		return time.Time{}
	}
	return r.NextAttempt
}

// IsHeld reports whether a delivery waits for an earlier event of its call.
func (r *deliveryRow) IsHeld() bool {
	isAsked := r.Type == telephony.EventTransferRequested
	return r.State == "pending" && r.NextAttempt.IsZero() && !r.ToBeRead && !isAsked
}
