package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"pzbridge/internal/telephony"
)

// Ledger keeps the routes of calls.
type Ledger interface {
	// ChangeRoute applies a change to a call's route and returns when it is on the disk. The change may be applied more than once, each time to
	// the route as it stands. It fails with telephony.ErrNeverAsked.
	ChangeRoute(callID string, change func(*telephony.Route)) error
}

// Exchange is the session, as far as the router needs it.
type Exchange interface {
	Do(ctx context.Context, cmd telephony.Command) error
	// WaitConnected returns nil once there is a connection. It fails with ctx's error, or with telephony.ErrNotConnected if there will be none any more.
	WaitConnected(ctx context.Context) error
}

// Policy says which answers count. Allow fails with a *telephony.NotAllowedError.
type Policy interface {
	Allow(by string, cmd telephony.Command) error
}

// RouterOptions says what the router stands on.
type RouterOptions struct {
	Exchange Exchange
	Ledger   Ledger
	// DeclineOnSilence sends the empty Transfer when nobody wants a call; else nothing is sent then.
	DeclineOnSilence bool
	Timeout          time.Duration // of a Transfer
	Policy           Policy        // may be nil: every answer is allowed
	Logger           *slog.Logger
	Observer         Observer // may be nil
}

// Router lets the bridge speak for all its CRMs with one voice: the first of them to answer with a number gets the call. What it decides is in
// the ledger before the exchange hears of it, so that no call is transferred twice, whatever happens in between.
type Router struct {
	opts RouterOptions

	mu      sync.Mutex
	writing map[string]chan struct{} // by the event that asked, closed when its Transfer has ended
}

// NewRouter checks the options.
func NewRouter(opts RouterOptions) (*Router, error) {
	if opts.Exchange == nil || opts.Ledger == nil || opts.Timeout <= 0 || opts.Logger == nil {
		return nil, errors.New("relay: RouterOptions.Exchange, Ledger, Timeout and Logger must be set")
	}
	if opts.Observer == nil {
		opts.Observer = unobserved{}
	}
	return &Router{opts: opts, writing: map[string]chan struct{}{}}, nil
}

// verdict says how the question where a call goes stands, by whom was asked, what they replied in order of arrival, and the time. The number is the
// reply that has won.
func verdict(r telephony.Route, now time.Time) (outcome telephony.RouteOutcome, number telephony.Reply) {
	if r.Outcome != telephony.RouteOpen {
		return r.Outcome, telephony.Reply{}
	}
	out := map[string]bool{}
	for _, reply := range r.Replies {
		if !reply.At.Before(r.AnswerBy) {
			continue
		}
		if reply.Kind == telephony.ReplyNumber {
			return telephony.RouteWon, reply
		}
		out[reply.By] = true
	}
	waiting := slices.ContainsFunc(r.Asked, func(name string) bool { return !out[name] })
	if !waiting || !now.Before(r.AnswerBy) {
		return telephony.RouteClosed, telephony.Reply{}
	}
	return telephony.RouteOpen, telephony.Reply{}
}

// mostReplies bounds what is kept of a call that is answered over and over after it has been decided.
const mostReplies = 100

// settle decides, if it can be decided now, and says whether a Transfer is to be written for it.
func (r *Router) settle(route *telephony.Route, now time.Time) (write bool) {
	outcome, number := verdict(*route, now)
	if outcome == route.Outcome {
		return false
	}
	route.Outcome, route.DecidedAt = outcome, now
	route.Winner, route.To = number.By, number.To
	if outcome == telephony.RouteWon || r.opts.DeclineOnSilence {
		route.Transfer = telephony.TransferWriting
		return true
	}
	return false
}

// Settle closes the question where a call goes, which an event has asked, if nobody is asked or its time is up, which timeUp says whatever the clock does.
// What has been decided and surely was not written, while there is time to, is written now. Not asked are endpoints that count as having given no answer.
func (r *Router) Settle(ctx context.Context, callID, eventID string, timeUp bool, notAsked []telephony.Reply) {
	r.hear(ctx, callID, eventID, func(route *telephony.Route, now time.Time) bool {
		if route.Outcome == telephony.RouteOpen {
			for _, reply := range notAsked {
				note(route, reply, now)
			}
		}
		if !timeUp && route.Unsent(now) {
			route.Transfer = telephony.TransferWriting
			return true
		}
		if timeUp && now.Before(route.AnswerBy) {
			now = route.AnswerBy
		}
		return r.settle(route, now)
	})
}

// Out notes that to the question which an event has asked nothing is to be expected of an endpoint any more.
func (r *Router) Out(ctx context.Context, callID, eventID, endpoint, why string) {
	r.hear(ctx, callID, eventID, func(route *telephony.Route, now time.Time) bool {
		if route.Outcome != telephony.RouteOpen {
			return false
		}
		note(route, telephony.Reply{By: endpoint, Kind: telephony.ReplyOut, Why: why}, now)
		return r.settle(route, now)
	})
}

// hear is a change that nobody waits for. It is none where the call has asked anew since.
func (r *Router) hear(ctx context.Context, callID, eventID string, change func(*telephony.Route, time.Time) bool) {
	route, writing, err := r.change(callID, func(route *telephony.Route, now time.Time) bool {
		return route.EventID == eventID && change(route, now)
	})
	switch {
	case err != nil:
		r.opts.Logger.Error("what was heard of a call that asks where to go cannot be kept", "call_id", callID, "err", err.Error())
	case writing != nil:
		_ = r.write(ctx, route, writing) // it has logged it
	}
}

// Answer takes an answer from an endpoint or the operator to the question that an event has asked, or to the latest of a call where its ID is empty; an
// empty number declines. Nil means that the number has won and the exchange has done the transfer, or that the decline is noted. It fails with
// telephony.ErrNeverAsked, ErrRouteClosed, ErrCallOver, ErrNotKept, a *telephony.DecidedError, or as a command does.
// With a *telephony.NotAllowedError it is as if the answer had not come.
func (r *Router) Answer(ctx context.Context, callID, eventID, by, to string) error {
	if r.opts.Policy != nil {
		cmd := telephony.Command{Kind: telephony.CommandTransfer, CallID: callID, To: to}
		if err := r.opts.Policy.Allow(by, cmd); err != nil {
			return err
		}
	}
	reply := telephony.Reply{By: by, Kind: telephony.ReplyNumber, To: to}
	if to == "" {
		reply.Kind = telephony.ReplyDeclined
	}
	wasOpen, isLate := false, false
	route, writing, err := r.change(callID, func(route *telephony.Route, now time.Time) bool {
		if isLate = eventID != "" && eventID != route.EventID; isLate { // the call has asked anew since
			return false
		}
		wasOpen = route.Outcome == telephony.RouteOpen
		if route.Outcome == telephony.RouteWon && route.Winner == by && route.To == to {
			again := route.Transfer == telephony.TransferNotSent && route.Live(now)
			if again { // the exchange never got it, so it will be the first one still
				route.Transfer = telephony.TransferWriting
			}
			return again
		}
		note(route, reply, now)
		return r.settle(route, now)
	})
	switch {
	case errors.Is(err, telephony.ErrNeverAsked):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", telephony.ErrNotKept, err)
	}
	if writing != nil {
		err = r.write(ctx, route, writing)
	}
	switch {
	case isLate:
		return telephony.ErrRouteClosed
	case route.Outcome == telephony.RouteOver, !route.Live(time.Now()):
		return telephony.ErrCallOver
	case wasOpen && to == "":
		return nil
	case route.Outcome == telephony.RouteClosed:
		return telephony.ErrRouteClosed
	case route.Winner != by || route.To != to:
		return &telephony.DecidedError{Winner: route.Winner, To: route.To}
	case writing == nil:
		return r.ended(ctx, route)
	}
	return err
}

// ended tells the winner that says its number again how the Transfer has ended, once it has.
func (r *Router) ended(ctx context.Context, route telephony.Route) error {
	r.mu.Lock()
	writing := r.writing[route.EventID]
	r.mu.Unlock()
	if writing != nil {
		select {
		case <-writing:
		case <-ctx.Done():
		}
	}
	if route.Transfer == telephony.TransferWriting { // it may have ended since that was read
		if err := r.opts.Ledger.ChangeRoute(route.CallID, func(kept *telephony.Route) {
			if kept.EventID == route.EventID {
				route = *kept
			}
		}); err != nil {
			return fmt.Errorf("%w: %w", telephony.ErrNoAnswer, err)
		}
	}
	switch {
	case route.Transfer == telephony.TransferFailed && route.Refused != nil:
		return route.Refused
	case route.Transfer == telephony.TransferFailed, route.Transfer == telephony.TransferWriting:
		return telephony.ErrNoAnswer
	case route.Transfer == telephony.TransferNotSent:
		return telephony.ErrNotSent
	}
	return nil
}

// note keeps a reply. Of a question that is open, each counts that has not been given yet; a number ends it, so there are few.
func note(route *telephony.Route, reply telephony.Reply, now time.Time) {
	known := slices.ContainsFunc(route.Replies, func(r telephony.Reply) bool { return r.By == reply.By && r.Kind == reply.Kind && r.To == reply.To })
	reply.At = now
	if route.Outcome == telephony.RouteOpen && !known || route.Outcome != telephony.RouteOpen && len(route.Replies) < mostReplies {
		route.Replies = append(route.Replies, reply)
	}
}

// change changes a call's route and gives it as it is then. If a Transfer is to be written for it, it gives too what ends has to be told.
func (r *Router) change(
	callID string, change func(route *telephony.Route, now time.Time) (write bool),
) (after telephony.Route, writing chan struct{}, err error) {
	decided, write := false, false
	err = r.opts.Ledger.ChangeRoute(callID, func(route *telephony.Route) {
		wasOpen := route.Outcome == telephony.RouteOpen
		write = change(route, time.Now())
		decided = wasOpen && route.Outcome != telephony.RouteOpen
		after = *route
		if write {
			writing = r.begins(route.EventID) // before anybody can see that it is being written
		}
	})
	if writing != nil && (!write || err != nil) { // it was not stored, or was applied once more, to other ends
		r.ends(after.EventID, writing)
		writing = nil
	}
	if err == nil && decided {
		r.opts.Observer.Decided(after.Outcome, after.DecidedAt.Sub(after.AskedAt))
	}
	return after, writing, err
}

func (r *Router) begins(eventID string) (writing chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	writing = make(chan struct{})
	r.writing[eventID] = writing
	return writing
}

// ends tells who waits for a Transfer that it has ended. Another one may have begun since.
func (r *Router) ends(eventID string, writing chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(writing)
	if r.writing[eventID] == writing {
		delete(r.writing, eventID)
	}
}

// write writes the Transfer of a route that was just decided, and keeps how that went.
func (r *Router) write(ctx context.Context, route telephony.Route, writing chan struct{}) error {
	err := r.transfer(ctx, route)
	now := time.Now()
	state, text := telephony.TransferDone, ""
	switch {
	case err == nil:
	case errors.Is(err, telephony.ErrNotConnected), errors.Is(err, telephony.ErrOutboxFull), errors.Is(err, telephony.ErrNotSent):
		state, text = telephony.TransferNotSent, err.Error()
	default:
		state, text = telephony.TransferFailed, err.Error()
	}
	var refused *telephony.RefusedError
	errors.As(err, &refused)
	keepErr := r.opts.Ledger.ChangeRoute(route.CallID, func(kept *telephony.Route) {
		if kept.EventID == route.EventID {
			kept.Transfer, kept.TransferAt, kept.TransferError, kept.Refused = state, now, text, refused
		}
	})
	r.ends(route.EventID, writing)
	args := []any{"call_id", route.CallID, "outcome", string(route.Outcome), "took", now.Sub(route.AskedAt).Round(time.Microsecond).String()}
	if route.Outcome == telephony.RouteWon {
		args = append(args, "winner", route.Winner)
	}
	if err := errors.Join(err, keepErr); err != nil {
		r.opts.Logger.Warn("call is decided, but that did not get through", append(args, "err", err.Error())...)
	} else {
		r.opts.Logger.Info("call is decided", args...)
	}
	return err
}

// transfer writes the Transfer once. While there is no connection nothing is written, and one that comes back in time is used.
func (r *Router) transfer(ctx context.Context, route telephony.Route) error {
	until := route.SayBy()
	if route.Outcome == telephony.RouteClosed && !time.Now().Before(until) {
		return telephony.ErrNotSent // an answer with a number came in time, however long it took to store
	}
	cmd := telephony.Command{Kind: telephony.CommandTransfer, CallID: route.CallID, To: route.To}
	err := r.do(ctx, cmd)
	if !errors.Is(err, telephony.ErrNotConnected) {
		return err
	}
	waiting, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	if r.opts.Exchange.WaitConnected(waiting) != nil {
		return err
	}
	return r.do(ctx, cmd)
}

func (r *Router) do(ctx context.Context, cmd telephony.Command) error {
	// Also when whoever answered has gone, or the bridge is shutting down: it is decided, and a person is on the line.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.Timeout)
	defer cancel()
	return r.opts.Exchange.Do(ctx, cmd)
}
