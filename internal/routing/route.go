package routing

import (
	"slices"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Receive returns the function with which an engine updates a call's route by an event: a question
// opens the route, the end of the call closes it. Endpoints are those that may be asked; an answer
// counts for answerWithin.
func Receive(
	endpoints []store.Endpoint, answerWithin time.Duration,
) func(*store.NewEvent, *telephony.Route) (after *telephony.Route, asks, changed bool) {
	var asked []string
	for i := range endpoints {
		if endpoints[i].Events.Match(telephony.EventTransferRequested) {
			asked = append(asked, endpoints[i].Name)
		}
	}
	return func(e *store.NewEvent, route *telephony.Route) (after *telephony.Route, asks, changed bool) {
		switch {
		case e.Asks() && isNewQuestion(route, e):
			at := e.At.Truncate(time.Millisecond) // as it is stored, and as the endpoints get it
			return &telephony.Route{
				CallID:   e.Call,
				EventID:  e.ID.String(),
				From:     e.From,
				AskedAt:  at,
				AnswerBy: at.Add(answerWithin),
				Asked:    asked,
				Outcome:  telephony.RouteOpen,
			}, true, true
		case e.Asks():
			// The same call asks again: while the first question is open, an answer to this one
			// answers the first.
			return route, route.Outcome == telephony.RouteOpen, false
		case e.Type == telephony.EventCompleted && route != nil && route.OverAt.IsZero() && !isOlder(e, route):
			route.OverAt = e.At
			if route.Outcome == telephony.RouteOpen {
				route.Outcome, route.DecidedAt = telephony.RouteOver, e.At
			}
			return route, false, true
		}
		return route, false, false
	}
}

// isNewQuestion reports whether a question opens a new route: its call has none, or one of an ended
// call or of another caller, or no endpoint wanted the call when it asked before.
func isNewQuestion(route *telephony.Route, e *store.NewEvent) bool {
	return route == nil || !route.Live(e.At) || route.Outcome == telephony.RouteClosed || !route.IsOf(e.From)
}

// isOlder reports whether a replayed event belongs to an earlier call with the same ID as the one
// that has asked. The clock of the server may differ from ours by a minute.
func isOlder(e *store.NewEvent, route *telephony.Route) bool {
	return e.Replayed && !e.EndedAt.IsZero() && e.EndedAt.Before(route.AskedAt.Add(-time.Minute))
}

// Change applies a change to a route. It is the only place where a call is decided, and a pure
// function of the route and the change.
func Change(route *telephony.Route, c telephony.RouteChange) (result telephony.RouteResult) {
	result.WasOpen = route.Outcome == telephony.RouteOpen
	result.Stale = c.EventID != "" && c.EventID != route.EventID
	isRepeated := c.ID != "" && c.ID == route.WrittenBy
	switch {
	case result.Stale:
	case c.Kind == telephony.RouteTransferEnded:
		route.Transfer, route.TransferAt = c.Transfer, c.Now
		route.TransferError, route.TransferCause, route.Refused = c.TransferError, c.TransferCause, c.Refused
	case isRepeated:
		result.Write = route.Transfer == telephony.TransferWriting
	case c.Kind == telephony.RouteAnswer:
		result.Write = answer(route, c)
	case c.Kind == telephony.RouteSettle:
		result.Write = settle(route, c)
	}
	if result.Write && c.LeaveTransfer {
		result.Write, route.Transfer = false, telephony.TransferNotSent
	}
	if result.Write {
		route.WrittenBy = c.ID
	}
	result.Decided = result.WasOpen && route.Outcome != telephony.RouteOpen
	result.After = *route
	return result
}

// answer applies an answer, and reports whether a Transfer is to be written for it.
func answer(route *telephony.Route, c telephony.RouteChange) (write bool) {
	reply := c.Replies[0]
	if route.Outcome == telephony.RouteWon && route.Winner == reply.By && route.To == reply.To {
		// The winner repeats its number. If the exchange never got it, it is sent now.
		if write = route.Transfer == telephony.TransferNotSent && route.Live(c.Now); write {
			route.Transfer = telephony.TransferWriting
		}
		return write
	}
	addReply(route, reply, c.Now)
	return decide(route, c)
}

// settle applies what is known without an answer: endpoints that give none, the end of the time, a
// Transfer that certainly was not written. It reports whether a Transfer is to be written now.
func settle(route *telephony.Route, c telephony.RouteChange) (write bool) {
	if route.Outcome == telephony.RouteOpen {
		for _, reply := range c.Replies {
			addReply(route, reply, c.Now)
		}
	}
	if !c.TimeUp && route.Unsent(c.Now) {
		route.Transfer = telephony.TransferWriting
		return true
	}
	return decide(route, c)
}

// decide decides the question if that is possible now, and reports whether a Transfer is to be
// written for it.
func decide(route *telephony.Route, c telephony.RouteChange) (write bool) {
	now := c.Now
	if c.TimeUp && now.Before(route.AnswerBy) {
		now = route.AnswerBy // the clock was set back
	}
	outcome, number := outcomeOf(route, now)
	if outcome == route.Outcome {
		return false
	}
	route.Outcome, route.DecidedAt = outcome, now
	route.Winner, route.To = number.By, number.To
	if write = outcome == telephony.RouteWon || c.DeclineOnSilence; write {
		route.Transfer = telephony.TransferWriting
	}
	return write
}

// outcomeOf returns the outcome of a question by the endpoints that were asked, their replies in
// order of arrival, and the time. Number is the reply that has won.
func outcomeOf(r *telephony.Route, now time.Time) (outcome telephony.RouteOutcome, number telephony.Reply) {
	if r.Outcome != telephony.RouteOpen {
		return r.Outcome, telephony.Reply{}
	}
	replied := map[string]bool{}
	for _, reply := range r.Replies {
		if !reply.At.Before(r.AnswerBy) {
			continue
		}
		if reply.Kind == telephony.ReplyNumber {
			return telephony.RouteWon, reply
		}
		replied[reply.By] = true
	}
	isWaiting := slices.ContainsFunc(r.Asked, func(name string) bool { return !replied[name] })
	if !isWaiting || !now.Before(r.AnswerBy) {
		return telephony.RouteClosed, telephony.Reply{}
	}
	return telephony.RouteOpen, telephony.Reply{}
}

// maxReplies bounds the stored replies for a call that is answered over and over after the
// decision.
const maxReplies = 100

// addReply stores a reply. While the question is open, every reply is stored except repeated ones;
// since a number ends the question, these are few.
func addReply(route *telephony.Route, reply telephony.Reply, now time.Time) {
	reply.At = now
	isOpen := route.Outcome == telephony.RouteOpen
	isKnown := slices.ContainsFunc(route.Replies, func(r telephony.Reply) bool {
		isSame := r.By == reply.By && r.Kind == reply.Kind && r.To == reply.To
		return isSame && (isOpen || r.At.Equal(now)) // the same change may be applied more than once
	})
	if !isKnown && (isOpen || len(route.Replies) < maxReplies) {
		route.Replies = append(route.Replies, reply)
	}
}
