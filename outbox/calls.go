package outbox

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
)

// CallEvent is an event of a call, with its ways to the endpoints.
type CallEvent struct {
	ID       string
	Type     telephony.EventType
	Sequence uint64
	Time     time.Time
	// From and To are the numbers as people are shown them: see telephony.Brief.
	From, To   string
	Deliveries []Delivery
}

// CallPage is a part of what is known of a call.
type CallPage struct {
	Events []CallEvent      // in order
	Route  *telephony.Route // the question where it should go; nil if it has not asked
	Next   uint64           // the sequence after which to go on; 0 if nothing follows
}

// ErrNoCall means that the file holds no event of a call.
var ErrNoCall = errors.New("no event of this call is known: OUTBOX_RETENTION may have removed them")

const (
	maxCallEvents = 50      // of one page of a call
	maxCallBytes  = 1 << 20 // that such a page takes, its last event aside
)

// Call tells what has happened to a call, after an event's sequence: 0 is from the beginning. It fails with ErrNoCall.
func (o *Outbox) Call(callID string, after uint64) (page CallPage, err error) {
	err = o.store.view(func(tx *txn) error {
		page = CallPage{}
		prefix := callKey(callID)
		c := tx.calls.Cursor()
		if k, _ := c.Seek(prefix); callID == "" || !bytes.HasPrefix(k, prefix) {
			return ErrNoCall
		}
		names := tx.names()
		size, looked := 0, 0
		for k, v := c.Seek(binary.BigEndian.AppendUint64(bytes.Clone(prefix), after+1)); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if len(page.Events) == maxCallEvents || size >= maxCallBytes || looked == maxLooked {
				page.Next = after
				break
			}
			looked++
			after = decodeNumber(k[len(prefix):])
			event, bytes, err := o.store.callEvent(tx, numberAt(v), names)
			if err != nil {
				continue // the rest is worth knowing
			}
			page.Events = append(page.Events, event)
			size += bytes
		}
		if page.Route, err = tx.route(callID); err != nil {
			page.Route = nil // it is damaged, and the events are worth knowing all the same
		}
		return nil
	})
	return page, err
}

// callEvent reads one event of a call, and says about how many bytes it takes with the attempts of its deliveries.
func (s *store) callEvent(tx *txn, n uint64, names []string) (event CallEvent, size int, err error) {
	e, body, err := decodeEventHead(tx.events.Get(number(n)))
	if err != nil {
		return CallEvent{}, 0, err
	}
	event = CallEvent{ID: e.id.String(), Type: e.kind, Sequence: e.sequence, Time: e.at.UTC()}
	event.From, event.To = numbersIn(body)
	for _, name := range names {
		if d, history := tx.queue(name).get(n); d != nil {
			d, toBeRead := s.shown(tx, name, n, d)
			told := describe(e, name, d, history)
			told.ToBeRead = toBeRead
			event.Deliveries = append(event.Deliveries, told)
			size += told.size() + len(history)
		}
	}
	return event, size, nil
}

// numbersIn gives the numbers of a call's event, in brief, without looking further into its body than to them: the members stand in the order of newRecord.
func numbersIn(body []byte) (from, to string) {
	at := bytes.Index(body, []byte(`,"sequence":`)) // no text holds that: its quotes would be escaped
	if at < 0 {
		return "", ""
	}
	var values struct{ From, To string }
	d := json.NewDecoder(io.MultiReader(strings.NewReader("{"), bytes.NewReader(body[at+1:])))
	_, _ = d.Token()
	for d.More() {
		var value any
		name, err := d.Token()
		if err != nil || name != "sequence" && name != "from" && name != "to" || d.Decode(&value) != nil {
			break
		}
		switch text, _ := value.(string); name {
		case "from":
			values.From = telephony.Brief(text)
		case "to":
			values.To = telephony.Brief(text)
		}
	}
	return values.From, values.To
}

// Route gives the question where a call should go, nil if it has not asked.
func (o *Outbox) Route(callID string) (route *telephony.Route, err error) {
	err = o.store.view(func(tx *txn) error {
		route, err = tx.route(callID)
		return err
	})
	return route, err
}

// LatestCalls gives the IDs of up to limit calls, the one of the newest event first. It looks at the last few thousand events only.
func (o *Outbox) LatestCalls(limit int) (calls []string, err error) {
	err = o.store.view(func(tx *txn) error {
		c := tx.events.Cursor()
		looked := 0
		for k, v := c.Last(); k != nil && looked < maxLooked && len(calls) < limit; k, v = c.Prev() {
			looked++
			_, call, _, err := splitEvent(v)
			if err == nil && len(call) > 0 && !slices.ContainsFunc(calls, func(known string) bool { return known == string(call) }) {
				calls = append(calls, string(call))
			}
		}
		return nil
	})
	return calls, err
}

// EventQuery says which events to read.
type EventQuery struct {
	Endpoint string // whose events; empty are all that there are
	// After is the cursor that the read before has given, in either direction. Empty begins with the oldest event, Now with the next one to come; backwards
	// both begin with the newest.
	After     string
	Backwards bool                  // the newest first
	Types     []telephony.EventType // none means all
	Limit     int                   // at least 1
}

// EventPage is what one read of events gives. It looks at a bounded number of events only, so it may hold none though later reads do.
type EventPage struct {
	Events [][]byte
	Cursor string // where to go on; empty backwards where there is nothing further
	More   bool   // there may be more already
}

// Now is the cursor behind all events that there are.
const Now = "now"

// PrunedError means that events after a cursor have been removed, or that the cursor is of a file in whose place a backup was put. Oldest is the cursor from
// which on nothing is missing.
type PrunedError struct{ Oldest string }

func (e *PrunedError) Error() string {
	return fmt.Sprintf("events after this cursor have been removed from the outbox (by OUTBOX_RETENTION, or earlier since it was nearly full), or a backup was restored; the oldest that are left come after %q", e.Oldest)
}

// Events reads events, as the endpoint's webhooks tell them, and gives the cursor to go on from: forwards also when there is none. It fails with
// ErrBadCursor, ErrNoEndpoint or a *PrunedError, backwards with the first two: what was removed is the end then.
func (o *Outbox) Events(q EventQuery) (EventPage, error) {
	format, reads := FormatStandard, false
	if q.Endpoint != "" {
		e, err := o.store.endpoint(q.Endpoint)
		if err != nil {
			return EventPage{}, err
		}
		format, reads = e.Format, e.URL == ""
	}
	begin, read := o.store.forwards, o.store.eventsAfter
	if q.Backwards {
		begin, read = o.store.backwards, o.store.eventsBefore
	}
	at, err := begin(q.After)
	if err != nil {
		return EventPage{}, err
	}
	newest, err := o.store.lastNumber()
	if err != nil {
		return EventPage{}, err
	}
	page, err := read(q, at)
	if err == nil && reads {
		o.noteRead(q, page.Cursor, newest)
	}
	for i := range page.Events {
		page.Events[i] = format.object(page.Events[i])
	}
	return page, err
}

// noteRead notes how far an endpoint has read. Forwards that is where the page ends. Backwards the first
// page has read up to the newest event, if it goes back to what was read before; that it was read at
// all is noted for every page.
func (o *Outbox) noteRead(q EventQuery, cursor string, newest uint64) {
	end, err := parsePlace(cursor)
	if !q.Backwards {
		if err == nil {
			o.store.readers.note(q.Endpoint, end.after)
		}
		return
	}
	var last reading
	if o.store.view(func(tx *txn) error {
		last, _ = o.store.reading(tx, q.Endpoint)
		return nil
	}) != nil {
		return
	}
	upTo, isFirst := last.upTo, q.After == "" || q.After == Now
	if isFirst && (cursor == "" || end.after <= last.upTo) {
		upTo = newest
	}
	o.store.readers.note(q.Endpoint, upTo)
}

// forwards is where a read of events begins.
func (s *store) forwards(cursor string) (at place, err error) {
	switch cursor {
	case "":
		at.told, err = s.lastPruned()
		return at, err
	case Now:
		at.after, err = s.lastNumber()
		return at, err
	}
	if at, err = parsePlace(cursor); err != nil {
		return place{}, err
	}
	return at, s.whole(at)
}

// backwards is where a read of events begins that gives the newest first.
func (s *store) backwards(cursor string) (place, error) {
	if cursor == "" || cursor == Now {
		return place{after: math.MaxUint64}, nil
	}
	return parsePlace(cursor)
}

// mostRead is how many bytes of events one read gives before it ends; the last one may go beyond.
const mostRead = 4 << 20

// place is where a reader stands: behind an event. Events stay for whoever waits for them, so some are left between those that have been removed. Who has been
// told of that reads them with the number of the last that was removed in the cursor, or it would be told again and again.
type place struct {
	after, told uint64
}

func (p place) cursor() string {
	if p.after >= p.told {
		return strconv.FormatUint(p.after, 10)
	}
	return fmt.Sprintf("%d.%d", p.after, p.told)
}

func parsePlace(cursor string) (p place, err error) {
	after, told, has := strings.Cut(cursor, ".")
	if p.after, err = strconv.ParseUint(after, 10, 64); err != nil {
		return place{}, ErrBadCursor
	}
	if p.told, err = strconv.ParseUint(told, 10, 64); has && err != nil {
		return place{}, ErrBadCursor
	}
	return p, nil
}

// closeReaders ends what is pending for endpoints that read their events and had an address before: it is there to be read, and there is nowhere to send it.
func (s *store) closeReaders() error {
	const batch = 1024 // deliveries in one transaction
	for i := range s.endpoints {
		if s.endpoints[i].URL != "" {
			continue
		}
		for done := false; !done; {
			err := s.commit(func(tx *txn) error {
				q := tx.queue(s.endpoints[i].Name)
				done = true
				if q.counts[pending] == 0 {
					return nil
				}
				var waiting []uint64
				c := q.deliveries.Cursor()
				for k, v := c.First(); k != nil; k, v = c.Next() {
					if d, err := decodeDelivery(v); err != nil || d.state != pending {
						continue
					}
					if done = len(waiting) < batch; !done {
						break
					}
					waiting = append(waiting, decodeNumber(k))
				}
				for _, n := range waiting {
					d, history := q.get(n)
					closed := d.ended(delivered, time.Now())
					closed.attempts = 0 // by which it is told from what was sent: see isUnread
					if err := q.put(n, d, closed, history); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// lastPruned is the highest number of an event that was removed.
func (s *store) lastPruned() (n uint64, err error) {
	err = s.view(func(tx *txn) error {
		n = decodeNumber(tx.meta.Get(keyPruned))
		return nil
	})
	return n, err
}

// whole says whether all events after a place are still there, or it is known which are not. A number at which there is no event, nor the next one, is of a file
// in whose place a backup was put (see renumber): what comes after that is new. One that was never given is of a file of which nothing is known.
func (s *store) whole(at place) error {
	return s.view(func(tx *txn) error {
		after, pruned := at.after, decodeNumber(tx.meta.Get(keyPruned))
		if after < pruned {
			if at.told >= pruned {
				return nil
			}
			return &PrunedError{Oldest: tx.left(after, pruned).cursor()}
		}
		if after == pruned || after == tx.events.Sequence() || tx.events.Get(number(after)) != nil || tx.events.Get(number(after+1)) != nil {
			return nil
		}
		if after > tx.events.Sequence() {
			return &PrunedError{Oldest: tx.left(0, pruned).cursor()}
		}
		c := tx.events.Cursor()
		k, _ := c.Seek(number(after))
		if k == nil {
			k, _ = c.Last()
		} else {
			k, _ = c.Prev()
		}
		return &PrunedError{Oldest: place{decodeNumber(k), pruned}.cursor()}
	})
}

// left is where to go on behind a number to miss nothing of what is left: at the last that was removed, or before it where some are left.
func (tx *txn) left(after, pruned uint64) place {
	k, _ := tx.events.Cursor().Seek(number(after + 1))
	if k == nil || decodeNumber(k) > pruned {
		return place{after: pruned}
	}
	return place{after, pruned}
}

// eventsOf is the bucket with a number for each event that a query may be for.
func (tx *txn) eventsOf(q EventQuery) *bolt.Bucket {
	if q.Endpoint != "" {
		return tx.queue(q.Endpoint).deliveries // one for each event that the endpoint gets
	}
	return tx.events
}

// eventReading is a read of events under way.
type eventReading struct {
	EventQuery
	page   EventPage
	looked int
	size   int // bytes of the page's events
}

// look adds an event if the query is for it. It is false, and adds nothing, once the read has looked at enough or the page is full.
func (r *eventReading) look(tx *txn, k []byte) bool {
	if r.looked == maxLooked || len(r.page.Events) == r.Limit || r.size >= mostRead {
		r.page.More = true
		return false
	}
	r.looked++
	kind, _, body, err := splitEvent(tx.events.Get(k))
	if err == nil && (len(r.Types) == 0 || slices.ContainsFunc(r.Types, func(t telephony.EventType) bool { return string(t) == string(kind) })) {
		r.page.Events = append(r.page.Events, bytes.Clone(body))
		r.size += len(body)
	}
	return true
}

// eventsAfter reads the next events after a place.
func (s *store) eventsAfter(q EventQuery, at place) (EventPage, error) {
	r := eventReading{EventQuery: q}
	err := s.view(func(tx *txn) error {
		c := tx.eventsOf(q).Cursor()
		for k, _ := c.Seek(number(at.after + 1)); k != nil; k, _ = c.Next() {
			if !r.look(tx, k) {
				return nil
			}
			at.after = binary.BigEndian.Uint64(k)
		}
		// Nothing was missed up to the last event of all, whoever got it: that one stays in the file longer than the last that this endpoint got.
		at.after = max(at.after, tx.events.Sequence())
		return nil
	})
	r.page.Cursor = at.cursor()
	return r.page, err
}

// eventsBefore reads the events up to a place, the newest first.
func (s *store) eventsBefore(q EventQuery, at place) (EventPage, error) {
	r := eventReading{EventQuery: q}
	err := s.view(func(tx *txn) error {
		c := tx.eventsOf(q).Cursor()
		for k, _ := seekBack(c, at.after); k != nil; k, _ = c.Prev() {
			if !r.look(tx, k) {
				r.page.Cursor = place{after: binary.BigEndian.Uint64(k)}.cursor()
				return nil
			}
		}
		return nil
	})
	return r.page, err
}

// Changed gives a channel that is closed when events have been appended.
func (o *Outbox) Changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.changed
}

// tell wakes whoever waits for Changed.
func (o *Outbox) tell() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}
