package store

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/telephony"
)

// Sender brings deliveries to one endpoint. The sender decides what a response means, since a 200
// can be an error. Its methods may be called concurrently, but never for two deliveries of the same
// call.
type Sender interface {
	// Send makes one attempt, and returns at the latest when ctx ends. It makes one request that
	// changes something at the endpoint, so that a kill loses one response at most: if more are
	// needed, it returns More with the bytes to keep. No text in the Outcome contains a secret.
	Send(ctx context.Context, j Job) Outcome
	// Close closes the connections that are not in use.
	Close()
}

// CallSender is a Sender whose jobs contain the bytes that it kept for the call, and the later
// events of the call.
type CallSender interface {
	Sender
	NeedsCall()
}

// Forgetter is a Sender that keeps something of numbers beside its calls.
type Forgetter interface {
	Sender
	// Forget removes what it keeps of a number. Key is of the number: see Rules.NumberKey.
	Forget(ctx context.Context, key string) error
}

// Job is a delivery to be made.
type Job struct {
	Number   uint64 // of the event
	Delivery Delivery
	Event    Event
	EventID  string // the event's ID as text
	// IsQuestion means that a caller waits on the line for the answer, so that the reply in the
	// response counts.
	IsQuestion bool
	// MayRedial is called before a request is sent once more within the attempt, after a connection
	// has failed, and reports whether it may be. Nil always allows it.
	MayRedial func() bool

	// The fields below are set for a CallSender only.

	// Kept are the bytes that the sender has kept for this call at this endpoint, nil if none.
	// KeptVersion counts how often they were stored.
	Kept        []byte
	KeptVersion uint64
	// Later are the call's later events that are already stored, in order, MaxLater at most.
	Later []Event
}

const (
	// MaxLater is the largest number of later events in a Job.
	MaxLater = 16
	// MaxKept is the largest number of bytes that a sender may keep for a call.
	MaxKept = 4 << 10
	// MaxSteps is the largest number of steps of an attempt that are stored.
	MaxSteps = 8
)

// Verdict is the meaning of an attempt for its delivery.
type Verdict int

// The verdicts. The zero value means that there is no outcome: ctx has cut the sender off.
const (
	CutOff Verdict = iota // the outcome is unknown: the attempt is made again
	Done
	Again // a failure: retried by the schedule, after RetryAfter at the earliest
	// Gone: the endpoint reports itself that it is gone. The delivery is dead, and the attempt
	// counts as a failure.
	Gone
	// Later: this delivery is tried again after RetryAfter. That uses up no wait of the schedule,
	// does not affect the health of the endpoint and starts no hold.
	Later
	// Pause: the endpoint gets nothing for RetryAfter, otherwise as Later.
	Pause
	// Misconfigured: nothing can be delivered until a person changes something. The delivery is
	// kept; the endpoint counts as failing at once, and is probed.
	Misconfigured
	// Refused: this delivery alone is dead; the endpoint is healthy.
	Refused
	// More: the bytes in Keep are stored, and the same job comes again at once.
	More
)

// Outcome is the result of an attempt.
type Outcome struct {
	Verdict  Verdict
	Status   int    // the HTTP status; 0 if there was no response
	Response string // the beginning of the response's body, without secrets; or see NothingToSend
	Err      error  // why there was no response; contains no secret
	// RetryAfter is the least wait before the next attempt; 0 if the response requests none.
	RetryAfter time.Duration
	// Throttled is set, with Again, if RetryAfter applies to the endpoint as a whole: it is
	// healthy, and requests a pause.
	Throttled bool
	// Reply is the reply to a routing question; nil if the response contains none. With a verdict
	// that is no success it is what the failure means, and the question is not asked again.
	Reply *RouteReply
	// Keep is what a CallSender keeps for the call from now on, MaxKept bytes at most; nil keeps
	// the present bytes. It is stored in the transaction that records the attempt, and must contain
	// no secret.
	Keep []byte
	// Events are appended in that transaction.
	Events []telephony.Event
	// Steps are the requests of an attempt that makes several, in order, MaxSteps at most.
	Steps []Step
}

// NothingToSend begins the Response of an Outcome without a request: why follows. The delivery is
// done, since its endpoint has no use for the event.
const NothingToSend = "nothing to send: "

// Step is one request of an attempt.
type Step struct {
	What     string // for people: "look for the contact", and behind it what came of it: see Remark
	Status   int
	Response string // the first 1 KiB, without secrets
}

// Remark is what came of a step, in words that the pages have in each language, with a value.
type Remark struct {
	Words string // such as "new lead"
	Value string // may be empty
}

const (
	beforeRemark = " · "
	beforeValue  = ": "
)

// Remark adds a remark to what stands of a step.
func (s *Step) Remark(words, value string) {
	s.What += beforeRemark + Remark{words, value}.String()
}

// Remarks returns what a step was, and the remarks behind it.
func (s *Step) Remarks() (what string, list []Remark) {
	what, rest, isMore := strings.Cut(s.What, beforeRemark)
	for isMore {
		var one string
		one, rest, isMore = strings.Cut(rest, beforeRemark)
		words, value, _ := strings.Cut(one, beforeValue)
		list = append(list, Remark{words, value})
	}
	return what, list
}

// String returns the remark as it stands in a step.
func (r Remark) String() string {
	if r.Value == "" {
		return r.Words
	}
	return r.Words + beforeValue + r.Value
}

// RouteReply is a reply to the question where a call should go.
type RouteReply struct {
	To  string // the number; empty declines the call
	Err error  // why the reply does not count
}

// Text describes the outcome in a few words.
func (o Outcome) Text() string { return o.Failure().Error() }

// Failure returns the outcome as an error: Err, or the status.
func (o Outcome) Failure() error {
	if o.Err != nil {
		return o.Err
	}
	return statusFault(o.Status)
}

// statusFault returns the error that a response with a status means.
func statusFault(status int) *telephony.Fault {
	code := telephony.CodeCRMStatus
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		code = telephony.CodeCRMRefuses
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		code = telephony.CodeCRMNoPath
	case status >= 300 && status <= 399:
		code = telephony.CodeCRMMoved
	case status == http.StatusGone:
		code = telephony.CodeCRMGone
	case status == http.StatusTooManyRequests:
		code = telephony.CodeCRMTooMany
	}
	return &telephony.Fault{Code: code, Args: []string{strconv.Itoa(status)}, Text: fmt.Sprintf("HTTP %d", status)}
}

// Attempt returns the outcome as it is stored.
func (o Outcome) Attempt(began time.Time, took time.Duration) Attempt {
	a := Attempt{At: began, Took: took, Status: o.Status, Response: o.Response, Steps: o.Steps}
	if o.Err != nil {
		a.Error, a.Cause = o.Err.Error(), telephony.CauseOf(o.Err)
	}
	return a
}

// Attempt is one try and its outcome, as it is stored.
type Attempt struct {
	At       time.Time
	Took     time.Duration
	Status   int             // of the response; 0 if there was none
	Response string          // the first 1 KiB of the response's body, without secrets
	Error    string          // why there was no response; contains no secret
	Cause    telephony.Cause // of Error; contains no secret
	Steps    []Step          // of an attempt that made several requests
}

// Failure returns Error with its cause, or the status, as an error.
func (a *Attempt) Failure() error {
	if a.Error == "" {
		return statusFault(a.Status)
	}
	return &telephony.Fault{Code: a.Cause.Code, Args: a.Cause.Args, Text: a.Text()}
}

// Text describes the outcome in a few words.
func (a *Attempt) Text() string {
	if a.Error != "" {
		return a.Error
	}
	return fmt.Sprintf("HTTP %d", a.Status)
}
