package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pzbridge/internal/telephony"
)

// Archive is what people and programs read, and by which they request redeliveries. It needs no
// lane.
type Archive interface {
	// Events reads events. Fails with ErrBadCursor or, forwards, with a *PrunedError.
	Events(ctx context.Context, q EventQuery) (EventPage, error)
	// Event returns one event by its ID. Fails with ErrNotFound.
	Event(ctx context.Context, eventID string) (Event, error)
	// Call returns what has happened to a call after a sequence number; 0 begins at the start.
	// Fails with ErrNoCall.
	Call(ctx context.Context, callID string, after uint64) (CallPage, error)
	// Calls lists calls, the one with the newest event first. With a number or a state they may
	// come in the order of the events by which an index has found them. Fails with ErrBadCursor.
	Calls(ctx context.Context, q CallQuery) (CallList, error)
	// CallHead returns what is known of a call as a whole. Fails with ErrNoCall.
	CallHead(ctx context.Context, callID string) (CallHead, error)
	// Deliveries lists deliveries, those of the newest event first. Fails with ErrBadCursor or
	// ErrBadState.
	Deliveries(ctx context.Context, q DeliveryQuery) (DeliveryPage, error)
	// Delivery returns one delivery and its last attempts, oldest first, ten at most. Fails with
	// ErrNotFound.
	Delivery(ctx context.Context, eventID, endpoint string) (DeliveryView, []Attempt, error)
	// Standing counts the deliveries of each endpoint, by its name; also of endpoints that are no
	// longer configured.
	Standing(ctx context.Context) (map[string]Standing, error)
	// OldestPending returns when the oldest event that is pending for an endpoint was read; zero if
	// there is none.
	OldestPending(ctx context.Context, endpoint string) (time.Time, error)
	// SetRead records that an endpoint without a URL has read a page; newest is the number of the
	// last event before the read. Forwards, the endpoint has read up to the end of the page.
	// Backwards, the first page means that it has read up to the newest event, if the page reaches
	// back to what it had read before. Every page counts as a read in Standing.LastRead. The record
	// is durable within two seconds.
	SetRead(ctx context.Context, q EventQuery, p EventPage, newest uint64, at time.Time)

	// Redeliver makes one delivery pending from the start of the schedule, behind the pending ones
	// before it in its call. Fails with ErrNotFound.
	Redeliver(ctx context.Context, eventID, endpoint string, now time.Time) error
	// AddRedelivery stores a redelivery of many, and returns the number by which it is known. Of
	// one Token it stores one. The newest MaxRedeliveries are kept.
	AddRedelivery(ctx context.Context, r Redelivery, now time.Time) (number uint32, err error)
	// RedeliverSome does the same as Redeliver for the next few deliveries that a redelivery of
	// many selects, from one number up to another, or only counts them. They are chosen and changed
	// in one transaction, in which the redelivery is chosen whole if next is beyond last.
	RedeliverSome(
		ctx context.Context, r Redelivery, from, last uint64, now time.Time,
	) (count int, next uint64, err error)
	// Redeliveries returns the stored redeliveries of many, the newest first: the one with a
	// number, or up to limit if number is 0. Fails with ErrNoRedelivery.
	Redeliveries(ctx context.Context, number uint32, limit int) ([]RedeliveryState, error)
	// LastNumber returns the number of the event that was appended last, also if it has been
	// removed.
	LastNumber(ctx context.Context) (uint64, error)
}

// DeliveryView is the state of a delivery, for people and programs.
type DeliveryView struct {
	ID        string // <event ID>.<endpoint>
	EventID   string
	Endpoint  string
	Type      telephony.EventType
	CallID    string // empty for an event of no call
	Sequence  uint64 // within its call
	EventTime time.Time
	State     string // pending, delivered, expired or dead
	Attempts  int    // in all
	// LastStatus is the HTTP status of the last response; 0 if there was none.
	LastStatus int
	LastError  string // why the last attempt had no response
	LastCause  telephony.Cause
	// NextAttempt is when a pending delivery is tried next; zero while an earlier event of its call
	// holds it, and for a question that is being asked.
	NextAttempt time.Time
	Ended       time.Time // when it was delivered, expired or dead; zero while it is pending
	Redelivered bool      // a redelivery of it was requested
	// Client and Extension are those of the event, for people.
	Client, Extension string
	ToBeRead          bool // it is pending because its endpoint reads its events, and has not read this one
}

// DeliveryQuery selects deliveries to list. An empty field matches all.
type DeliveryQuery struct {
	State, Endpoint, CallID string
	Types                   []telephony.EventType // none means all
	// Since and Until bound the time at which the bridge read the event: from Since on, before
	// Until. The zero value is no bound.
	Since, Until time.Time

	Limit  int    // at least 1
	Cursor string // where the last page ended; empty begins with the newest event
}

// DeliveryPage is one page of a list. A query looks at a bounded number of deliveries, so a page
// may be short, or empty, although more follow its cursor.
type DeliveryPage struct {
	Deliveries []DeliveryView
	Cursor     string // for the rest; empty if there is none
}

// CallQuery selects calls to list. An empty field matches all.
type CallQuery struct {
	// Key is of the number to search for: see Rules.NumberKey. It holds the digits in reverse
	// order, so that the last digits of a number are the beginning of its key.
	Key       string
	Match     KeyMatch
	Since     time.Time // of the latest event
	Until     time.Time // of the latest event, which is before it
	Direction telephony.Direction
	Outcome   telephony.Outcome
	State     string // of the call's deliveries at some endpoint: see CallStanding.State

	Limit  int    // at least 1
	Cursor string // where the last page ended; empty begins with the newest
}

// KeyMatch is how the key of a query is compared with that of a number.
type KeyMatch int

// The ways to compare.
const (
	KeyEquals   KeyMatch = iota // the whole number
	KeyBegins                   // the last digits of a number
	KeyContains                 // any digits of the number in a call's latest event; without an index
)

// CallList is one page of a list of calls. A query looks at a bounded number of events, so a page
// may be short, or empty, although more follow its cursor.
type CallList struct {
	Calls  []CallHead
	Cursor string // for the rest; empty if there is none
	Looked int    // calls that this page has looked at
	// Unindexed means that older calls are not found by their number yet: an older version has
	// stored them, and the index is still being filled.
	Unindexed bool
}

// CallEvent is an event of a call, with its deliveries.
type CallEvent struct {
	ID       string
	Type     telephony.EventType
	Sequence uint64
	Time     time.Time
	// From and To are shortened for people: see telephony.Brief.
	From, To   string
	Deliveries []DeliveryView
	Fetching   *DeliveryView // of the recording, to the bridge itself; nil if none is to be fetched
}

// CallPage is one page of what is stored of a call.
type CallPage struct {
	Events []CallEvent      // in order
	Route  *telephony.Route // the question where it should go; nil if it has not asked
	Next   uint64           // the sequence after which the next page begins; 0 if there is none
}

// CursorLatest is the cursor after all present events.
const CursorLatest = "now"

// EventQuery selects the events to read.
type EventQuery struct {
	Endpoint string // the endpoint whose events to read; empty reads all
	// After is the cursor that the last read has returned, in either direction. Empty begins with
	// the oldest event, CursorLatest with the next one to come; backwards both begin with the
	// newest.
	After     string
	Backwards bool                  // the newest first
	Types     []telephony.EventType // none means all
	Limit     int                   // at least 1
}

// EventPage is the result of one read. A read looks at a bounded number of events, so its page may
// be empty although later ones are not.
type EventPage struct {
	Events [][]byte // bodies in the standard format
	Cursor string   // where the next page begins; empty backwards if there is none
	More   bool     // the next page may not be empty
	Last   uint64   // the number of the last event that the read looked at
}

// PrunedError means that events after a cursor have been removed, or that the cursor was made
// before a backup was restored. Oldest is the cursor after which nothing is missing.
type PrunedError struct{ Oldest string }

func (e *PrunedError) Error() string {
	return fmt.Sprintf("events after this cursor have been removed from the outbox, as too old or since it was "+
		"nearly full, or a backup was restored; the oldest that are left come after %q", e.Oldest)
}

// Cause returns the code with the oldest cursor.
func (e *PrunedError) Cause() telephony.Cause {
	return telephony.Cause{Code: telephony.CodePruned, Args: []string{e.Oldest}}
}

// Standing counts the deliveries of an endpoint.
type Standing struct {
	// Pending, Delivered, Expired and Dead count deliveries. For an endpoint that reads, Pending
	// counts those that it has not read, MaxUnread at most.
	Pending, Delivered, Expired, Dead uint64
	LastRead                          time.Time // the last read of an endpoint that reads; zero if there was none
}

// MaxUnread is up to how many unread events of an endpoint are counted, so that a long count does
// not delay other readers.
const MaxUnread = 4096

// Missing stands in Redelivery.States, beside the names of the states, for events that were never
// to go to the endpoint: they came before it was configured.
const Missing = "missing"

// Redelivery selects deliveries to make again.
type Redelivery struct {
	Endpoint string
	// Since and Until bound the time at which the bridge read the event: from Since on, before
	// Until. The zero value is no bound.
	Since, Until time.Time
	States       []string              // delivered, expired, dead, Missing; none means all of them
	Types        []telephony.EventType // none means all
	DryRun       bool                  `json:"-"` // only count
	// Token is what the caller has chosen at random, so that AddRedelivery may be repeated. Number
	// is what that has returned; 0 for a DryRun.
	Token  [16]byte
	Number uint32
}

// MaxRedeliveries is how many redeliveries of many are kept.
const MaxRedeliveries = 1000

// RedeliveryState is a redelivery of many, and what has come of it.
type RedeliveryState struct {
	Redelivery
	At     time.Time // when it was requested
	Chosen int       // deliveries so far
	Whole  bool      // all of them are chosen
	// What has become of them: the rest is pending. Superseded are those that were requested again
	// since.
	Delivered, Expired, Dead, Superseded int
}

// Pending returns how many of the deliveries have not ended.
func (r *RedeliveryState) Pending() int {
	return max(0, r.Chosen-r.Delivered-r.Expired-r.Dead-r.Superseded)
}

// CountsForRedelivery reports whether a change of a delivery counts for the redelivery of many that
// had requested it last: it has ended, or another request makes it pending again.
func CountsForRedelivery(before, after Delivery) bool {
	isAgain := after.State == Pending && after.Request != before.Request
	hasEnded := before.State == Pending && after.State != Pending
	return before.Request != 0 && (isAgain || hasEnded)
}

// Count counts such a change. Deliveries that are pending are counted nowhere.
func (r *RedeliveryState) Count(before, after Delivery) {
	if after.State != Pending {
		r.add(after.State, 1)
		return
	}
	r.Superseded++
	r.add(before.State, -1)
}

func (r *RedeliveryState) add(s State, n int) {
	switch s {
	case Delivered:
		r.Delivered += n
	case Expired:
		r.Expired += n
	case Dead:
		r.Dead += n
	}
}

// Matches reports whether a redelivery selects an event, apart from the state of its delivery.
func (r *Redelivery) Matches(e Event) bool {
	return !e.At.Before(r.Since) && (r.Until.IsZero() || e.At.Before(r.Until)) &&
		(len(r.Types) == 0 || slices.Contains(r.Types, e.Type))
}

// Wants reports whether a redelivery selects the delivery of an event as it stands; exists is false
// if there is none. One that does not exist is wanted if the event, coming now, would go to the
// endpoint: not that a call rings which is another's. Route returns the route of the event's call;
// nil if there is none.
func (r *Rules) Wants(
	q *Redelivery, e *Event, d Delivery, exists bool, route func() *telephony.Route,
) bool {
	name := Missing
	if exists {
		name = d.State.String()
	}
	switch {
	case exists && d.State == Pending:
		return false
	case len(q.States) > 0 && !slices.Contains(q.States, name):
		return false
	case exists:
		return true
	}
	asked := route()
	if asked != nil && !asked.Covers(e.At) {
		asked = nil
	}
	return r.IsFor(q.Endpoint, e, asked)
}
