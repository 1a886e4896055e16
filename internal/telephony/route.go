package telephony

import (
	"fmt"
	"time"
)

// Route is the question where a call should go, with its replies, its outcome and the Transfer that
// follows. Each call that asks has one.
type Route struct {
	CallID  string
	EventID string // of the event that opened the question
	From    string `json:",omitempty"` // the caller's number; empty where the exchange sends none
	AskedAt time.Time
	// AnswerBy is the end of the time in which an answer counts.
	AnswerBy time.Time
	Asked    []string // endpoints
	Replies  []Reply  // in the order in which they came
	Outcome  RouteOutcome
	Winner   string // the first to answer with a number: an endpoint or the operator
	To       string // that number
	// DecidedAt is when the question was closed; zero while it is open.
	DecidedAt time.Time
	OverAt    time.Time // when the call ended; zero before
	Transfer  TransferState
	// TransferAt is when the exchange answered, or when no answer could come any more.
	// TransferError is why the Transfer was not done.
	TransferAt    time.Time
	TransferError string
	TransferCause Cause `json:",omitzero"` // of TransferError
	// WrittenBy is the ID of the change whose caller writes the Transfer.
	WrittenBy string        `json:",omitempty"`
	Refused   *RefusedError `json:",omitempty"` // nil where a Transfer failed without an answer
}

// routeLife bounds the validity of a decision where the exchange never reports the end of the call.
const routeLife = 24 * time.Hour

// Live reports whether the route applies to a call that is still going on.
func (r Route) Live(now time.Time) bool { return r.OverAt.IsZero() && now.Sub(r.AskedAt) < routeLife }

// IsOf reports whether a question with the route's call ID comes from the same caller. It assumes
// so where one of the two has no number. The caller counts because servers reuse their call IDs
// after a restart.
func (r Route) IsOf(from string) bool { return r.From == "" || from == "" || r.From == from }

// Covers reports whether an event of a given time belongs to the call that asked, and not to an
// earlier or later call with the same ID.
func (r Route) Covers(at time.Time) bool {
	return !at.Before(r.AskedAt) && at.Sub(r.AskedAt) < routeLife && (r.OverAt.IsZero() || !at.After(r.OverAt))
}

// TransferBy is the end of the time in which a decision is sent to the exchange. That no endpoint
// wants the call is decided when the time for answers is over; a bridge that was down at that
// moment sends it for as long again after that, while the caller may still be waiting.
func (r Route) TransferBy() time.Time {
	if r.Outcome == RouteWon {
		return r.AnswerBy
	}
	return r.AnswerBy.Add(r.AnswerBy.Sub(r.AskedAt))
}

// Unsent reports whether a decision certainly has not reached the exchange and there is still time
// to send it.
func (r Route) Unsent(now time.Time) bool {
	return r.Transfer == TransferNotSent && r.Live(now) && now.Before(r.TransferBy())
}

// RouteOutcome is the state of the question.
type RouteOutcome string

// The outcomes.
const (
	RouteOpen   RouteOutcome = "open"
	RouteWon    RouteOutcome = "won"    // Winner wants the call at To
	RouteClosed RouteOutcome = "closed" // no endpoint wants the call, or none answered with a number in time
	RouteOver   RouteOutcome = "over"   // the call ended before an answer came
)

// TransferState is the state of the Transfer that a decision leads to. The exchange gets it once at
// most.
type TransferState string

// The states of a Transfer; the empty state means that none is to be written.
const (
	TransferWriting TransferState = "writing" // also after a crash at that moment: it may have been written
	TransferDone    TransferState = "done"
	TransferNotSent TransferState = "not_sent" // it certainly was not written
	TransferFailed  TransferState = "failed"   // refused, or written and not answered
)

// Reply is a reply of an endpoint, or of the bearer of a token, to the question; a ReplyNone
// records that there will be none.
type Reply struct {
	By    string
	At    time.Time
	Kind  ReplyKind
	To    string // the number of a ReplyNumber
	Why   string // the reason of a ReplyNone
	Cause Cause  `json:",omitzero"` // of Why
}

// NoReply returns the reply of an endpoint that gives none, with the reason.
func NoReply(endpoint string, why error) Reply {
	return Reply{By: endpoint, Kind: ReplyNone, Why: why.Error(), Cause: CauseOf(why)}
}

// ReplyKind is the kind of a Reply.
type ReplyKind string

// The kinds of replies.
const (
	ReplyNumber   ReplyKind = "number"   // send the call to To
	ReplyDeclined ReplyKind = "declined" // the endpoint does not want the call
	ReplyNone     ReplyKind = "out"      // no answer can come from it any more
)

// The ways in which an answer to the question where a call should go can be too late, or have no
// effect. See DecidedError too.
var (
	// ErrNeverAsked means that the call has not asked where to go, or that its route is no longer
	// stored.
	ErrNeverAsked = &Fault{Code: CodeNeverAsked, Text: "this call has not asked where to go"}
	// ErrRouteClosed means that the question was closed without a winner.
	ErrRouteClosed = &Fault{
		Code: CodeRouteClosed,
		Text: "the question where this call goes is closed: nobody had answered with a number in time",
	}
	// ErrNotKept means that a decision could not be stored; nothing was sent.
	ErrNotKept = &Fault{
		Code: CodeNotKept,
		Text: "the answer could not be stored in the outbox, so the call was not transferred",
	}
	// ErrCallOver means that the call has ended.
	ErrCallOver = &Fault{Code: CodeCallOver, Text: "the call is over"}
)

// DecidedError means that the call already goes to another number.
type DecidedError struct{ Winner, To string }

func (e *DecidedError) Error() string {
	return fmt.Sprintf("the call goes to %s: %s answered first", e.To, e.Winner)
}

// Cause returns the code with the number and who has answered with it.
func (e *DecidedError) Cause() Cause { return Cause{CodeDecided, []string{e.To, e.Winner}} }

// RouteChange is a change of a route, as a value: an engine may apply it more than once, each time
// to the route as it is then.
type RouteChange struct {
	// ID identifies the change. Applied again, the same change has no effect, and its result
	// requests the Transfer again if the first one did.
	ID   string
	Kind RouteChangeKind
	// EventID is the event that opened the question. The change has no effect where the call has
	// asked again since. A RouteAnswer may leave it empty, and then applies to the latest question.
	EventID string
	// Replies are added to the route: the answer of a RouteAnswer, or the endpoints that give none.
	Replies []Reply
	// Now is the time of the change.
	Now time.Time
	// TimeUp means that the time for answers is over, whatever Now is: the clock may have been set
	// back.
	TimeUp bool
	// DeclineOnSilence means that an empty Transfer is to be written where no endpoint wants the
	// call.
	DeclineOnSilence bool
	// LeaveTransfer means that the caller writes no Transfer: a bridge that is connected will.
	LeaveTransfer bool
	// Transfer, TransferError with its cause, and Refused are the result of a Transfer, in a
	// RouteTransferEnded.
	Transfer      TransferState
	TransferError string
	TransferCause Cause
	Refused       *RefusedError
}

// RouteChangeKind is the kind of a RouteChange.
type RouteChangeKind string

// The kinds of changes.
const (
	RouteAnswer        RouteChangeKind = "answer"         // a number or a decline
	RouteSettle        RouteChangeKind = "settle"         // decide what can be decided now
	RouteTransferEnded RouteChangeKind = "transfer_ended" // the exchange has answered, or will not
)

// RouteResult is the effect of a change.
type RouteResult struct {
	After   Route
	WasOpen bool // before the change
	Decided bool // by the change
	// Write means that the caller is to write the Transfer, which is marked as being written.
	Write bool
	// Stale means that the call has asked again since, so that nothing was changed.
	Stale bool
}
