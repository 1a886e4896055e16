package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pzbridge/internal/telephony"
)

// Archive is read by people and programs, and sends again. It needs no lane.
type Archive interface {
	// Events reads events. Fails with ErrBadCursor or, forwards, with a *PrunedError.
	Events(ctx context.Context, q EventQuery) (EventPage, error)
	// Event gives one event by its ID. Fails with ErrNotFound.
	Event(ctx context.Context, eventID string) (Event, error)
	// Call gives what has happened to a call after a sequence; 0 is from the beginning. Fails with
	// ErrNoCall.
	Call(ctx context.Context, callID string, after uint64) (CallPage, error)
	// LatestCalls gives the IDs of up to limit calls, that of the newest event first. It looks at
	// the newest few thousand events.
	LatestCalls(ctx context.Context, limit int) ([]string, error)
	// Deliveries lists deliveries, those of the newest event first. Fails with ErrBadCursor or
	// ErrBadState.
	Deliveries(ctx context.Context, q DeliveryQuery) (DeliveryPage, error)
	// Delivery gives one delivery and its last attempts, oldest first, ten at most. Fails with
	// ErrNotFound.
	Delivery(ctx context.Context, eventID, endpoint string) (DeliveryView, []Attempt, error)
	// Standing says how the deliveries of each endpoint stand, by its name; also of endpoints that
	// are configured no longer.
	Standing(ctx context.Context) (map[string]Standing, error)
	// OldestPending is when the oldest event was read that waits for an endpoint; zero if none
	// does.
	OldestPending(ctx context.Context, endpoint string) (time.Time, error)
	// SetRead notes a page that an endpoint without a URL has read; newest is the number of the
	// last event before it did. Forwards that is up to where the page ends. Backwards the first
	// page has read up to the newest event, if it goes back to what was read before; that there was
	// a read at all counts for every page. It is durable within two seconds.
	SetRead(ctx context.Context, q EventQuery, p EventPage, newest uint64, at time.Time)

	// Redeliver makes one delivery pending from the start of the schedule, behind what is pending
	// before it in its call. Fails with ErrNotFound.
	Redeliver(ctx context.Context, eventID, endpoint string, now time.Time) error
	// RedeliverSome does the same for the next few that a selection is for, from a number on up to
	// another, or only counts them. They are chosen and changed in one transaction.
	RedeliverSome(
		ctx context.Context, r Redelivery, from, last uint64, now time.Time,
	) (count int, next uint64, err error)
	// LastNumber is the number of the event that was appended last, also if it has been removed.
	LastNumber(ctx context.Context) (uint64, error)
}

// DeliveryView is how an event's way to an endpoint stands, for people and programs.
type DeliveryView struct {
	ID        string // <event ID>.<endpoint>
	EventID   string
	Endpoint  string
	Type      telephony.EventType
	CallID    string // empty for an event of no call
	Sequence  uint64 // within its call
	EventTime time.Time
	State     string // pending, delivered, expired or dead
	Attempts  int    // made in all
	// LastStatus is the HTTP status of the last attempt's answer; 0 if there was none.
	LastStatus int
	LastError  string // why the last attempt had no answer
	// NextAttempt is when a pending one is tried next; zero while an earlier event of its call
	// holds it, and of a question that is being asked.
	NextAttempt time.Time
	Ended       time.Time // when it came to be delivered, expired or dead; zero while it is pending
	Redelivered bool      // somebody has asked for it again
	ToBeRead    bool      // it is pending since its endpoint reads its events, and has not read this one
}

// DeliveryQuery says which deliveries to list. Empty fields leave nothing out.
type DeliveryQuery struct {
	State, Endpoint, CallID string

	Limit  int    // at least 1
	Cursor string // where the list before ended; empty begins with the newest event
}

// DeliveryPage is a part of a list. A list looks at a bounded number of deliveries at a time, so it
// may be short, or empty, though there is more behind its cursor.
type DeliveryPage struct {
	Deliveries []DeliveryView
	Cursor     string // for the rest; empty if there is none
}

// CallEvent is an event of a call, with its ways to the endpoints.
type CallEvent struct {
	ID       string
	Type     telephony.EventType
	Sequence uint64
	Time     time.Time
	// From and To are the numbers as people are shown them: see telephony.Brief.
	From, To   string
	Deliveries []DeliveryView
}

// CallPage is a part of what is known of a call.
type CallPage struct {
	Events []CallEvent      // in order
	Route  *telephony.Route // the question where it should go; nil if it has not asked
	Next   uint64           // the sequence after which to go on; 0 if nothing follows
}

// CursorLatest is the cursor behind all events that there are.
const CursorLatest = "now"

// EventQuery says which events to read.
type EventQuery struct {
	Endpoint string // whose events; empty are all that there are
	// After is the cursor that the read before has given, in either direction. Empty begins with
	// the oldest event, CursorLatest with the next one to come; backwards both begin with the
	// newest.
	After     string
	Backwards bool                  // the newest first
	Types     []telephony.EventType // none means all
	Limit     int                   // at least 1
}

// EventPage is what one read of events gives. It looks at a bounded number of events, so it may
// hold none though later reads do.
type EventPage struct {
	Events [][]byte // bodies in the standard format
	Cursor string   // where to go on; empty backwards where there is nothing further
	More   bool     // there may be more already
	Last   uint64   // the number behind which the page ends
}

// PrunedError means that events after a cursor have been removed, or that the cursor is of a file
// in whose place a backup was put. Oldest is the cursor from which on nothing is missing.
type PrunedError struct{ Oldest string }

func (e *PrunedError) Error() string {
	return fmt.Sprintf("events after this cursor have been removed from the outbox (by OUTBOX_RETENTION, "+
		"or earlier since it was nearly full), or a backup was restored; "+
		"the oldest that are left come after %q", e.Oldest)
}

// Standing is how the deliveries of an endpoint stand.
type Standing struct {
	// Pending, Delivered, Expired and Dead count deliveries. Of an endpoint that reads, those are
	// pending that it has not read, MaxUnread at most.
	Pending, Delivered, Expired, Dead uint64
	LastRead                          time.Time // of an endpoint that reads; zero if it never has
}

// MaxUnread is how many of the events that an endpoint has not read are counted at most, so that a
// page does not hold up other readers.
const MaxUnread = 4096

// Missing is, beside the names of the states, what Redelivery.States calls an event that the
// endpoint was never to get: it came before the endpoint was configured.
const Missing = "missing"

// Redelivery says what to deliver again.
type Redelivery struct {
	Endpoint string
	// Since and Until bound when the bridge read the event: from Since on, before Until. The zero
	// value is no bound.
	Since, Until time.Time
	States       []string              // delivered, expired, dead, Missing; none means all of them
	Types        []telephony.EventType // none means all
	DryRun       bool                  // only count
}

// Matches reports whether the redelivery is for an event, whatever became of its delivery.
func (r *Redelivery) Matches(e Event) bool {
	return !e.At.Before(r.Since) && (r.Until.IsZero() || e.At.Before(r.Until)) &&
		(len(r.Types) == 0 || slices.Contains(r.Types, e.Type))
}
