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
	// LatestCalls returns the IDs of up to limit calls, that of the newest event first. It looks at
	// the newest few thousand events.
	LatestCalls(ctx context.Context, limit int) ([]string, error)
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
	// RedeliverSome does the same for the next few deliveries that a selection matches, from one
	// number up to another, or only counts them. They are chosen and changed in one transaction.
	RedeliverSome(
		ctx context.Context, r Redelivery, from, last uint64, now time.Time,
	) (count int, next uint64, err error)
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
	ToBeRead    bool      // it is pending because its endpoint reads its events, and has not read this one
}

// DeliveryQuery selects deliveries to list. An empty field matches all.
type DeliveryQuery struct {
	State, Endpoint, CallID string

	Limit  int    // at least 1
	Cursor string // where the last page ended; empty begins with the newest event
}

// DeliveryPage is one page of a list. A query looks at a bounded number of deliveries, so a page
// may be short, or empty, although more follow its cursor.
type DeliveryPage struct {
	Deliveries []DeliveryView
	Cursor     string // for the rest; empty if there is none
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
	DryRun       bool                  // only count
}

// Matches reports whether a redelivery selects an event, apart from the state of its delivery.
func (r *Redelivery) Matches(e Event) bool {
	return !e.At.Before(r.Since) && (r.Until.IsZero() || e.At.Before(r.Until)) &&
		(len(r.Types) == 0 || slices.Contains(r.Types, e.Type))
}
