package outbox

import (
	"slices"
	"time"

	"pzbridge/internal/phone"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// RulesOptions is the configuration from which the rules follow.
type RulesOptions struct {
	Endpoints     []store.Endpoint
	RetrySchedule []time.Duration
	// OrderHold is how long an event that has failed holds the later ones of its call; after that
	// they may overtake it. A hold may last one attempt longer.
	OrderHold time.Duration
	// RoutingTimeout is how long the answer to a question where a call should go is of use.
	RoutingTimeout time.Duration
	// QuietWithoutWinner withholds from all endpoints the events that a call rings or was answered,
	// if the call has asked where to go and no endpoint has won it (yet). Otherwise all endpoints
	// get them.
	QuietWithoutWinner bool
	Numbers            *phone.Plan // reads the numbers of calls
}

// Rules returns the rules of delivery for an engine: which endpoint gets an event, and until when.
// The rules for routes are those of package routing.
func Rules(opts RulesOptions) store.Rules {
	byName := map[string]*store.Endpoint{}
	rules := store.Rules{
		Hold:        opts.OrderHold,
		LongestWait: longestWait(opts.RetrySchedule, opts.OrderHold),
		NumberKey:   opts.Numbers.Key,
	}
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
			// The vendor's format holds what the exchange has sent, which is nothing of this.
			(to.Format != store.FormatPZ || e.Type != telephony.EventRecordingReady) &&
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

// lifetime is how long an event of a type is of use; 0 means for ever. A question about a live
// call, and the event that a call rings or was answered, become useless after a while; the end of a
// call never does.
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

// goesTo reports whether an endpoint that has subscribed to a type gets an event of it. That a call
// rings or was answered goes only to the endpoint that has won the call; without a winner to all,
// or with quiet to none. Route is the route of the call, or nil if there is none that applies to
// the event.
func goesTo(
	kind telephony.EventType, endpoint string, route *telephony.Route, endpoints []store.Endpoint, quiet bool,
) bool {
	rings := kind == telephony.EventIncoming || kind == telephony.EventIncomingAnswered
	if !rings || route == nil {
		return true
	}
	// The winner may be the operator, or an endpoint that is no longer configured: then all get the
	// event.
	isKnown := slices.ContainsFunc(endpoints, func(e store.Endpoint) bool { return e.Name == route.Winner })
	if route.Outcome == telephony.RouteWon && isKnown {
		return endpoint == route.Winner
	}
	return !quiet
}

// longestWait is longer than any wait for an attempt can be: a later due time means that the clock
// was set back.
func longestWait(schedule []time.Duration, hold time.Duration) time.Duration {
	longest := max(maxRetryAfter, hold)
	for _, wait := range schedule {
		longest = max(longest, wait+wait/5)
	}
	return longest + time.Minute
}

// lifespan is the sum of the waits of a schedule: how long a delivery can be pending because of it.
func lifespan(schedule []time.Duration) (sum time.Duration) {
	for _, wait := range schedule {
		sum += wait
	}
	return sum
}
