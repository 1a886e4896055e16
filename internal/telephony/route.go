package telephony

import (
	"errors"
	"fmt"
	"time"
)

// Route is the question where a call should go, and what has become of it. There is one for each
// call that has asked.
type Route struct {
	CallID  string
	EventID string // of the event that has asked
	From    string `json:",omitempty"` // the caller, as the exchange says; empty where it does not
	AskedAt time.Time
	// AnswerBy is until when an answer is of use.
	AnswerBy time.Time
	Asked    []string // endpoints
	Replies  []Reply  // in the order in which they came
	Outcome  RouteOutcome
	Winner   string // who answered with a number first: an endpoint or the operator
	To       string // that number
	// DecidedAt is when the question was closed; zero while it is open.
	DecidedAt time.Time
	OverAt    time.Time // when the call was over; zero before
	Transfer  TransferState
	// TransferAt is when the exchange answered, or when it was clear that it would not;
	// TransferError is why it was not done.
	TransferAt    time.Time
	TransferError string
	// WrittenBy is the ID of the change whose caller writes the Transfer.
	WrittenBy string        `json:",omitempty"`
	Refused   *RefusedError `json:",omitempty"` // the exchange's "no"; nil where a Transfer failed since no answer came
}

// routeLife is how long a decision holds for a call that is never reported to be over.
const routeLife = 24 * time.Hour

// Live says whether the route still says something about a call that goes on.
func (r Route) Live(now time.Time) bool { return r.OverAt.IsZero() && now.Sub(r.AskedAt) < routeLife }

// IsOf says whether a question that comes with the route's call ID is of the same caller. Where one
// of the two has no number, it is. Servers begin their call IDs anew when they are restarted.
func (r Route) IsOf(from string) bool { return r.From == "" || from == "" || r.From == from }

// Covers says whether what was told of the call at a time belongs to the call that has asked, not
// to another with its ID before or after it.
func (r Route) Covers(at time.Time) bool {
	return !at.Before(r.AskedAt) && at.Sub(r.AskedAt) < routeLife && (r.OverAt.IsZero() || !at.After(r.OverAt))
}

// SayBy is until when a decision is told. That nobody wants the call is decided when the time is
// up; a bridge that was down just then tells it as long again after that, while the caller may
// still be waiting.
func (r Route) SayBy() time.Time {
	if r.Outcome == RouteWon {
		return r.AnswerBy
	}
	return r.AnswerBy.Add(r.AnswerBy.Sub(r.AskedAt))
}

// Unsent says whether a decision surely has not reached the exchange, and there is still time to
// tell it.
func (r Route) Unsent(now time.Time) bool {
	return r.Transfer == TransferNotSent && r.Live(now) && now.Before(r.SayBy())
}

// RouteOutcome is where the question stands.
type RouteOutcome string

// The outcomes.
const (
	RouteOpen   RouteOutcome = "open"
	RouteWon    RouteOutcome = "won"    // Winner wants the call at To
	RouteClosed RouteOutcome = "closed" // nobody wants it, or nobody said so in time
	RouteOver   RouteOutcome = "over"   // the call was over before anybody answered
)

// TransferState is what became of the Transfer that a decision leads to. It goes to the exchange
// once at most.
type TransferState string

// The states of a Transfer; empty when there is nothing to write.
const (
	TransferWriting TransferState = "writing" // also after a crash at that moment: it may have been written
	TransferDone    TransferState = "done"
	TransferNotSent TransferState = "not_sent" // it surely was not written
	TransferFailed  TransferState = "failed"   // refused, or written and not answered
)

// Reply is what came of asking one bearer of a token or one endpoint.
type Reply struct {
	By   string
	At   time.Time
	Kind ReplyKind
	To   string // of a ReplyNumber
	Why  string // of a ReplyNone
}

// ReplyKind says what a Reply is.
type ReplyKind string

// The kinds of replies.
const (
	ReplyNumber   ReplyKind = "number"   // send the call to To
	ReplyDeclined ReplyKind = "declined" // it does not want the call
	ReplyNone     ReplyKind = "out"      // nothing is to be expected of it any more
)

// How an answer to the question where a call should go can be too late, or out of place. See
// DecidedError too.
var (
	// ErrNeverAsked means that the call has not asked where to go, or so long ago that nothing is
	// known of it.
	ErrNeverAsked = errors.New("this call has not asked where to go")
	// ErrRouteClosed means that the question was closed without a winner.
	ErrRouteClosed = errors.New("the question where this call goes is closed: " +
		"nobody had answered with a number in time")
	// ErrNotKept means that a decision could not be stored; nothing was sent.
	ErrNotKept = errors.New("the answer could not be stored in the outbox, so the call was not transferred")
	// ErrCallOver means that there is no call any more.
	ErrCallOver = errors.New("the call is over")
)

// DecidedError says that a call goes somewhere else already.
type DecidedError struct{ Winner, To string }

func (e *DecidedError) Error() string {
	return fmt.Sprintf("the call goes to %s: %s answered first", e.To, e.Winner)
}

// RouteChange is a change of a route, as a value: an engine may apply it more than once, each time
// to the route as it stands.
type RouteChange struct {
	// ID tells one change from the next: the same change once more changes nothing, and gives its
	// caller the Transfer to write again, if it was to.
	ID   string
	Kind RouteChangeKind
	// EventID is that of the event which has opened the question. The change is none where the call
	// has asked again since. It may be empty in a RouteAnswer, which then is for the latest
	// question.
	EventID string
	// Replies are added: the answer of a RouteAnswer, or the endpoints that give none.
	Replies []Reply
	// Now is the time of the change.
	Now time.Time
	// TimeUp says that the time for answers is over, whatever the clock says.
	TimeUp bool
	// DeclineOnSilence says that an empty Transfer is to be written where no endpoint wants the
	// call.
	DeclineOnSilence bool
	// Transfer, TransferError and Refused are what became of a Transfer, in a RouteTransferEnded.
	Transfer      TransferState
	TransferError string
	Refused       *RefusedError
}

// RouteChangeKind says what a RouteChange is.
type RouteChangeKind string

// The kinds of changes.
const (
	RouteAnswer        RouteChangeKind = "answer"         // a number or a decline
	RouteSettle        RouteChangeKind = "settle"         // decide what can be decided by now
	RouteTransferEnded RouteChangeKind = "transfer_ended" // the exchange has answered, or will not

)

// RouteResult is what a change has led to.
type RouteResult struct {
	After   Route
	WasOpen bool // before the change
	Decided bool // by the change
	// Write says that the caller is to write the Transfer: it is marked as being written.
	Write bool
	// Stale says that the call has asked again since, so that nothing was changed.
	Stale bool
}
