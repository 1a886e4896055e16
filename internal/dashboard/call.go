package dashboard

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// callView is a page of a call's events, with the requests, the attempts and the responses.
type callView struct {
	callRow
	Title  string
	Live   string // the path of the page's live part
	AsOf   time.Time
	Steps  []step
	Route  *routeView
	Events []eventView
	After  uint64              // the page begins after this sequence
	Next   uint64              // the next page begins after this sequence; 0 if there is none
	Again  *store.DeliveryView // the delivery that the operator has just queued again, or nil
	Waits  bool                // no attempt at Again has ended yet
}

type eventView struct {
	store.CallEvent
	Name       string
	Deliveries []deliveryView
}

// deliveryView is a delivery with all that is known of it.
type deliveryView struct {
	store.DeliveryView
	Shown   string // its state, or unread
	Past    []pastAttempt
	IsHook  bool // its endpoint takes webhooks: Headers, Request and Whole are of that
	Headers []header
	Request string // the webhook's body, or the beginning of it
	Whole   bool   // Request is the whole body
	Again   bool   // it can be sent again: its endpoint is configured and has a URL
	TooLate bool   // it cannot be, as it is a question whose time is over
	Open    bool   // its fold is open
	Made    string // what the CRM made of the event, or why nothing was sent
}

// pastAttempt is an attempt, and its failure in the page's language.
type pastAttempt struct {
	store.Attempt
	Failure  string // empty if it succeeded
	Nothing  string // why nothing was sent; empty if something was
	Requests []string
}

// call serves the page of one call.
func (d *Dashboard) call(w http.ResponseWriter, r *http.Request) {
	v, err := d.callView(r)
	switch {
	case errors.Is(err, store.ErrNoCall):
		d.renderFailure(w, r, http.StatusNotFound, wordsFor(r).explain(err))
	case err != nil:
		d.renderError(w, r, err)
	default:
		d.render(w, r, http.StatusOK, "call", v.Title, v)
	}
}

// liveCall is the liveView of a call.
func (d *Dashboard) liveCall(r *http.Request) (any, error) { return d.callView(r) }

func (d *Dashboard) callView(r *http.Request) (callView, error) {
	ctx, t, id := r.Context(), wordsFor(r), r.PathValue("id")
	after, _ := strconv.ParseUint(r.FormValue("after"), 10, 64) // an invalid number counts as 0, the beginning
	page, err := d.opts.Outbox.Call(ctx, id, after)
	if err != nil {
		return callView{}, err
	}
	head, err := d.opts.Outbox.CallHead(ctx, id)
	if err != nil {
		return callView{}, err
	}
	endpoints, err := d.opts.Outbox.Endpoints(ctx)
	if err != nil {
		return callView{}, err
	}
	now := time.Now()
	v := callView{
		callRow: newCallRow(&head, endpoints),
		AsOf:    now,
		Route:   t.newRouteView(page.Route, now),
		Steps:   t.steps(&page),
		After:   after,
		Next:    page.Next,
	}
	v.Title = t.title(&v.callRow)
	v.Live = link(callPath(id)+"/live", "after", r.FormValue("after"), "again", r.FormValue("again"),
		"waits", r.FormValue("waits"))
	shown := shownCall{d: d, t: t, route: page.Route, endpoints: endpoints, now: now, budget: maxRequests}
	for _, e := range page.Events {
		event := eventView{CallEvent: e, Name: t[string(e.Type)]}
		for i := range e.Deliveries {
			delivery := shown.delivery(ctx, &e.Deliveries[i])
			if delivery.Redelivered && delivery.ID == r.FormValue("again") {
				delivery.Open, v.Again = true, &delivery.DeliveryView
				v.Waits = delivery.State == "pending" && r.FormValue("waits") != ""
			}
			event.Deliveries = append(event.Deliveries, delivery)
		}
		v.Events = append(v.Events, event)
	}
	return v, nil
}

// steps returns the points of a call's timeline.
func (t words) steps(page *store.CallPage) (steps []step) {
	for _, e := range page.Events {
		steps = append(steps, step{
			At:   e.Time,
			Kind: cmp.Or(stepKinds[e.Type], "other"),
			Text: t[string(e.Type)],
		})
	}
	steps = append(steps, t.routeSteps(page.Route)...)
	slices.SortStableFunc(steps, func(a, b step) int { return a.At.Compare(b.At) })
	placeSteps(steps)
	return steps
}

// shownCall is what the deliveries of a page have in common.
type shownCall struct {
	d         *Dashboard
	t         words
	route     *telephony.Route
	endpoints []outbox.EndpointStatus
	now       time.Time
	budget    int // bytes of bodies that may still be shown
}

// delivery returns a delivery with its attempts and its request.
func (s *shownCall) delivery(ctx context.Context, delivery *store.DeliveryView) deliveryView {
	v := deliveryView{DeliveryView: *delivery, Shown: delivery.State, Whole: true, Open: delivery.State == "dead"}
	if delivery.ToBeRead {
		v.Shown = "unread"
	}
	v.Again = slices.ContainsFunc(s.endpoints, func(e outbox.EndpointStatus) bool {
		return e.Name == delivery.Endpoint && e.State != "reads"
	})
	if v.Again && delivery.Type == telephony.EventTransferRequested && !s.isOpen(delivery.EventID) {
		v.Again, v.TooLate = false, true
	}
	_, attempts, err := s.d.opts.Outbox.Delivery(ctx, delivery.ID)
	if err != nil && !errors.Is(err, store.ErrNotFound) { // it may have been pruned just now
		// The rest of the page can be read.
		attempts = []store.Attempt{{Error: err.Error(), Cause: telephony.CauseOf(err)}}
	}
	for _, a := range attempts {
		a.Response = strings.ToValidUTF8(a.Response, "\uFFFD")
		past := pastAttempt{Attempt: a, Nothing: s.t.nothing(&a)}
		if past.Nothing == "" && (a.Error != "" || a.Status < 200 || a.Status > 299) {
			past.Failure = s.t.explain(a.Failure())
		}
		for i := range a.Steps {
			past.Requests = append(past.Requests, s.t.request(&a.Steps[i]))
		}
		v.Past = append(v.Past, past)
	}
	v.Made = s.t.made(attempts)
	set := s.d.opts.Headers(delivery.Endpoint)
	v.IsHook = set != nil
	if v.IsHook && s.budget > 0 {
		// The event may have been pruned just now.
		contentType, body, _ := s.d.opts.Outbox.Sent(ctx, delivery.Endpoint, delivery.EventID)
		s.budget -= len(body)
		v.Request, v.Whole = formatRequest(body)
		v.Headers = requestHeaders(s.t, delivery, set, contentType, len(body))
	}
	return v
}

// isOpen reports whether an event is the question where its call goes, and an answer still counts.
func (s *shownCall) isOpen(eventID string) bool {
	return s.route != nil && s.route.EventID == eventID && s.route.Outcome == telephony.RouteOpen &&
		s.now.Before(s.route.AnswerBy)
}

// redeliver queues a delivery again and redirects to the page of its call.
func (d *Dashboard) redeliver(w http.ResponseWriter, r *http.Request) {
	delivery, err := d.opts.Outbox.Redeliver(r.Context(), r.PostFormValue("id"))
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	d.logRedelivery(&delivery)
	d.did(r, store.AuditRedelivered, delivery.ID, 0)
	if delivery.CallID == "" {
		d.redirect(w, r, "/")
		return
	}
	back := callPath(delivery.CallID) + "?again=" + url.QueryEscape(delivery.ID)
	if !d.awaitAttempt(r.Context(), delivery) {
		back += "&waits=true"
	}
	d.redirect(w, r, back)
}

func (d *Dashboard) logRedelivery(delivery *store.DeliveryView) {
	d.opts.Logger.Info("delivery is made again",
		"event_id", delivery.EventID, "endpoint", delivery.Endpoint, "call_id", delivery.CallID)
}

// awaitAttempt waits up to 2 s until the attempt at a redelivery has ended, so that the page can
// show its outcome. It returns false if it has not ended by then: the endpoint may be slow, or
// failing and only probed.
func (d *Dashboard) awaitAttempt(ctx context.Context, again store.DeliveryView) (made bool) {
	const maxWait, interval = 2 * time.Second, 25 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		now, _, err := d.opts.Outbox.Delivery(ctx, again.ID)
		if err == nil && now.Attempts != again.Attempts {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		case <-d.running.Done():
			return false
		}
	}
}
