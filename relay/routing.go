package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
	// WaitConnected returns nil once there is a connection, or ctx's error.
	WaitConnected(ctx context.Context) error
}

// RouterOptions says what the router stands on.
type RouterOptions struct {
	Exchange Exchange
	Ledger   Ledger
	// DeclineOnSilence sends the empty Transfer when nobody wants a call; else nothing is sent then.
	DeclineOnSilence bool
	Timeout          time.Duration // of a Transfer
	Logger           *slog.Logger
	Observer         Observer // may be nil
}

// Router lets the bridge speak for all its CRMs with one voice: the first of them to answer with a number gets the call. What it decides is in
// the ledger before the exchange hears of it, so that no call is transferred twice, whatever happens in between.
type Router struct{ opts RouterOptions }

// NewRouter checks the options.
func NewRouter(opts RouterOptions) (*Router, error) {
	if opts.Exchange == nil || opts.Ledger == nil || opts.Timeout <= 0 || opts.Logger == nil {
		return nil, errors.New("relay: RouterOptions.Exchange, Ledger, Timeout and Logger must be set")
	}
	if opts.Observer == nil {
		opts.Observer = unobserved{}
	}
	return &Router{opts}, nil
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

// Settle closes the question where a call goes if nobody is asked or its time is up, which timeUp says whatever the clock does.
func (r *Router) Settle(ctx context.Context, callID string, timeUp bool) {
	r.hear(ctx, callID, func(route *telephony.Route, now time.Time) bool {
		if timeUp && now.Before(route.AnswerBy) {
			now = route.AnswerBy
		}
		return r.settle(route, now)
	})
}

// Out notes that nothing is to be expected of an endpoint any more.
func (r *Router) Out(ctx context.Context, callID, endpoint, why string) {
	r.hear(ctx, callID, func(route *telephony.Route, now time.Time) bool {
		if route.Outcome != telephony.RouteOpen {
			return false
		}
		note(route, telephony.Reply{By: endpoint, Kind: telephony.ReplyOut, Why: why}, now)
		return r.settle(route, now)
	})
}

// hear is a change that nobody waits for.
func (r *Router) hear(ctx context.Context, callID string, change func(*telephony.Route, time.Time) bool) {
	route, write, err := r.change(callID, change)
	switch {
	case err != nil:
		r.opts.Logger.Error("what was heard of a call that asks where to go cannot be kept", "call_id", callID, "err", err.Error())
	case write:
		_ = r.write(ctx, route) // it has logged it
	}
}

// Answer takes an answer from an endpoint or the operator; an empty number declines. Nil means that the number has won and the exchange has done the
// transfer, or that the decline is noted. It fails with telephony.ErrNeverAsked, ErrRouteClosed, ErrCallOver, ErrNotKept, a *telephony.DecidedError,
// or as a command does.
func (r *Router) Answer(ctx context.Context, callID, by, to string) error {
	reply := telephony.Reply{By: by, Kind: telephony.ReplyNumber, To: to}
	if to == "" {
		reply.Kind = telephony.ReplyDeclined
	}
	wasOpen := false
	route, write, err := r.change(callID, func(route *telephony.Route, now time.Time) bool {
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
	if write {
		err = r.write(ctx, route)
	}
	switch {
	case route.Outcome == telephony.RouteOver, !route.Live(time.Now()):
		return telephony.ErrCallOver
	case wasOpen && to == "":
		return nil
	case route.Outcome == telephony.RouteClosed:
		return telephony.ErrRouteClosed
	case route.Winner != by || route.To != to:
		return &telephony.DecidedError{Winner: route.Winner, To: route.To}
	}
	return err
}

// note keeps a reply. Of a question that is open, each counts that has not been given yet; a number ends it, so there are few.
func note(route *telephony.Route, reply telephony.Reply, now time.Time) {
	known := slices.ContainsFunc(route.Replies, func(r telephony.Reply) bool { return r.By == reply.By && r.Kind == reply.Kind && r.To == reply.To })
	reply.At = now
	if route.Outcome == telephony.RouteOpen && !known || route.Outcome != telephony.RouteOpen && len(route.Replies) < mostReplies {
		route.Replies = append(route.Replies, reply)
	}
}

// change changes a call's route, gives it as it is then, and says whether a Transfer is to be written for it.
func (r *Router) change(callID string, change func(route *telephony.Route, now time.Time) (write bool)) (after telephony.Route, write bool, err error) {
	decided := false
	err = r.opts.Ledger.ChangeRoute(callID, func(route *telephony.Route) {
		wasOpen := route.Outcome == telephony.RouteOpen
		write = change(route, time.Now())
		decided = wasOpen && route.Outcome != telephony.RouteOpen
		after = *route
	})
	if err == nil && decided {
		r.opts.Observer.Decided(after.Outcome, after.DecidedAt.Sub(after.AskedAt))
	}
	return after, write, err
}

// write writes the Transfer of a route that was just decided, and keeps how that went.
func (r *Router) write(ctx context.Context, route telephony.Route) error {
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
	keepErr := r.opts.Ledger.ChangeRoute(route.CallID, func(kept *telephony.Route) {
		if kept.EventID == route.EventID {
			kept.Transfer, kept.TransferAt, kept.TransferError = state, now, text
		}
	})
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
	until := sayBy(route)
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

// sayBy is until when a decision is told. That nobody wants the call is decided when the time is up; a bridge that was down just then tells it as long
// again after that, while the caller may still be waiting.
func sayBy(route telephony.Route) time.Time {
	if route.Outcome == telephony.RouteWon {
		return route.AnswerBy
	}
	return route.AnswerBy.Add(route.AnswerBy.Sub(route.AskedAt))
}

func (r *Router) do(ctx context.Context, cmd telephony.Command) error {
	// Also when whoever answered has gone, or the bridge is shutting down: it is decided, and a person is on the line.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.Timeout)
	defer cancel()
	return r.opts.Exchange.Do(ctx, cmd)
}
