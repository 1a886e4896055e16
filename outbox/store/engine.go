// Package store is the contract with an engine: what is stored, the rules of order as pure
// functions, and the errors of an engine. It is also the contract with a sender, which brings
// deliveries to an endpoint. It does no I/O.
package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"pzbridge/internal/telephony"
)

// Engine stores events until every endpoint has got them. Engines: outbox/bolt (one process, one
// file).
//
// Each method is one transaction unless its comment says otherwise. When it returns nil, all of it
// is durable. When it returns an error that its comment does not name, it may or may not have
// happened; the same call again is safe and changes nothing more. ctx bounds a wait for a network
// and never undoes a commit. Times are the caller's: an engine stores no time of its own clock.
// Methods may be called concurrently.
type Engine interface {
	Appender
	Lanes
	Questions
	Routes
	Keys
	Notes
	Archive
	Audits
	Upkeep

	// Run runs the engine's own goroutines until ctx ends.
	Run(ctx context.Context) error
	// Changed returns a channel that is closed when events have been appended.
	Changed() <-chan struct{}
	Close() error
}

// Rules are what the outbox and routing pass to an engine when it is opened: pure functions, and
// the limits that they use. An engine calls them within its transactions, possibly more than once.
type Rules struct {
	// Hold is how long an event that fails holds the later ones of its call.
	Hold time.Duration
	// LongestWait is longer than any wait for another attempt: a later due time means that the
	// clock was set back.
	LongestWait time.Duration
	// Endpoints are the names of the configured endpoints.
	Endpoints []string
	// Reads reports whether an endpoint reads its events instead of having them sent.
	Reads func(endpoint string) bool
	// Receive updates the route of an event's call, which is nil if the call has not asked. Asks
	// means that endpoints are to be asked about the event now, changed that after is to be stored.
	Receive func(e *NewEvent, route *telephony.Route) (after *telephony.Route, asks, changed bool)
	// IsFor reports whether an endpoint gets an event, given the route of its call, or nil if no
	// route applies to the event.
	IsFor func(endpoint string, e *Event, route *telephony.Route) bool
	// Expires returns when an event becomes useless to an endpoint; zero means never.
	Expires func(endpoint string, e *Event) time.Time
	// NumberKey returns the key under which the calls with a number are found: see CallQuery. It is
	// empty for a text that is no number.
	NumberKey func(number string) string
	// ChangeRoute applies a change to a route.
	ChangeRoute func(route *telephony.Route, c telephony.RouteChange) telephony.RouteResult
}

// IsWanted reports whether an endpoint gets an event of the bridge itself: it is stored for nothing
// else.
func (r *Rules) IsWanted(e *NewEvent) bool {
	return slices.ContainsFunc(r.Endpoints, func(name string) bool { return r.IsFor(name, &e.Event, nil) })
}

// The sentinels. With each of them nothing was done.
var (
	// ErrFull means that the store has reached its limit. It ends by itself, when endpoints take
	// the deliveries that wait for them, or events become old enough to be removed.
	ErrFull = &telephony.Fault{Code: telephony.CodeFull, Text: "the outbox is full"}
	// ErrBehind means that another listener has stored something meanwhile.
	ErrBehind = &telephony.Fault{Code: telephony.CodeBehind, Text: "another listener has stored events meanwhile"}
	// ErrNotFound means that there is no such delivery or event.
	ErrNotFound = &telephony.Fault{Code: telephony.CodeNoDelivery, Text: "there is no such delivery"}
	// ErrNoCall means that no event of a call is stored.
	ErrNoCall = &telephony.Fault{Code: telephony.CodeNoCall, Text: "no event of this call is known"}
	// ErrBadCursor means that a cursor was not made by this list.
	ErrBadCursor = &telephony.Fault{Code: telephony.CodeBadCursor, Text: "the cursor is none that this list has given"}
	// ErrChanged means that a value has changed since it was read.
	ErrChanged = &telephony.Fault{Code: telephony.CodeChanged, Text: "the value has changed since it was read"}
	// ErrTooLong means that a value exceeds its largest size.
	ErrTooLong = &telephony.Fault{Code: telephony.CodeTooLong, Text: "the value is too long to be kept"}
	// ErrNoRedelivery means that there is no redelivery of that number, or none any more.
	ErrNoRedelivery = &telephony.Fault{Code: telephony.CodeNoRedelivery, Text: "there is no such redelivery"}
	// ErrUnindexed means that calls which an older version has stored are not indexed by their
	// number yet. It ends by itself.
	ErrUnindexed = &telephony.Fault{
		Code: telephony.CodeUnindexed,
		Text: "calls that an older version has stored are still being indexed by their numbers",
	}
	// ErrBadState means that a name is not that of a state.
	ErrBadState = &telephony.Fault{Code: telephony.CodeBadState, Text: "there is no such state"}
	// ErrBadRecord means that a record has a form which this program does not write.
	ErrBadRecord = &telephony.Fault{Code: telephony.CodeBadRecord, Text: "its record in the outbox is damaged"}
)

// Problems of a store that arise while the bridge runs. Neither stops anything by itself; readiness
// reports them, and each is logged once.
var (
	// ErrDamaged means that a page of the file cannot be read or is not valid.
	ErrDamaged = &telephony.Fault{Code: telephony.CodeDamaged, Text: "a page of the outbox's file is damaged"}
	// ErrFileGone means that the file is no longer at its path. Writes go to a file without a name,
	// which disappears with the process.
	ErrFileGone = &telephony.Fault{
		Code: telephony.CodeFileGone,
		Text: "the outbox's file was removed, moved or replaced while the bridge runs",
	}
)

// Appender stores events.
type Appender interface {
	// Append stores events in the order given, with their deliveries, their sequence in their call
	// and their effect on its route: all of them or none. An event whose ID is stored already is
	// left out, and so is a replay of a stored event. OutcomeOf decides how a call has ended, by
	// what is stored of it in the same transaction. Fails with ErrFull.
	Append(ctx context.Context, events []NewEvent) (Appended, error)
}

// Appended is the result of an append.
type Appended struct {
	Questions  []uint64 // numbers of events that endpoints are to be asked about now
	NearlyFull bool     // Prune is due
}

// Lanes provides the queues of endpoints.
type Lanes interface {
	// Lane takes an endpoint's queue for this process, and waits, until ctx ends, while another
	// process has it. With withCall, its jobs contain the bytes kept for their call and the later
	// events of the call.
	Lane(ctx context.Context, endpoint string, withCall bool) (Lane, error)
}

// Lane is the queue of one endpoint. It remembers which deliveries are claimed.
type Lane interface {
	// Claim takes up to limit deliveries that may be tried at now; they belong to the caller until
	// Record or Release. An earlier pending delivery of a call holds the later ones, unless it
	// first failed at least the hold ago. Untried deliveries come in the order of events; a quarter
	// of the limit is for retries that are due. Deliveries of the busy calls, of which an attempt
	// is under way, are left out; a claim may look at no more than some thousands of those.
	Claim(ctx context.Context, now time.Time, limit int, busy map[string]bool) (Claimed, error)
	// Probe takes one delivery with which to probe a failing endpoint: the next after a number in
	// the order of events, then from the beginning. LineUp has put all deliveries in that order.
	Probe(ctx context.Context, now time.Time, after uint64) (Claimed, error)
	// Record stores the outcomes of attempts and releases what the deliveries held. The function
	// Record defines which outcome takes precedence. It sets Overruled and Lost.
	Record(ctx context.Context, results []Result) error
	// Release returns claimed deliveries untried.
	Release(numbers []uint64)
	// Expire ends up to limit deliveries that are useless at now and not claimed, and returns when
	// to look again; zero means when the next delivery comes.
	Expire(ctx context.Context, now time.Time, limit int) (expired []Job, next time.Time, err error)
	// LineUp makes all deliveries that wait for their time due at once, in the order of events.
	// None may be claimed. It takes several transactions and ends between two with ctx; a repeated
	// call continues.
	LineUp(ctx context.Context, now time.Time) error
	// Wanted returns a channel that is closed when another process is to have the queue. It is nil
	// if there is no other process.
	Wanted() <-chan struct{}
	// Close gives the queue up, for another process to have it. Nothing may be claimed.
	Close(ctx context.Context) error
}

// Claimed is the result of a claim.
type Claimed struct {
	Jobs []Job
	// Next is when to claim again if no new delivery comes; zero means never.
	Next time.Time
	More bool // more may be due now
	// Dead counts deliveries that could not be read and were made dead; Unreadable counts those for
	// which not even that could be stored.
	Dead, Unreadable int
}

// Result is a delivery after an attempt, or after it has expired.
type Result struct {
	Job     Job
	Now     Delivery
	Attempt *Attempt // nil if none was made
	// Keep is stored for the call, unless a version newer than Job.KeptVersion is: then the result
	// counts only if it is a success. Nil leaves the stored bytes unchanged.
	Keep []byte
	// Events are appended in the same transaction.
	Events []NewEvent
	// Overruled is set by Record if the result does not count. Lost is set if the result cannot be
	// recorded while this process runs, because its page in the store is damaged.
	Overruled, Lost bool
}

// NewResult returns the result of an attempt with the given times; now is the delivery after it,
// answerWithin as for Encode. If an event of the sender cannot be encoded, NewResult also returns
// an error, and the result lacks only that event.
func NewResult(j Job, now Delivery, o *Outcome, began, ended time.Time, answerWithin time.Duration) (Result, error) {
	made := o.Attempt(began, ended.Sub(began))
	r := Result{Job: j, Now: now, Attempt: &made, Keep: o.Keep}
	var err error
	switch {
	case len(o.Keep) > MaxKept:
		r.Keep, err = nil, fmt.Errorf("%w: %d bytes for a call, %d are allowed", ErrTooLong, len(o.Keep), MaxKept)
	case o.Keep != nil && j.Event.Call == "":
		r.Keep, err = nil, errors.New("nothing can be kept for an event of no call")
	}
	for i := range o.Events {
		e, wrong := Encode(&o.Events[i], answerWithin)
		if wrong != nil {
			err = errors.Join(err, fmt.Errorf("event %s of the sender: %w", o.Events[i].ID, wrong))
			continue
		}
		r.Events = append(r.Events, e)
	}
	return r, err
}

// EndedAt returns when the attempt ended, or when the delivery expired.
func (r *Result) EndedAt() time.Time {
	if r.Attempt != nil {
		return r.Attempt.At.Add(r.Attempt.Took)
	}
	return time.Unix(0, r.Now.Due)
}

// Questions are the events that endpoints are asked about. They stand in no lane.
type Questions interface {
	// TakeQuestions takes the questions that no process asks, as those of before the start, and
	// returns the numbers of all that this process asks.
	TakeQuestions(ctx context.Context) ([]uint64, error)
	// Question returns a question. Fails with ErrBadRecord.
	Question(ctx context.Context, number uint64) (Question, error)
	// RecordQuestion is Lane.Record for an attempt at a question.
	RecordQuestion(ctx context.Context, endpoint string, r *Result) error
	// EndQuestion expires the deliveries of a question that are still pending, releases what they
	// held, and removes the question. It stores notAsked as the replies of endpoints that were not
	// asked.
	EndQuestion(ctx context.Context, number uint64, notAsked []telephony.Reply, now time.Time) ([]EndedJob, error)
}

// Question is an event that endpoints are asked about.
type Question struct {
	Number uint64
	Event  Event
	// Opened is the ID of the event that opened the question: an earlier one if the call has asked
	// before.
	Opened string
	Open   bool           // it has not ended
	Asked  map[string]Job // by the names of the endpoints that are being asked
}

// EndedJob is a delivery that ended with its question.
type EndedJob struct {
	Job
	Endpoint string
}

// Routes store which endpoint has won which call.
type Routes interface {
	// Route returns the route of a call, or nil if the call has not asked.
	Route(ctx context.Context, callID string) (*telephony.Route, error)
	// ChangeRoute applies a change to the present route, with Rules.ChangeRoute. Fails with
	// telephony.ErrNeverAsked.
	ChangeRoute(ctx context.Context, callID string, c telephony.RouteChange) (telephony.RouteResult, error)
}

// Keys store the requests that came with an idempotency key.
type Keys interface {
	// ClaimKey claims a bearer's key for a request under the ID of the claim, or returns the claim
	// that has taken the key before. A repeated claim succeeds. If the bearer's keys exceed their
	// room, the oldest are removed.
	ClaimKey(ctx context.Context, bearer string, key [32]byte, c KeyClaim) (taken *KeyClaim, err error)
	// SettleKey stores the answer to the request of a claim, or removes the key if its Status is 0:
	// the request was not carried out. If another claim has the key, SettleKey does nothing.
	SettleKey(ctx context.Context, bearer string, key [32]byte, c KeyClaim) error
}

// KeyClaim is the record of an idempotency key.
type KeyClaim struct {
	ID      [16]byte // of the claim, random
	Request [32]byte // a hash of the request that the key came with
	// Status and Answer are the response to that request. Status is 0 while the request is being
	// carried out, and stays 0 if the process ends meanwhile.
	Status int
	Answer []byte
	At     time.Time // when the request was answered, or came
}

// Notes are a few small values for an endpoint as a whole, such as the tokens of a CRM. A note may
// have an end.
type Notes interface {
	// Note returns a value and its version; nil and 0 if there is none, or its end has passed.
	Note(ctx context.Context, endpoint, name string, now time.Time) (value []byte, version uint64, err error)
	// SetNote stores a value of MaxNote bytes at most if its version is still the one given;
	// otherwise it fails with ErrChanged. A zero until means for ever.
	SetNote(ctx context.Context, endpoint, name string, version uint64, value []byte, until time.Time) error
}

// MaxNote is the largest size of a note in bytes.
const MaxNote = 64 << 10

// NoteGrace is how long a note is kept behind its end, before Prune removes it. Its version begins
// anew then, so nobody may still go by the old one.
const NoteGrace = 24 * time.Hour

// Upkeep bounds the size of an engine and reports its state.
type Upkeep interface {
	// Prune removes the events that may go, with all that refers to them, in many small
	// transactions until ctx ends; and keys and notes whose time is over.
	Prune(ctx context.Context, r Retention) (Pruned, error)
	// Forget removes the next calls with a number, whole: their events, deliveries, attempts and
	// routes, also those that an endpoint waits for; or only counts them. Key is of the number: see
	// Rules.NumberKey. It is to be called again until More is false. Fails with ErrUnindexed.
	Forget(ctx context.Context, key string, dryRun bool) (Forgotten, error)
	// Usage returns how many bytes are in use, and how many may be; allowed is 0 if there is no
	// limit.
	Usage(ctx context.Context) (used, allowed int64, err error)
	// Writable returns why events cannot be stored or are in danger; nil if they are safe.
	Writable(ctx context.Context) error
	// Setting returns the value stored under a name. If there is none, it stores and returns
	// initial, unless that is empty.
	Setting(ctx context.Context, name, initial string) (string, error)
	SetSetting(ctx context.Context, name, value string) error
}

// Forgotten counts what Forget has removed.
type Forgotten struct {
	Calls, Events, Deliveries, Routes int
	Pending                           int // of the deliveries: their endpoints have not got the event
	Recordings                        int // files, which an engine does not know
	More                              bool
}

// Retention defines what Prune may remove.
type Retention struct {
	MaxAge time.Duration // of an event for which no endpoint waits
	// Abandoned are endpoints that have been failing for so long that events older than
	// AbandonedAge wait for them no longer.
	Abandoned    map[string]bool
	AbandonedAge time.Duration
}

// Pruned is the result of a Prune.
type Pruned struct {
	Events     int
	GivenUp    map[string]int // deliveries that were pending, by endpoint
	NearlyFull bool           // the engine still is, and nothing more may be removed
}

// LargestMaxBytes is the largest limit of a file in bytes: half of what bbolt can map, since free
// pages make a file larger than what is in use. A 32-bit process maps 2 GiB.
const LargestMaxBytes int64 = min(math.MaxInt, 1<<48-1)/2 + 1
