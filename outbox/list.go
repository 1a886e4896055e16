package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/telephony"
)

// Delivery is how an event's way to an endpoint stands.
type Delivery struct {
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
	// NextAttempt is when a pending one is tried next; zero while it is held by an earlier event of its call, and of a question that is being asked.
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

// ErrBadCursor means that a cursor is none that Deliveries has given.
var ErrBadCursor = errors.New("the cursor is none that this list has given")

// position is where a list stands: at the delivery of an event to an endpoint.
type position struct {
	number   uint64
	endpoint string
}

func (p position) cursor() string { return fmt.Sprintf("%d.%s", p.number, p.endpoint) }

func parseCursor(s string) (position, error) {
	if s == "" {
		return position{number: math.MaxUint64}, nil
	}
	n, endpoint, ok := strings.Cut(s, ".")
	at, err := strconv.ParseUint(n, 10, 64)
	if !ok || err != nil {
		return position{}, ErrBadCursor
	}
	return position{at, endpoint}, nil
}

// Deliveries lists deliveries, those of the newest event first, and gives the cursor for the rest, empty if there is none. It fails with
// ErrBadCursor or ErrBadState.
func (o *Outbox) Deliveries(q DeliveryQuery) (list []Delivery, cursor string, err error) {
	if q.State != "" && !slices.Contains(stateNames[:], q.State) {
		return nil, "", fmt.Errorf("%w as %q: there are %s", ErrBadState, q.State, strings.Join(stateNames[:], ", "))
	}
	at, err := parseCursor(q.Cursor)
	if err != nil {
		return nil, "", err
	}
	var found []listed
	q.Limit++ // or nobody would know whether another one follows
	for more := true; more && len(found) < q.Limit; {
		if found, at, more, err = o.store.list(q, at, found); err != nil {
			return nil, "", err
		}
	}
	if len(found) == q.Limit {
		found = found[:q.Limit-1]
		cursor = found[len(found)-1].at.cursor()
	}
	for _, f := range found {
		list = append(list, f.Delivery)
	}
	return list, cursor, nil
}

// listed is a delivery and where it stands.
type listed struct {
	Delivery
	at position
}

// list adds what a query is for among the next events, and says where it ended and whether there may be more.
func (s *store) list(query DeliveryQuery, from position, list []listed) (_ []listed, end position, more bool, err error) {
	err = s.view(func(tx *txn) error {
		endpoints := tx.names()
		if query.Endpoint != "" {
			endpoints = slices.DeleteFunc(endpoints, func(name string) bool { return name != query.Endpoint })
		}
		next := tx.eventsBefore(query.CallID, from.number)
		for range readAtOnce {
			n, v := next()
			if v == nil {
				more = false
				return nil
			}
			for _, name := range endpoints {
				if n == from.number && name <= from.endpoint {
					continue
				}
				d, history := tx.queue(name).get(n)
				if d == nil {
					continue
				}
				d, toBeRead := s.shown(tx, name, n, d)
				if query.State != "" && d.state.String() != query.State {
					continue
				}
				if e, _, err := decodeEventHead(v); err == nil {
					found := describe(e, name, d, history)
					found.ToBeRead = toBeRead
					list = append(list, listed{found, position{n, name}})
				}
				if len(list) == query.Limit {
					return nil
				}
			}
			end, more = position{n, lastName}, true
		}
		return nil
	})
	return list, end, more, err
}

// lastName is past every endpoint's name.
const lastName = "\x7f"

// eventsBefore goes backwards through the events up to a number: all, or those of one call.
func (tx *txn) eventsBefore(call string, from uint64) (next func() (uint64, []byte)) {
	if call == "" {
		c := tx.events.Cursor()
		k, v := c.Seek(number(from))
		if k == nil {
			k, v = c.Last()
		} else if binary.BigEndian.Uint64(k) > from {
			k, v = c.Prev()
		}
		return func() (uint64, []byte) {
			if k == nil {
				return 0, nil
			}
			n, event := binary.BigEndian.Uint64(k), v
			k, v = c.Prev()
			return n, event
		}
	}
	var numbers []uint64
	prefix := callKey(call)
	c := tx.calls.Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if n := numberAt(v); n <= from {
			numbers = append(numbers, n)
		}
	}
	return func() (uint64, []byte) {
		if len(numbers) == 0 {
			return 0, nil
		}
		n := numbers[len(numbers)-1]
		numbers = numbers[:len(numbers)-1]
		return n, tx.events.Get(number(n))
	}
}

func describe(e stored, endpoint string, d *delivery, history []byte) Delivery {
	id := e.id.String()
	out := Delivery{
		ID: id + "." + endpoint, EventID: id, Endpoint: endpoint, Type: e.kind, CallID: e.call, EventTime: e.at.UTC(),
		State: d.state.String(), Attempts: d.attempts, Redelivered: d.redelivered > 0,
	}
	if e.call != "" {
		out.Sequence = e.sequence
	}
	if ends := attemptEnds(history); len(ends) > 0 {
		begin := 0
		if len(ends) > 1 {
			begin = ends[len(ends)-2]
		}
		last := decodeAttempts(history[begin:])[0]
		out.LastStatus, out.LastError = last.Status, last.Error
	}
	switch {
	case d.state != pending:
		out.Ended = time.Unix(0, d.due).UTC()
	case d.due != held && d.due != asking:
		// What is due at once was due when it came.
		out.NextAttempt = time.Unix(0, max(d.due, e.at.UnixNano())).UTC()
	}
	return out
}

// Delivery gives one delivery and its last attempts, oldest first, ten at most. It fails with ErrNotFound.
func (o *Outbox) Delivery(id string) (d Delivery, attempts []Attempt, err error) {
	eventID, endpoint, _ := strings.Cut(id, ".")
	err = o.store.view(func(tx *txn) error {
		n, known := tx.numberOf(eventID)
		q := tx.queue(endpoint)
		if !known || endpoint == "" || q == nil {
			return ErrNotFound
		}
		stands, history := q.get(n)
		e, _, err := decodeEventHead(tx.events.Get(number(n)))
		if stands == nil || err != nil {
			return ErrNotFound
		}
		stands, toBeRead := o.store.shown(tx, endpoint, n, stands)
		d, attempts = describe(e, endpoint, stands, history), decodeAttempts(history)
		d.ToBeRead = toBeRead
		return nil
	})
	return d, attempts, err
}

// EndpointStatus is how an endpoint stands.
type EndpointStatus struct {
	Name string
	// State is "ok", "failing" (only probed, since many attempts in a row have failed), "paused"
	// (it has asked with a 429 to be left alone), or "reads": it has no URL and reads its events.
	State       string
	LastRead    time.Time // when an endpoint that reads has done so last; zero if it never has
	Since       time.Time // since when it is failing
	NextAttempt time.Time // when it is probed next, or when the pause ends
	LastError   string    // of the last attempt that failed, while the endpoint is failing or paused
	// Pending, Delivered, Expired and Dead count the deliveries that the file holds. Of an endpoint
	// that reads, those are pending that it has not read, MaxUnread at most.
	Pending, Delivered, Expired, Dead uint64
}

// Endpoints says how each configured endpoint stands.
func (o *Outbox) Endpoints() ([]EndpointStatus, error) {
	var list []EndpointStatus
	err := o.store.view(func(tx *txn) error {
		for _, l := range o.lanes {
			status := l.status(time.Now())
			q := tx.queue(status.Name)
			n := q.counts
			if last, reads := o.store.reading(tx, status.Name); reads {
				status.State, status.LastRead = stateReads, last.at
				n[pending], _ = tx.unread(q, last)
				n[delivered] -= n[pending]
			}
			status.Pending, status.Delivered, status.Expired, status.Dead = n[pending], n[delivered], n[expired], n[dead]
			list = append(list, status)
		}
		return nil
	})
	return list, err
}

// orphans lists the endpoints that are configured no longer and have deliveries pending, and how many.
func (s *store) orphans() (list map[string]uint64, err error) {
	list = map[string]uint64{}
	err = s.view(func(tx *txn) error {
		for _, name := range tx.names() {
			if n := tx.queue(name).counts[pending]; n > 0 && !s.configured(name) {
				list[name] = n
			}
		}
		return nil
	})
	return list, err
}
