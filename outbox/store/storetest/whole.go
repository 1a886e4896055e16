package storetest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pzbridge/outbox/store"
)

// Whole gives all that an engine has stored, as far as it can be read or claimed: a line for each
// thing, equal for two engines that have the same stored. Endpoints are those that are configured.
// It claims deliveries as of now, and releases them.
func Whole(t testing.TB, e store.Engine, endpoints []store.Endpoint, now time.Time) []string {
	t.Helper()
	w := &whole{TB: t, engine: e}
	w.events("")
	for i := range endpoints {
		w.events(endpoints[i].Name)
		w.claims(endpoints[i].Name, now)
	}
	w.deliveries()
	w.calls()
	w.others()
	return w.lines
}

type whole struct {
	testing.TB
	engine store.Engine
	lines  []string
}

// add adds a line.
func (w *whole) add(what string, value any, err error) {
	w.Helper()
	text, wrong := json.Marshal(value)
	if wrong != nil {
		w.Fatal(wrong)
	}
	line := fmt.Sprintf("%s: %s", what, text)
	if err != nil {
		line += ", " + err.Error()
	}
	w.lines = append(w.lines, line)
}

// events reads the events of an endpoint, or all, from the oldest on.
func (w *whole) events(endpoint string) {
	w.Helper()
	q := store.EventQuery{Endpoint: endpoint, Limit: 100}
	for {
		page, err := w.engine.Events(context.Background(), q)
		if err != nil {
			w.Fatal(err)
		}
		for _, body := range page.Events {
			w.add("event of "+endpoint, string(body), nil)
		}
		if !page.More {
			w.add("cursor of "+endpoint, page.Cursor, nil)
			return
		}
		q.After = page.Cursor
	}
}

// claims claims what is due at an endpoint.
func (w *whole) claims(endpoint string, now time.Time) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	lane, err := w.engine.Lane(ctx, endpoint, true)
	if err != nil {
		w.Fatal(err)
	}
	for {
		c, err := lane.Claim(ctx, now, 1000, nil)
		if err != nil {
			w.Fatal(err)
		}
		for _, j := range c.Jobs {
			j.Event = plain(j.Event)
			for i := range j.Later {
				j.Later[i] = plain(j.Later[i])
			}
			j.MayRedial = nil
			w.add("claimed by "+endpoint, struct {
				Number, KeptVersion uint64
				Delivery            store.Delivery
				Event               store.Event
				Kept                string
				Later               []store.Event
			}{j.Number, j.KeptVersion, j.Delivery, j.Event, string(j.Kept), j.Later}, nil)
		}
		if len(c.Jobs) == 0 {
			w.add("next of "+endpoint, c.Next.UTC(), nil)
			break
		}
	}
	if err := lane.Close(ctx); err != nil {
		w.Error(err)
	}
}

// plain is an event without what engines may store in different ways.
func plain(e store.Event) store.Event {
	e.At = e.At.UTC()
	if e.Call == "" {
		e.Sequence = 0
	}
	return e
}

// deliveries reads all deliveries with their attempts, the newest first.
func (w *whole) deliveries() {
	w.Helper()
	q := store.DeliveryQuery{Limit: 100}
	for {
		page, err := w.engine.Deliveries(context.Background(), q)
		if err != nil {
			w.Fatal(err)
		}
		for _, d := range page.Deliveries {
			view, attempts, err := w.engine.Delivery(context.Background(), d.EventID, d.Endpoint)
			w.add("delivery", []any{d, view, attempts}, err)
		}
		if q.Cursor = page.Cursor; q.Cursor == "" {
			return
		}
	}
}

// calls reads all calls.
func (w *whole) calls() {
	w.Helper()
	q := store.CallQuery{Limit: 100}
	var heads []store.CallHead
	for {
		list, err := w.engine.Calls(context.Background(), q)
		if err != nil {
			w.Fatal(err)
		}
		heads = append(heads, list.Calls...)
		if q.Cursor = list.Cursor; q.Cursor == "" {
			break
		}
	}
	keys := map[string]bool{}
	for _, h := range heads {
		h.Began, h.Latest = h.Began.UTC(), h.Latest.UTC()
		w.add("call", h, nil)
		for after := uint64(0); ; {
			page, err := w.engine.Call(context.Background(), h.CallID, after)
			w.add("events of the call", page, err)
			if after = page.Next; after == 0 {
				break
			}
		}
		route, err := w.engine.Route(context.Background(), h.CallID)
		w.add("route", route, err)
		keys[numbers.Key(h.From)], keys[numbers.Key(h.To)] = true, true
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		found, err := w.engine.Calls(context.Background(), store.CallQuery{Key: key, Limit: 100})
		w.add("calls of "+key, len(found.Calls), err)
	}
}

// others reads what belongs to no event.
func (w *whole) others() {
	w.Helper()
	ctx := context.Background()
	standing, err := w.engine.Standing(ctx)
	for name, s := range standing {
		s.LastRead = s.LastRead.UTC()
		standing[name] = s
	}
	w.add("standing", standing, err)
	for _, name := range slices.Sorted(maps.Keys(standing)) {
		oldest, err := w.engine.OldestPending(ctx, name)
		w.add("oldest pending for "+name, oldest.UTC(), err)
	}
	last, err := w.engine.LastNumber(ctx)
	w.add("last number", last, err)
	questions, err := w.engine.TakeQuestions(ctx)
	w.add("questions", questions, err)
	for _, n := range questions {
		q, err := w.engine.Question(ctx, n)
		q.Event = plain(q.Event)
		w.add("question", []any{q.Number, q.Event, q.Opened, q.Open, len(q.Asked)}, err)
	}
	redeliveries, err := w.engine.Redeliveries(ctx, 0, store.MaxRedeliveries)
	w.add("redeliveries", redeliveries, err)
	audits, err := w.engine.Audits(ctx, store.MaxAudits)
	w.add("audits", audits, err)
}
