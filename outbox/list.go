package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

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

// maxLooked is how many records one request looks at: whoever lists or reads goes on with the cursor. A request that looked at all of them would keep the
// processor from the deliveries.
const maxLooked = 2048

// Deliveries lists deliveries, those of the newest event first, and gives the cursor for the rest, empty if there is none. It looks at a bounded number of them,
// so a list may be short, or empty, though there is more behind its cursor. It fails with ErrBadCursor or ErrBadState.
func (o *Outbox) Deliveries(q DeliveryQuery) (list []Delivery, cursor string, err error) {
	if q.State != "" && !slices.Contains(stateNames[:], q.State) {
		return nil, "", fmt.Errorf("%w as %q: there are %s", ErrBadState, q.State, strings.Join(stateNames[:], ", "))
	}
	from, err := parseCursor(q.Cursor)
	if err != nil {
		return nil, "", err
	}
	l := listing{DeliveryQuery: q, store: o.store, from: from}
	err = o.store.view(l.run)
	return l.found, l.cursor, err
}

// listing is a list of deliveries that is being made.
type listing struct {
	DeliveryQuery
	store  *store
	from   position
	found  []Delivery
	last   position // of the last one that was found
	looked int
	size   int // bytes of those that were found
	cursor string
}

func (l *listing) run(tx *txn) error {
	endpoints := tx.names()
	if l.Endpoint != "" {
		endpoints = slices.DeleteFunc(endpoints, func(name string) bool { return name != l.Endpoint })
	}
	if len(endpoints) == 0 {
		return nil
	}
	next := tx.eventsBefore(l.CallID, l.from.number)
	for end := l.from; ; {
		n, v := next()
		if v == nil {
			return nil
		}
		for _, name := range endpoints {
			if n == l.from.number && name <= l.from.endpoint {
				continue
			}
			if l.looked == maxLooked || l.size >= mostRead {
				l.cursor = end.cursor()
				return nil
			}
			l.looked++
			end = position{n, name}
			d, history := tx.queue(name).get(n)
			if d == nil {
				continue
			}
			d, toBeRead := l.store.shown(tx, name, n, d)
			if l.State != "" && d.state.String() != l.State {
				continue
			}
			if len(l.found) == l.Limit { // or nobody would know whether another one follows
				l.cursor = l.last.cursor()
				return nil
			}
			if e, _, err := decodeEventHead(v); err == nil {
				told := describe(e, name, d, history)
				told.ToBeRead = toBeRead
				l.found, l.last = append(l.found, told), end
				l.size += told.size()
			}
		}
	}
}

// size is about how many bytes of an answer a delivery takes.
func (d Delivery) size() int { return 400 + len(d.CallID) + len(d.LastError) }

// seekBack goes to the last key that is a number up to one.
func seekBack(c *bolt.Cursor, n uint64) (k, v []byte) {
	k, v = c.Seek(number(n))
	switch {
	case k == nil:
		return c.Last()
	case binary.BigEndian.Uint64(k) > n:
		return c.Prev()
	}
	return k, v
}

// eventsBefore goes backwards through the events up to a number: all, or those of one call.
func (tx *txn) eventsBefore(call string, from uint64) (next func() (uint64, []byte)) {
	if call == "" {
		c := tx.events.Cursor()
		k, v := seekBack(c, from)
		return func() (uint64, []byte) {
			if k == nil {
				return 0, nil
			}
			n, event := binary.BigEndian.Uint64(k), v
			k, v = c.Prev()
			return n, event
		}
	}
	prefix := callKey(call)
	c := tx.calls.Cursor()
	k, v := tx.seekBackInCall(c, prefix, from)
	return func() (uint64, []byte) {
		if !bytes.HasPrefix(k, prefix) {
			return 0, nil
		}
		n := numberAt(v)
		k, v = c.Prev()
		return n, tx.events.Get(number(n))
	}
}

// seekBackInCall goes to the last event of a call up to a number; numbers grow with the sequence, which may have gaps. The key is another's if there is none.
func (tx *txn) seekBackInCall(c *bolt.Cursor, prefix []byte, from uint64) (k, v []byte) {
	seek := func(sequence int) {
		k, v = c.Seek(binary.BigEndian.AppendUint64(bytes.Clone(prefix), uint64(sequence)))
	}
	last, _ := tx.lastOf(bytes.Clone(prefix))
	seek(sort.Search(int(min(last, math.MaxInt32))+1, func(sequence int) bool {
		seek(sequence)
		return !bytes.HasPrefix(k, prefix) || numberAt(v) > from
	}))
	if k == nil {
		return c.Last()
	}
	return c.Prev()
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
				n[delivered] -= min(n[delivered], n[pending]) // a count may be damaged
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
