// Package routing asks the endpoints where a call goes, decides, and has the call transferred. A
// question takes this way:
//
//	engine: a question is stored ─► dispatcher: asks each endpoint ─► Sender
//	                                  │ replies, time is up
//	             POST /v1/transfers ─►▼
//	                                Router ── a change of the route, by Change ──► engine
//	                                  │ the first number wins
//	                                  ▼
//	                                Exchange: one Transfer
//
// What is decided is stored before the exchange gets it, so that no call is transferred twice,
// whatever happens in between.
package routing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Exchange is the session, as far as routing needs it.
type Exchange interface {
	Do(ctx context.Context, cmd telephony.Command) error
	// WaitConnected returns nil once there is a connection. It fails with ctx's error, or with
	// telephony.ErrNotConnected if there will be none any more.
	WaitConnected(ctx context.Context) error
}

// Policy says which answers count. Allow fails with a *telephony.NotAllowedError.
type Policy interface {
	Allow(by string, cmd telephony.Command) error
}

// Observer counts what is decided; took is the time since the question came.
type Observer interface {
	Decided(outcome telephony.RouteOutcome, took time.Duration)
}

// RouterOptions says what the router stands on.
type RouterOptions struct {
	Exchange Exchange
	Routes   store.Routes
	// DeclineOnSilence sends the empty Transfer when no endpoint wants a call; else nothing is sent
	// then.
	DeclineOnSilence bool
	Timeout          time.Duration // of a Transfer
	Policy           Policy        // may be nil: every answer is allowed
	Logger           *slog.Logger
	Observer         Observer // may be nil
}

// Router takes what endpoints and the operator answer, and writes the Transfer of what is decided:
// the first of them to answer with a number gets the call.
type Router struct {
	opts RouterOptions

	mu       sync.Mutex
	underWay map[string]*changes // by call
}

// changes are those of one call's route that are under way, each with the Transfer that it leads
// to.
type changes struct {
	count int
	done  chan struct{} // closed when none is any more
}

// NewRouter checks the options.
func NewRouter(opts RouterOptions) (*Router, error) {
	if opts.Exchange == nil || opts.Routes == nil || opts.Timeout <= 0 || opts.Logger == nil {
		return nil, errors.New("routing: RouterOptions.Exchange, Routes, Timeout and Logger must be set")
	}
	return &Router{opts: opts, underWay: map[string]*changes{}}, nil
}

// Settle decides the question that an event has opened if no endpoint is asked or its time is up,
// which timeUp says whatever the clock does, and writes a decision that surely was not written.
// NotAsked are endpoints that count as having given no answer.
func (r *Router) Settle(ctx context.Context, callID, eventID string, timeUp bool, notAsked []telephony.Reply) {
	r.changeQuietly(ctx, callID, telephony.RouteChange{
		Kind: telephony.RouteSettle, EventID: eventID, TimeUp: timeUp, Replies: notAsked,
	})
}

// NoAnswer takes that no answer to the question which an event has opened is to be expected of an
// endpoint any more.
func (r *Router) NoAnswer(ctx context.Context, callID, eventID, endpoint, why string) {
	r.changeQuietly(ctx, callID, telephony.RouteChange{
		Kind: telephony.RouteSettle, EventID: eventID,
		Replies: []telephony.Reply{{By: endpoint, Kind: telephony.ReplyNone, Why: why}},
	})
}

// changeQuietly is a change of which the log alone gets the error.
func (r *Router) changeQuietly(ctx context.Context, callID string, c telephony.RouteChange) {
	result, err := r.change(ctx, callID, c)
	switch {
	case err != nil:
		r.opts.Logger.Error("what was heard of a call that asks where to go cannot be kept",
			"call_id", callID, "err", err.Error())
	case result.Write:
		_ = r.write(ctx, result.After) // it has logged it
	}
}

// Answer takes an answer from an endpoint or the operator to the question that an event has opened,
// or to the latest of a call where its ID is empty; an empty number declines. Nil means that the
// number has won and the exchange has done the transfer, or that the decline is stored. Fails with
// telephony.ErrNeverAsked, ErrRouteClosed, ErrCallOver, ErrNotKept, a *telephony.DecidedError, or
// as a command does. With a *telephony.NotAllowedError it is as if the answer had not come.
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
	result, err := r.change(ctx, callID, telephony.RouteChange{
		Kind: telephony.RouteAnswer, EventID: eventID, Replies: []telephony.Reply{reply},
	})
	switch {
	case errors.Is(err, telephony.ErrNeverAsked):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", telephony.ErrNotKept, err)
	}
	if result.Write {
		err = r.write(ctx, result.After)
	}
	switch route := result.After; {
	case result.Stale:
		return telephony.ErrRouteClosed
	case route.Outcome == telephony.RouteOver, !route.Live(time.Now()):
		return telephony.ErrCallOver
	case result.WasOpen && to == "":
		return nil
	case route.Outcome == telephony.RouteClosed:
		return telephony.ErrRouteClosed
	case route.Winner != by || route.To != to:
		return &telephony.DecidedError{Winner: route.Winner, To: route.To}
	case !result.Write:
		return r.transferEnded(ctx, route)
	}
	return err
}

// transferEnded gives the winner that repeats its number how the Transfer has ended, once it has.
func (r *Router) transferEnded(ctx context.Context, route telephony.Route) error {
	r.wait(ctx, route.CallID)
	if route.Transfer == telephony.TransferWriting { // it may have ended since that was read
		kept, err := r.opts.Routes.Route(ctx, route.CallID)
		if err != nil {
			return fmt.Errorf("%w: %w", telephony.ErrNoAnswer, err)
		}
		if kept != nil && kept.EventID == route.EventID {
			route = *kept
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

// change changes a call's route. Where a Transfer is to be written for it, the caller writes it,
// which ends the change; any other change has ended.
func (r *Router) change(ctx context.Context, callID string, c telephony.RouteChange) (telephony.RouteResult, error) {
	r.begin(callID) // before another goroutine can see that a Transfer is being written
	c.ID, c.Now, c.DeclineOnSilence = uuid.NewString(), time.Now(), r.opts.DeclineOnSilence
	result, err := r.opts.Routes.ChangeRoute(ctx, callID, c)
	if err != nil || !result.Write {
		r.end(callID)
	}
	if err == nil && result.Decided && r.opts.Observer != nil {
		r.opts.Observer.Decided(result.After.Outcome, result.After.DecidedAt.Sub(result.After.AskedAt))
	}
	return result, err
}

func (r *Router) begin(callID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.underWay[callID]
	if c == nil {
		c = &changes{done: make(chan struct{})}
		r.underWay[callID] = c
	}
	c.count++
}

func (r *Router) end(callID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.underWay[callID]
	if c.count--; c.count == 0 {
		close(c.done)
		delete(r.underWay, callID)
	}
}

// wait waits until no change of a call is under way, or ctx ends.
func (r *Router) wait(ctx context.Context, callID string) {
	r.mu.Lock()
	c := r.underWay[callID]
	r.mu.Unlock()
	if c == nil {
		return
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

// write writes the Transfer of a route that was just decided, and stores how that went.
func (r *Router) write(ctx context.Context, route telephony.Route) error {
	defer r.end(route.CallID)
	err := r.transfer(ctx, route)
	c := telephony.RouteChange{
		Kind: telephony.RouteTransferEnded, EventID: route.EventID, Now: time.Now(), Transfer: telephony.TransferDone,
	}
	switch {
	case err == nil:
	case errors.Is(err, telephony.ErrNotConnected), errors.Is(err, telephony.ErrOutboxFull),
		errors.Is(err, telephony.ErrNotSent):
		c.Transfer, c.TransferError = telephony.TransferNotSent, err.Error()
	default:
		c.Transfer, c.TransferError = telephony.TransferFailed, err.Error()
	}
	errors.As(err, &c.Refused)
	// Also when the client that answered has gone, or the bridge is shutting down.
	_, storeErr := r.opts.Routes.ChangeRoute(context.WithoutCancel(ctx), route.CallID, c)
	took := c.Now.Sub(route.AskedAt).Round(time.Microsecond).String()
	args := []any{"call_id", route.CallID, "outcome", string(route.Outcome), "took", took}
	if route.Outcome == telephony.RouteWon {
		args = append(args, "winner", route.Winner)
	}
	if err := errors.Join(err, storeErr); err != nil {
		r.opts.Logger.Warn("call is decided, but that did not get through", append(args, "err", err.Error())...)
	} else {
		r.opts.Logger.Info("call is decided", args...)
	}
	return err
}

// transfer writes the Transfer once. While there is no connection nothing is written, and one that
// comes back in time is used.
func (r *Router) transfer(ctx context.Context, route telephony.Route) error {
	until := route.TransferBy()
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
	// Also when the client that answered has gone, or the bridge is shutting down: it is decided,
	// and a person is on the line.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.Timeout)
	defer cancel()
	return r.opts.Exchange.Do(ctx, cmd)
}
