package store

import (
	"context"
	"fmt"
	"time"

	"pzbridge/internal/telephony"
)

// Sender brings deliveries to one endpoint. The sender decides what an answer means, since a 200
// can be an error. Its methods may be called concurrently, but of one call never two are under way.
type Sender interface {
	// Send makes one attempt and returns when ctx ends at the latest. It makes one request that
	// changes something at the endpoint, so that a kill loses one answer at most: where more are
	// needed it keeps what it has and returns More. No text in the Outcome holds a secret.
	Send(ctx context.Context, j Job) Outcome
	// Close ends the connections that are not in use.
	Close()
}

// CallSender is a Sender whose jobs come with what it kept for the call and with the call's later
// events.
type CallSender interface {
	Sender
	NeedsCall()
}

// Job is a delivery to be made.
type Job struct {
	Number   uint64 // of the event
	Delivery Delivery
	Event    Event
	EventID  string // the event's ID as text
	// IsQuestion says that a person on the line waits for the answer, and what the answer says
	// counts.
	IsQuestion bool
	// MayRedial is asked before a request is sent once more within the attempt, after a connection
	// has failed. Nil allows it.
	MayRedial func() bool

	// What follows is there for a CallSender alone.

	// Kept are the bytes that the sender has kept for this call at this endpoint, nil if none, and
	// KeptVersion counts how often they were stored.
	Kept        []byte
	KeptVersion uint64
	// Later are the call's later events that are stored already, MaxLater at most, in order.
	Later []Event
}

const (
	// MaxLater is how many later events of its call a Job has at most.
	MaxLater = 16
	// MaxKept is how many bytes a sender may keep for a call.
	MaxKept = 4 << 10
	// MaxSteps is how many steps of an attempt are stored.
	MaxSteps = 8
)

// Verdict is what an attempt means for its delivery.
type Verdict int

// The verdicts. The zero value is no outcome at all: a sender that was cut off by its context.
const (
	CutOff Verdict = iota // how the attempt would have ended is unknown: it is made again
	Done
	Again // by the schedule, after RetryAfter at the earliest
	// Gone: the endpoint says itself that it is gone. The delivery is dead, and the attempt a
	// failure.
	Gone
	// Later: this delivery again after RetryAfter. It costs nothing of the schedule, says nothing
	// of the endpoint's health and begins no hold.
	Later
	// Pause: nothing goes to the endpoint for RetryAfter, likewise.
	Pause
	// Misconfigured: nothing can be delivered before somebody changes something. The delivery is
	// kept, and the endpoint is failing at once, and probed.
	Misconfigured
	// Refused: this delivery alone is dead; the endpoint is well.
	Refused
	// More: what is kept is stored, and the same job comes again at once.
	More
)

// Outcome is how an attempt ended.
type Outcome struct {
	Verdict  Verdict
	Status   int    // the HTTP status; 0 if there was no answer
	Response string // the beginning of the answer, without secrets
	Err      error  // why there was no answer; holds no secret
	// RetryAfter is the least wait before the next attempt; 0 if the answer asks for none.
	RetryAfter time.Duration
	// Throttled is set, with Again, if RetryAfter is meant for the endpoint as a whole: it is well,
	// and asks to be left alone.
	Throttled bool
	// Reply is what the answer says to a routing question; nil if it says nothing.
	Reply *RouteReply
	// Keep is what a CallSender keeps for the call from now on, MaxKept bytes at most; nil leaves
	// it as it is. It is stored in the transaction that records the attempt, and holds no secret.
	Keep []byte
	// Events are appended in the same transaction.
	Events []telephony.Event
	// Steps are the requests of an attempt that makes several, in order, MaxSteps at most.
	Steps []Step
}

// Step is one request of an attempt.
type Step struct {
	What     string // in words: "look for the contact"
	Status   int
	Response string // the first 1 KiB, without secrets
}

// RouteReply is an answer to the question where a call should go.
type RouteReply struct {
	To  string // the number; empty declines
	Err error  // why the answer does not count
}

// Text says in a few words how the attempt ended.
func (o Outcome) Text() string {
	if o.Err != nil {
		return o.Err.Error()
	}
	return fmt.Sprintf("HTTP %d", o.Status)
}

// Attempt gives the outcome as it is stored.
func (o Outcome) Attempt(began time.Time, took time.Duration) Attempt {
	a := Attempt{At: began, Took: took, Status: o.Status, Response: o.Response, Steps: o.Steps}
	if o.Err != nil {
		a.Error = o.Err.Error()
	}
	return a
}

// Attempt is one try and how it ended.
type Attempt struct {
	At       time.Time
	Took     time.Duration
	Status   int    // of the answer; 0 if there was none
	Response string // the first 1 KiB of the answer's body, without secrets
	Error    string // why there was no answer; holds no secret
	Steps    []Step // of an attempt that made several requests
}

// Text says in a few words how the attempt ended.
func (a *Attempt) Text() string {
	if a.Error != "" {
		return a.Error
	}
	return fmt.Sprintf("HTTP %d", a.Status)
}
