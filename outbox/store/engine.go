// Package store is the contract with an engine: what is stored, the rules of order as pure
// functions, and the errors by which an engine refuses. It is also the contract with a sender,
// which brings deliveries to an endpoint. It does no I/O.
package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"pzbridge/internal/telephony"
)

// Engine keeps events until every endpoint has them. Engines: outbox/bolt (one process, one file).
//
// A method is one transaction unless it says otherwise. When it returns nil, all of it is durable.
// When it returns an error that it does not name, it may or may not have happened; the same call
// again is safe and changes nothing that the first one has changed. ctx bounds a wait for a network
// and never undoes a commit. Times are the caller's: an engine puts no clock of its own into what
// it stores. Methods may be called concurrently.
type Engine interface {
	Appender
	Lanes
	Questions
	Routes
	Keys
	Notes
	Archive
	Upkeep

	// Run keeps the engine's own goroutines until ctx ends.
	Run(ctx context.Context) error
	// Changed gives a channel that is closed when events have been appended.
	Changed() <-chan struct{}
	Close() error
}

// Rules are what the outbox and routing hand in when an engine is opened: pure functions, and the
// bounds that they stand on. An engine calls them inside its transactions, maybe more than once.
type Rules struct {
	// Hold is how long an event that fails holds the later ones of its call.
	Hold time.Duration
	// LongestWait is past any wait for another attempt that there can be: a due time further ahead
	// means that the clock was set back.
	LongestWait time.Duration
	// Endpoints are the names of the endpoints that are configured.
	Endpoints []string
	// Reads reports whether an endpoint reads its events instead of having them sent.
	Reads func(endpoint string) bool
	// Receive brings the route of an event's call up to date; nil if the call has not asked. Asks
	// says that endpoints are to be asked about the event now. Changed says that after is to be
	// stored.
	Receive func(e *NewEvent, route *telephony.Route) (after *telephony.Route, asks, changed bool)
	// IsFor reports whether an endpoint gets an event, given the route of its call; nil if that
	// says nothing of the event.
	IsFor func(endpoint string, e *Event, route *telephony.Route) bool
	// Expires is when an event is of no use to an endpoint any more; zero is never.
	Expires func(endpoint string, e *Event) time.Time
	// ChangeRoute applies a change to a route.
	ChangeRoute func(route *telephony.Route, c telephony.RouteChange) telephony.RouteResult
}

// The sentinels: nothing was done.
var (
	// ErrFull means that as much is stored as may be. It ends by itself, when endpoints take what
	// waits for them or events become old enough to be removed.
	ErrFull = errors.New("the outbox is full")
	// ErrNotFound means that there is no such delivery or event.
	ErrNotFound = errors.New("there is no such delivery: OUTBOX_RETENTION may have removed it")
	// ErrNoCall means that no event of a call is stored.
	ErrNoCall = errors.New("no event of this call is known: OUTBOX_RETENTION may have removed them")
	// ErrBadCursor means that a cursor is not one that this list has given.
	ErrBadCursor = errors.New("the cursor is none that this list has given")
	// ErrChanged means that a value has changed since it was read.
	ErrChanged = errors.New("the value has changed since it was read")
	// ErrTooLong means that a value has more bytes than it may.
	ErrTooLong = errors.New("the value is too long to be kept")
	// ErrBadState means that a name of a state is none.
	ErrBadState = errors.New("there is no such state")
	// ErrBadRecord means that a record is not what this program writes.
	ErrBadRecord = errors.New("its record in the outbox is damaged")
)

// What can become of a store while the bridge runs. Neither stops anything by itself, but readiness
// says it, and the log once.
var (
	// ErrDamaged means that a page of the file cannot be read, or makes no sense.
	ErrDamaged = errors.New("a page of the outbox's file is damaged: " +
		"stop the bridge and restore a backup, or move the file away to start with an empty one")
	// ErrFileGone means that the file is not at its path any more. What is written goes to a file
	// without a name, which is gone with the process.
	ErrFileGone = errors.New("the outbox's file was removed, moved or replaced while the bridge runs: " +
		"take GET /v1/backup before you restart it, and put that in place with pzbridge restore, " +
		"or all that waits is lost")
)

// Appender stores events.
type Appender interface {
	// Append stores events in the order given, with their deliveries, their place in their call and
	// what they mean for its route: all of them or none. An ID that is stored already is left out,
	// and so is a replay of what is stored. Fails with ErrFull.
	Append(ctx context.Context, events []NewEvent) (Appended, error)
}

// Appended is what an append leads to.
type Appended struct {
	Questions  []uint64 // numbers of events that endpoints are to be asked about now
	NearlyFull bool     // it is time to Prune
}

// Lanes hands out the queues of endpoints.
type Lanes interface {
	// Lane takes an endpoint's queue for this process. WithCall says that its jobs come with what
	// was kept for their call and with its later events.
	Lane(ctx context.Context, endpoint string, withCall bool) (Lane, error)
}

// Lane is the queue of one endpoint. It remembers which deliveries are claimed.
type Lane interface {
	// Claim takes up to limit deliveries that may be tried at now; they are the caller's until
	// Record or Release. An earlier delivery of a call that is pending holds the later ones, unless
	// it failed first at least the hold ago. Untried ones come in the order of events; a quarter of
	// the limit is for retries whose time has come.
	Claim(ctx context.Context, now time.Time, limit int) (Claimed, error)
	// Probe takes one delivery to try a failing endpoint with: the next after a number in the order
	// of events, then from the beginning. LineUp has put all of them in that order.
	Probe(ctx context.Context, now time.Time, after uint64) (Claimed, error)
	// Record stores how attempts ended and releases what they held. See the function Record for
	// what wins over what. It sets Overruled and Lost.
	Record(ctx context.Context, results []Result) error
	// Release gives claims back untried.
	Release(numbers []uint64)
	// Expire ends up to limit deliveries that are of no use at now and not claimed, and says when
	// to look again; zero is when the next delivery comes.
	Expire(ctx context.Context, now time.Time, limit int) (expired []Job, next time.Time, err error)
	// LineUp makes all that waits for its time due at once, in the order of events. Nothing may be
	// claimed. It takes several transactions; the same call again goes on.
	LineUp(ctx context.Context, now time.Time) error
}

// Claimed is what a claim has brought.
type Claimed struct {
	Jobs []Job
	// Next is when to claim again if nothing new comes; zero is never.
	Next time.Time
	More bool // there may be more at once
	// Dead counts deliveries that cannot be read and were made dead; Unreadable counts those of
	// which not even that can be stored.
	Dead, Unreadable int
}

// Result is how a delivery stands after an attempt, or after its time was over.
type Result struct {
	Job     Job
	Now     Delivery
	Attempt *Attempt // nil if none was made
	// Keep is stored for the call, unless something newer than Job.KeptVersion is: then only a
	// success counts. Nil leaves what is kept as it is.
	Keep []byte
	// Events are appended in the same transaction.
	Events []NewEvent
	// Overruled is set by Record where something else counts. Lost is set where the result cannot
	// be recorded while this process runs: its place in the store is damaged.
	Overruled, Lost bool
}

// NewResult gives the result of an attempt that began and ended at these times; now is the delivery
// after it, answerWithin as for Encode. It fails if an event of the sender's cannot be encoded; the
// rest of the result is whole then.
func NewResult(j Job, now Delivery, o *Outcome, began, ended time.Time, answerWithin time.Duration) (Result, error) {
	made := o.Attempt(began, ended.Sub(began))
	r := Result{Job: j, Now: now, Attempt: &made, Keep: o.Keep}
	var err error
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

// EndedAt is when the attempt ended, or when the delivery's time was over.
func (r *Result) EndedAt() time.Time {
	if r.Attempt != nil {
		return r.Attempt.At.Add(r.Attempt.Took)
	}
	return time.Unix(0, r.Now.Due)
}

// Questions are the events that endpoints are asked about. They stand in no lane.
type Questions interface {
	// TakeQuestions gives the numbers of all questions that are being asked.
	TakeQuestions(ctx context.Context) ([]uint64, error)
	// Question gives a question. Fails with ErrBadRecord.
	Question(ctx context.Context, number uint64) (Question, error)
	// RecordQuestion is Lane.Record for an attempt at a question.
	RecordQuestion(ctx context.Context, endpoint string, r *Result) error
	// EndQuestion expires what is still being asked, releases what it held, and forgets the
	// question. For endpoints that were not asked it stores why.
	EndQuestion(ctx context.Context, number uint64, notAsked []telephony.Reply, now time.Time) ([]EndedJob, error)
}

// Question is an event that endpoints are asked about.
type Question struct {
	Number uint64
	Event  Event
	// Opened is the ID of the event that opened the question: another one if the call asked before.
	Opened string
	Open   bool           // it is not done with
	Asked  map[string]Job // by the endpoints that are being asked
}

// EndedJob is a delivery that ended with its question.
type EndedJob struct {
	Job
	Endpoint string
}

// Routes keep which endpoint has won which call.
type Routes interface {
	// Route gives the route of a call; nil if it has not asked.
	Route(ctx context.Context, callID string) (*telephony.Route, error)
	// ChangeRoute applies a change to the route as it stands, by Rules.ChangeRoute. Fails with
	// telephony.ErrNeverAsked.
	ChangeRoute(ctx context.Context, callID string, c telephony.RouteChange) (telephony.RouteResult, error)
}

// Keys remember requests with an idempotency key.
type Keys interface {
	// ClaimKey takes a bearer's key for a request under a claim's ID, or gives what is known of the
	// claim that took it first. The same claim once more has taken it. The oldest keys of a bearer
	// that brings more than there is room for are forgotten.
	ClaimKey(ctx context.Context, bearer string, key [32]byte, c KeyClaim) (taken *KeyClaim, err error)
	// SettleKey stores what the request with a claim was answered, or forgets the key if its Status
	// is 0: the request was not carried out. If another claim has the key, nothing is done.
	SettleKey(ctx context.Context, bearer string, key [32]byte, c KeyClaim) error
}

// KeyClaim is what is known of an idempotency key.
type KeyClaim struct {
	ID      [16]byte // of the claim, random
	Request [32]byte // a hash of the request that the key came with
	// Status and Answer are what that request was answered; Status is 0 while it is being carried
	// out, and for ever if the process ended in the middle of it.
	Status int
	Answer []byte
	At     time.Time // when it was answered, or came
}

// Notes are a few values for an endpoint as a whole, such as a CRM's tokens: small, with an end.
type Notes interface {
	// Note gives a value and its version; nil and 0 if there is none, or its end has come.
	Note(ctx context.Context, endpoint, name string, now time.Time) (value []byte, version uint64, err error)
	// SetNote stores a value of MaxNote bytes at most if its version is still the one given; else
	// it fails with ErrChanged. The zero until is for ever.
	SetNote(ctx context.Context, endpoint, name string, version uint64, value []byte, until time.Time) error
}

// MaxNote is how many bytes a note has at most.
const MaxNote = 64 << 10

// Upkeep keeps an engine small and says how it is.
type Upkeep interface {
	// Prune removes what may go, with all that points to it, in many small transactions until ctx
	// ends.
	Prune(ctx context.Context, r Retention) (Pruned, error)
	// Usage is how many bytes are in use, and how many may be; allowed is 0 where nothing bounds
	// it.
	Usage(ctx context.Context) (used, allowed int64, err error)
	// Writable says why events cannot be stored, or are in danger; nil if they are safe.
	Writable(ctx context.Context) error
	// Setting gives what is stored under a name, and stores initial first if nothing is; an empty
	// value is not stored.
	Setting(ctx context.Context, name, initial string) (string, error)
	SetSetting(ctx context.Context, name, value string) error
}

// Retention says what may go.
type Retention struct {
	MaxAge time.Duration // of an event that nothing waits for
	// Abandoned are endpoints that have been failing for so long that what is older than
	// AbandonedAge waits for them no more.
	Abandoned    map[string]bool
	AbandonedAge time.Duration
}

// Pruned is what a Prune has removed.
type Pruned struct {
	Events     int
	GivenUp    map[string]int // deliveries that were pending, by endpoint
	NearlyFull bool           // it still is, and nothing more may go
}

// LargestMaxBytes is how many bytes a file may be allowed at most: half of what bbolt maps of one,
// since free pages make a file larger than what is in use. A process of 32 bits maps 2 GiB.
const LargestMaxBytes int64 = min(math.MaxInt, 1<<48-1)/2 + 1
