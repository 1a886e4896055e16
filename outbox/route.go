package outbox

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"pzbridge/internal/telephony"
)

// route gives what is kept of the question where a call goes, nil if it has never asked.
func (tx *txn) route(call string) (*telephony.Route, error) {
	v := tx.routes.Get(callKey(call))
	if v == nil {
		return nil, nil
	}
	var r telephony.Route
	if err := json.Unmarshal(v, &r); err != nil {
		return nil, fmt.Errorf("the route of call %s: %w", call, errDamaged)
	}
	return &r, nil
}

func (tx *txn) putRoute(r telephony.Route) error {
	v, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.routes.Put(callKey(r.CallID), v)
}

// ChangeRoute applies a change to what is kept of the question where a call goes, and returns when it is on the disk. The change may be applied more
// than once, each time to the route as it stands. It fails with telephony.ErrNeverAsked.
func (o *Outbox) ChangeRoute(callID string, change func(*telephony.Route)) error {
	return o.store.commit(func(tx *txn) error {
		r, err := tx.route(callID)
		if err != nil {
			return err
		}
		if r == nil {
			return telephony.ErrNeverAsked
		}
		change(r)
		return tx.putRoute(*r)
	})
}

// asks says whether an event is a question that somebody waits for.
func (r *record) asks() bool {
	return r.kind == telephony.EventTransferRequested && r.call != "" && !r.replayed
}

// isOlder says whether an event that is replayed tells of a call that bore the same ID before the one which has asked. The server's clock may differ from ours
// by a minute.
func (r *record) isOlder(route telephony.Route) bool {
	return r.replayed && !r.endedAt.IsZero() && r.endedAt.Before(route.AskedAt.Add(-time.Minute))
}

// reception is what an event that is being stored means for the route of its call, and what that means for the event.
type reception struct {
	asking bool             // the endpoints are to be asked now
	route  *telephony.Route // of the call as it stands then; nil if it has never asked
}

// receive brings the route of an event's call up to date.
func (s *store) receive(tx *txn, r *record) (reception, error) {
	switch r.kind {
	case telephony.EventTransferRequested, telephony.EventIncoming, telephony.EventIncomingAnswered, telephony.EventCompleted:
	default:
		return reception{}, nil
	}
	if r.call == "" {
		return reception{}, nil
	}
	route, err := tx.route(r.call)
	if err != nil {
		route = nil // a record that is damaged must keep no event from being stored; the next question writes it anew
	}
	switch {
	case r.asks() && isNewQuestion(route, r):
		at := r.at.Truncate(time.Millisecond) // as it is stored, and as the endpoints are told
		opened := telephony.Route{
			CallID: r.call, EventID: r.id.String(), From: r.from, AskedAt: at, AnswerBy: at.Add(s.routing), Asked: s.subscribers(r.kind), Outcome: telephony.RouteOpen,
		}
		return reception{asking: true, route: &opened}, tx.putRoute(opened)
	case r.asks():
		// The same call asks again: as long as the first question is open, an answer to this one is an answer too.
		return reception{asking: route.Outcome == telephony.RouteOpen, route: route}, nil
	case r.kind == telephony.EventCompleted && route != nil && route.OverAt.IsZero() && !r.isOlder(*route):
		route.OverAt = r.at
		if route.Outcome == telephony.RouteOpen {
			route.Outcome, route.DecidedAt = telephony.RouteOver, r.at
		}
		return reception{route: route}, tx.putRoute(*route)
	}
	return reception{route: route}, nil
}

// isNewQuestion says whether a question opens a route of its own: nothing is known of its call, that
// is over or another caller's, or nobody wanted it when it asked before.
func isNewQuestion(route *telephony.Route, r *record) bool {
	return route == nil || !route.Live(r.at) || route.Outcome == telephony.RouteClosed || !route.IsOf(r.from)
}

// subscribers names the endpoints that get events of a type.
func (s *store) subscribers(kind telephony.EventType) (names []string) {
	for i := range s.endpoints {
		if s.endpoints[i].Events.Match(kind) {
			names = append(names, s.endpoints[i].Name)
		}
	}
	return names
}

// rings says whether an event tells that a call rings, or was answered.
func rings(kind telephony.EventType) bool {
	return kind == telephony.EventIncoming || kind == telephony.EventIncomingAnswered
}

// goesTo says whether an event of a call goes to an endpoint that has subscribed to it. That the call rings, and was answered, is for the endpoint alone
// that wanted it; quiet says that it is for nobody when there is none. Route is what the call has asked, nil if that says nothing.
func goesTo(kind telephony.EventType, endpoint string, route *telephony.Route, endpoints []Endpoint, quiet bool) bool {
	if !rings(kind) || route == nil {
		return true
	}
	// The operator may have won, or an endpoint that is configured no longer: nobody is left to be told alone.
	known := slices.ContainsFunc(endpoints, func(e Endpoint) bool { return e.Name == route.Winner })
	if route.Outcome == telephony.RouteWon && known {
		return endpoint == route.Winner
	}
	return !quiet
}
