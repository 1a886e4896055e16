// Package routing asks the endpoints where a call goes, decides, and has the call transferred. The
// way of a question:
//
//	engine: a question is stored ─► Dispatcher: asks each endpoint ─► Sender
//	                                  │ replies, or the time is up
//	             POST /v1/transfers ─►▼
//	                                Router ─ a change of the route, by Change ─► engine
//	                                  │ the first number wins
//	                                  ▼
//	                                Exchange: one Transfer
//
// A decision is stored before the exchange gets it, so that no call is transferred twice, even if
// the process ends in between.
package routing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/repeat"
	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Exchange is the part of the session that routing uses.
type Exchange interface {
	Do(ctx context.Context, cmd telephony.Command) error
	// WaitConnected returns nil once there is a connection. Fails with the error of ctx, or with
	// telephony.ErrNotConnected if there will be none.
	WaitConnected(ctx context.Context) error
}

// Policy limits which answers count. Allow fails with a *telephony.NotAllowedError.
type Policy interface {
	Allow(by string, cmd telephony.Command) error
}

// Observer counts decisions; took is the time since the question was asked.
type Observer interface {
	Decided(outcome telephony.RouteOutcome, took time.Duration)
}

// RouterOptions configures a Router.
type RouterOptions struct {
	Exchange Exchange
	Routes   store.Routes
	// DeclineOnSilence sends an empty Transfer if no endpoint wants a call; otherwise nothing is
	// sent.
	DeclineOnSilence bool
	Timeout          time.Duration // of a Transfer
	Policy           Policy        // may be nil: every answer is allowed
	// Left lists the Transfers that bridges without a connection have left to this one, if several
	// share the outbox; nil if none does. Connected then reports whether this bridge is connected.
	Left      func(ctx context.Context, now time.Time) ([]telephony.Route, error)
	Connected func() bool
	Logger    *slog.Logger
	Observer  Observer // may be nil
}

// Router applies the answers of endpoints and the operator to routes, and writes the Transfer of
// each decision: the first to answer with a number gets the call.
type Router struct {
	opts RouterOptions

	mu         sync.Mutex
	inProgress map[string]*changes // by call
}

// changes counts the changes in progress of one call's route, each with the Transfer that it leads
// to.
type changes struct {
	count int
	done  chan struct{} // closed when the count reaches 0
}

// NewRouter returns a router, or an error if options are missing.
func NewRouter(opts RouterOptions) (*Router, error) {
	if opts.Exchange == nil || opts.Routes == nil || opts.Timeout <= 0 || opts.Logger == nil {
		return nil, errors.New("routing: RouterOptions.Exchange, Routes, Timeout and Logger must be set")
	}
	return &Router{opts: opts, inProgress: map[string]*changes{}}, nil
}

// Settle decides the question that an event has opened, if no endpoint is asked or its time is up,
// and writes a decision that certainly was not written. TimeUp means that the time is up whatever
// the clock shows. NotAsked are endpoints that count as having given no answer.
func (r *Router) Settle(ctx context.Context, callID, eventID string, timeUp bool, notAsked []telephony.Reply) {
	r.changeQuietly(ctx, callID, telephony.RouteChange{
		Kind: telephony.RouteSettle, EventID: eventID, TimeUp: timeUp, Replies: notAsked,
	})
}

// NoAnswer records that an endpoint will give no answer to the question which an event has opened.
func (r *Router) NoAnswer(ctx context.Context, callID, eventID, endpoint string, why error) {
	r.changeQuietly(ctx, callID, telephony.RouteChange{
		Kind: telephony.RouteSettle, EventID: eventID,
		Replies: []telephony.Reply{telephony.NoReply(endpoint, why)},
	})
}

// changeQuietly changes a route and writes the Transfer that follows. It logs errors and does not
// return them.
func (r *Router) changeQuietly(ctx context.Context, callID string, c telephony.RouteChange) {
	result, err := r.change(ctx, callID, c)
	switch {
	case err != nil:
		r.opts.Logger.Error("what was heard of a call that asks where to go cannot be kept",
			"call_id", callID, "err", err)
	case result.Write:
		_ = r.write(ctx, result.After) // write logs the error
	}
}

// Answer applies an answer from an endpoint or the operator to the question that an event has
// opened, or to the latest question of the call if the event's ID is empty; an empty number
// declines. Nil means that the number has won and the exchange has done the transfer, or that the
// decline is stored. Fails with telephony.ErrNeverAsked, ErrRouteClosed, ErrCallOver, ErrNotKept, a
// *telephony.DecidedError, or as a command does. After a *telephony.NotAllowedError the question is
// as if the answer had not come.
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
	if r.isShared() && isUnsent(err) { // another bridge may write it
		result.Write, result.After.Transfer = false, telephony.TransferNotSent
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
	case !result.Write && r.isShared():
		return r.writtenByAny(ctx, route)
	case !result.Write:
		return r.transferEnded(ctx, route)
	}
	return err
}

// isShared reports whether several bridges share the outbox.
func (r *Router) isShared() bool { return r.opts.Left != nil }

// lookAgain is how often a bridge looks for Transfers that are left to it, and at one that it has
// left to another bridge. A person waits on the line.
const lookAgain = 100 * time.Millisecond

// Run writes the Transfers that other bridges have left to this one, while it is connected, until
// ctx ends.
func (r *Router) Run(ctx context.Context) error {
	if !r.isShared() {
		<-ctx.Done()
		return nil
	}
	failures := repeat.New(r.opts.Logger)
	var writing sync.WaitGroup
	defer writing.Wait()
	var inProgress sync.Map // the IDs of the events that have opened the questions
	for sleep.For(ctx, lookAgain) {
		if !r.opts.Connected() {
			continue
		}
		left, err := r.opts.Left(ctx, time.Now())
		if err != nil && ctx.Err() == nil {
			failures.Failed("it is not known whether Transfers of other bridges are to be written", err)
			continue
		}
		failures.Recovered("Transfers of other bridges are looked for again")
		for _, route := range left {
			if _, isKnown := inProgress.LoadOrStore(route.EventID, true); isKnown {
				continue
			}
			writing.Go(func() { // which lasts as long as the exchange takes to answer
				defer inProgress.Delete(route.EventID)
				r.Settle(ctx, route.CallID, route.EventID, false, nil)
			})
		}
	}
	return nil
}

// writtenByAny waits until some bridge has written a Transfer, or the time for that is over, and
// returns what came of it.
func (r *Router) writtenByAny(ctx context.Context, route telephony.Route) error {
	until := route.TransferBy().Add(r.opts.Timeout)
	isOver := func(now time.Time) bool {
		switch route.Transfer {
		case telephony.TransferNotSent:
			return !route.Unsent(now)
		case telephony.TransferWriting:
			return !now.Before(until)
		}
		return true
	}
	for !isOver(time.Now()) && sleep.For(ctx, lookAgain) {
		kept, err := r.opts.Routes.Route(ctx, route.CallID)
		if err == nil && kept != nil && kept.EventID == route.EventID {
			route = *kept
		}
	}
	return endOfTransfer(route)
}

// transferEnded waits for the end of the Transfer and returns its error, for a winner that repeats
// its number.
func (r *Router) transferEnded(ctx context.Context, route telephony.Route) error {
	r.wait(ctx, route.CallID)
	if route.Transfer == telephony.TransferWriting { // it may have ended after the route was read
		kept, err := r.opts.Routes.Route(ctx, route.CallID)
		if err != nil {
			return fmt.Errorf("%w: %w", telephony.ErrNoAnswer, err)
		}
		if kept != nil && kept.EventID == route.EventID {
			route = *kept
		}
	}
	return endOfTransfer(route)
}

// endOfTransfer returns the error of a Transfer that has ended, or that has not in time.
func endOfTransfer(route telephony.Route) error {
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

// change applies a change to a call's route. If a Transfer is to be written for it, the caller
// writes it, which ends the change; any other change has ended on return.
func (r *Router) change(ctx context.Context, callID string, c telephony.RouteChange) (telephony.RouteResult, error) {
	r.begin(callID) // before another goroutine can see that a Transfer is being written
	c.ID, c.Now, c.DeclineOnSilence = uuid.NewString(), time.Now(), r.opts.DeclineOnSilence
	c.LeaveTransfer = r.isShared() && !r.opts.Connected()
	result, err := r.store(ctx, callID, c)
	if err != nil || !result.Write {
		r.end(callID)
	}
	if err == nil && result.Decided && r.opts.Observer != nil {
		r.opts.Observer.Decided(result.After.Outcome, result.After.DecidedAt.Sub(result.After.AskedAt))
	}
	return result, err
}

// storeFor is for how long a change is tried again whose outcome is not known.
const storeFor = 5 * time.Second

// store stores a change. With a database it may be stored although an error comes back: then the
// same change is tried again, which has no second effect, since nobody else can finish it.
func (r *Router) store(ctx context.Context, callID string, c telephony.RouteChange) (telephony.RouteResult, error) {
	result, err := r.opts.Routes.ChangeRoute(ctx, callID, c)
	for until := time.Now().Add(storeFor); r.isShared() && err != nil && time.Now().Before(until); {
		if errors.Is(err, telephony.ErrNeverAsked) || !sleep.For(ctx, transferRetryWait) {
			break
		}
		result, err = r.opts.Routes.ChangeRoute(ctx, callID, c)
	}
	return result, err
}

func (r *Router) begin(callID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.inProgress[callID]
	if c == nil {
		c = &changes{done: make(chan struct{})}
		r.inProgress[callID] = c
	}
	c.count++
}

func (r *Router) end(callID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.inProgress[callID]
	if c.count--; c.count == 0 {
		close(c.done)
		delete(r.inProgress, callID)
	}
}

// wait waits until no change of a call is under way, or ctx ends.
func (r *Router) wait(ctx context.Context, callID string) {
	r.mu.Lock()
	c := r.inProgress[callID]
	r.mu.Unlock()
	if c == nil {
		return
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

// write writes the Transfer of a route that was just decided, and stores its result.
func (r *Router) write(ctx context.Context, route telephony.Route) error {
	defer r.end(route.CallID)
	err := r.transfer(ctx, route)
	c := telephony.RouteChange{
		Kind: telephony.RouteTransferEnded, EventID: route.EventID, Now: time.Now(), Transfer: telephony.TransferDone,
	}
	switch {
	case err == nil:
	case isUnsent(err):
		c.Transfer = telephony.TransferNotSent
	default:
		c.Transfer = telephony.TransferFailed
	}
	if err != nil {
		c.TransferError, c.TransferCause = err.Error(), telephony.CauseOf(err)
	}
	errors.As(err, &c.Refused)
	// Also if the client that answered has disconnected, or the bridge is shutting down.
	_, storeErr := r.store(context.WithoutCancel(ctx), route.CallID, c)
	took := c.Now.Sub(route.AskedAt).Round(time.Microsecond).String()
	args := []any{"call_id", route.CallID, "outcome", string(route.Outcome), "took", took}
	if route.Outcome == telephony.RouteWon {
		args = append(args, "winner", route.Winner)
	}
	if err := errors.Join(err, storeErr); err != nil {
		r.opts.Logger.Warn("call is decided, but that did not get through", append(args, "err", err)...)
	} else {
		r.opts.Logger.Info("call is decided", args...)
	}
	return err
}

// isUnsent reports whether a Transfer was surely not written.
func isUnsent(err error) bool {
	return errors.Is(err, telephony.ErrNotConnected) || errors.Is(err, telephony.ErrOutboxFull) ||
		errors.Is(err, telephony.ErrNotSent)
}

// transfer writes the Transfer once. If there is no connection, it waits for one as long as the
// decision is of use.
func (r *Router) transfer(ctx context.Context, route telephony.Route) error {
	until := route.TransferBy()
	if route.Outcome == telephony.RouteClosed && !time.Now().Before(until) {
		return telephony.ErrNotSent // a number that has won came in time, however long it took to store it
	}
	cmd := telephony.Command{Kind: telephony.CommandTransfer, CallID: route.CallID, To: route.To}
	err := r.do(ctx, cmd)
	if !errors.Is(err, telephony.ErrNotConnected) || r.isShared() { // then another bridge may have a connection
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
	// Also if the client that answered has disconnected, or the bridge is shutting down: the call
	// is decided, and a caller waits on the line.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.Timeout)
	defer cancel()
	return r.opts.Exchange.Do(ctx, cmd)
}
