package outbox

import (
	"slices"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// RulesOptions is what the rules of an outbox follow from.
type RulesOptions struct {
	Endpoints     []store.Endpoint
	RetrySchedule []time.Duration
	// OrderHold is how long an event that fails holds the later ones of its call; then they may
	// overtake it. It may last one attempt longer.
	OrderHold time.Duration
	// RoutingTimeout is how long it is of use to ask where a call should go.
	RoutingTimeout time.Duration
	// QuietWithoutWinner withholds from all endpoints that a call rings, or was answered, if it has
	// asked where to go and no endpoint wants it, or not yet. Otherwise all endpoints get it.
	QuietWithoutWinner bool
}

// Rules gives an engine what the outbox decides: which endpoint gets an event, and until when. What
// concerns the routes of calls is routing's.
func Rules(opts RulesOptions) store.Rules {
	byName := map[string]*store.Endpoint{}
	rules := store.Rules{Hold: opts.OrderHold, LongestWait: longestWait(opts.RetrySchedule, opts.OrderHold)}
	for i := range opts.Endpoints {
		e := &opts.Endpoints[i]
		byName[e.Name] = e
		rules.Endpoints = append(rules.Endpoints, e.Name)
	}
	rules.Reads = func(endpoint string) bool {
		e := byName[endpoint]
		return e != nil && e.Reads()
	}
	rules.IsFor = func(endpoint string, e *store.Event, route *telephony.Route) bool {
		to := byName[endpoint]
		return to != nil && to.Events.Match(e.Type) &&
			goesTo(e.Type, endpoint, route, opts.Endpoints, opts.QuietWithoutWinner)
	}
	rules.Expires = func(endpoint string, e *store.Event) time.Time {
		to := byName[endpoint]
		if to == nil {
			return time.Time{}
		}
		if life := lifetime(e.Type, opts.RoutingTimeout, to.RingingTTL); life > 0 {
			return e.At.Add(life)
		}
		return time.Time{}
	}
	return rules
}

// lifetime is how long it is of use to know of an event; 0 is for ever. A question about a live
// call, and the news that it rings or was answered, come too late after a while; that it is over
// never does.
func lifetime(kind telephony.EventType, routing, ringing time.Duration) time.Duration {
	switch kind {
	case telephony.EventTransferRequested:
		return routing
	case telephony.EventIncoming, telephony.EventIncomingAnswered,
		telephony.EventOutgoing, telephony.EventOutgoingAnswered:
		return ringing
	}
	return 0
}

// goesTo reports whether an event of a call goes to an endpoint that has subscribed to it. That the
// call rings, and was answered, is for the endpoint alone that won it; with quiet it is for none
// where there is no winner. Route is what the call has asked, nil if that says nothing of the
// event.
func goesTo(
	kind telephony.EventType, endpoint string, route *telephony.Route, endpoints []store.Endpoint, quiet bool,
) bool {
	rings := kind == telephony.EventIncoming || kind == telephony.EventIncomingAnswered
	if !rings || route == nil {
		return true
	}
	// The winner may be the operator, or configured no longer: then the event is for all.
	isKnown := slices.ContainsFunc(endpoints, func(e store.Endpoint) bool { return e.Name == route.Winner })
	if route.Outcome == telephony.RouteWon && isKnown {
		return endpoint == route.Winner
	}
	return !quiet
}

// longestWait is past any wait that there can be: a due time further ahead means that the clock was
// set back.
func longestWait(schedule []time.Duration, hold time.Duration) time.Duration {
	longest := max(maxRetryAfter, hold)
	for _, wait := range schedule {
		longest = max(longest, wait+wait/5)
	}
	return longest + time.Minute
}

// lifespan is how long a delivery can be on its way when it is tried by its schedule.
func lifespan(schedule []time.Duration) (sum time.Duration) {
	for _, wait := range schedule {
		sum += wait
	}
	return sum
}
