package store

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The bounds of what one request reads, for every engine: a client that wants more goes on with the
// cursor.
const (
	// MaxLooked is how many records one request looks at. A request that looked at all of them
	// would keep the processor from the deliveries.
	MaxLooked = 2048
	// MaxPageBytes is after how many bytes one read ends; its last record may go beyond.
	MaxPageBytes = 4 << 20
	// MaxCallEvents is how many events one page of a call has, and MaxCallBytes how many bytes it
	// takes, its last event aside.
	MaxCallEvents = 50
	MaxCallBytes  = 1 << 20
	// MaxHeadEvents is how many of a call's events its head is made of, the latest.
	MaxHeadEvents = 100
	// ClockSlack is how far the times of events may be out of order, since the clock is set now and
	// then: a search that goes back in time ends only this long before its bound.
	ClockSlack = time.Hour
	// LongestFound is the longest time from an event at which an index finds a call to the latest
	// event of the call, whose time is that of the call: a search by an index looks so much further
	// back.
	LongestFound = 24 * time.Hour
)

// Listing makes a page of a list of deliveries, from events that an engine passes to it, the newest
// first.
type Listing struct {
	DeliveryQuery
	From Position // the page begins behind it
	Page DeliveryPage

	endpoints []string
	end, last Position // the last one that was looked at, and the last that was found
	looked    int
	size      int // bytes of those that were found
}

// Listed is a delivery that may be listed, as people see it.
type Listed struct {
	Delivery
	History  []byte // the record of its attempts
	ToBeRead bool
}

// NewListing begins a page. Endpoints are all that the engine knows, in byte order. Fails with
// ErrBadState or ErrBadCursor.
func NewListing(q DeliveryQuery, endpoints []string) (*Listing, error) {
	if q.State != "" && !slices.Contains(StateNames[:], q.State) {
		return nil, fmt.Errorf("%w as %q: there are %s", ErrBadState, q.State, strings.Join(StateNames[:], ", "))
	}
	from, err := ParsePosition(q.Cursor)
	if err != nil {
		return nil, err
	}
	l := &Listing{DeliveryQuery: q, From: from, endpoints: endpoints, end: from}
	if q.Endpoint != "" {
		l.endpoints = nil
		if slices.Contains(endpoints, q.Endpoint) {
			l.endpoints = []string{q.Endpoint}
		}
	}
	return l, nil
}

// Endpoints lists those whose deliveries the list may have.
func (l *Listing) Endpoints() []string { return l.endpoints }

// StartBelow lets the page begin below a number, unless it begins further down.
func (l *Listing) StartBelow(n uint64) {
	if n <= l.From.Number {
		l.From = Position{Number: max(n, 1) - 1}
		l.end = l.From
	}
}

// Matches reports whether the list may have deliveries of an event.
func (l *Listing) Matches(e *Event) bool {
	return !e.At.Before(l.Since) && (l.Until.IsZero() || e.At.Before(l.Until)) &&
		(len(l.Types) == 0 || slices.Contains(l.Types, e.Type))
}

// Add adds the deliveries of an event that the list is for; get returns that to an endpoint. The
// event may lack its body, and the views then what they have of it. Add is false once the page is
// complete.
func (l *Listing) Add(n uint64, e *Event, get func(endpoint string) (Listed, bool)) bool {
	if !l.Matches(e) {
		return !e.At.Before(l.Since.Add(-ClockSlack)) && l.Skip(n)
	}
	for _, name := range l.endpoints {
		if n == l.From.Number && name <= l.From.Endpoint {
			continue
		}
		if l.looked == MaxLooked || l.size >= MaxPageBytes {
			l.Page.Cursor = l.end.String()
			return false
		}
		l.looked++
		l.end = Position{n, name}
		if d, ok := get(name); ok && !l.look(e, d) {
			return false
		}
	}
	return true
}

// lastEndpoint is behind the names of all endpoints: a cursor with it is behind all deliveries of
// an event.
const lastEndpoint = "\xff"

// Skip passes over an event. It is false once the page is complete.
func (l *Listing) Skip(n uint64) bool {
	if l.looked++; l.looked >= MaxLooked {
		l.EndAt(n)
		return false
	}
	return true
}

// EndAt ends the page behind an event: enough was looked at.
func (l *Listing) EndAt(n uint64) { l.Page.Cursor = Position{n, lastEndpoint}.String() }

// look adds the delivery at the end if the list is for it. It is false once the page is full.
func (l *Listing) look(e *Event, d Listed) bool {
	if l.State != "" && d.State.String() != l.State {
		return true
	}
	if len(l.Page.Deliveries) == l.Limit { // only now is it known that another one follows
		l.Page.Cursor = l.last.String()
		return false
	}
	v := DescribeDelivery(*e, l.end.Endpoint, d.Delivery, d.History)
	v.ToBeRead = d.ToBeRead
	v.Client, v.Extension = SidesIn(e.Body)
	l.Page.Deliveries, l.last = append(l.Page.Deliveries, v), l.end
	l.size += v.Size()
	return true
}

// Matches reports whether a list of calls is for one, apart from its number.
func (q *CallQuery) Matches(h *CallHead) bool {
	hasState := func(s CallStanding) bool { return s.State().String() == q.State && !IsInner(s.Endpoint) }
	return !h.Latest.Before(q.Since) && (q.Until.IsZero() || h.Latest.Before(q.Until)) &&
		(q.Direction == "" || h.Direction == q.Direction) &&
		(q.Outcome == "" || h.Outcome == q.Outcome) &&
		(q.State == "" || slices.ContainsFunc(h.Deliveries, hasState))
}
