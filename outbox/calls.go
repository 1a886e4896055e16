package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/telephony"
)

// CallEvent is an event of a call, with its ways to the endpoints.
type CallEvent struct {
	ID         string
	Type       telephony.EventType
	Sequence   uint64
	Time       time.Time
	Body       []byte // of its webhook, in the standard format
	Deliveries []Delivery
}

// ErrNoCall means that the file holds no event of a call.
var ErrNoCall = errors.New("no event of this call is known: OUTBOX_RETENTION may have removed them")

// mostOfACall is how many events of a call are told, the first ones.
const mostOfACall = 1000

// Call tells what has happened to a call: its events in order, and the question where it should go, nil if it has not asked. It fails with ErrNoCall.
func (o *Outbox) Call(callID string) (events []CallEvent, route *telephony.Route, err error) {
	err = o.store.view(func(tx *txn) error {
		prefix := callKey(callID)
		names := tx.names()
		c := tx.calls.Cursor()
		for k, v := c.Seek(prefix); callID != "" && bytes.HasPrefix(k, prefix) && len(events) < mostOfACall; k, v = c.Next() {
			n := numberAt(v)
			e, err := decodeEvent(tx.events.Get(number(n)))
			if err != nil {
				continue // the rest is worth knowing
			}
			told := CallEvent{ID: e.id.String(), Type: e.kind, Sequence: e.sequence, Time: e.at.UTC(), Body: e.body}
			for _, name := range names {
				if d, history := tx.queue(name).get(n); d != nil {
					d, toBeRead := o.store.shown(tx, name, n, d)
					delivery := describe(e, name, d, history)
					delivery.ToBeRead = toBeRead
					told.Deliveries = append(told.Deliveries, delivery)
				}
			}
			events = append(events, told)
		}
		if len(events) == 0 {
			return ErrNoCall
		}
		if route, err = tx.route(callID); err != nil {
			route = nil // it is damaged, and the events are worth knowing all the same
		}
		return nil
	})
	return events, route, err
}

// LatestCalls gives the IDs of up to limit calls, the one of the newest event first. It looks at the last few thousand events only.
func (o *Outbox) LatestCalls(limit int) (calls []string, err error) {
	err = o.store.view(func(tx *txn) error {
		c := tx.events.Cursor()
		seen := 0
		for k, v := c.Last(); k != nil && seen < readAtOnce && len(calls) < limit; k, v = c.Prev() {
			seen++
			e, _, err := decodeEventHead(v)
			if err == nil && e.call != "" && !slices.Contains(calls, e.call) {
				calls = append(calls, e.call)
			}
		}
		return nil
	})
	return calls, err
}

// EventQuery says which events to read.
type EventQuery struct {
	Endpoint string                // whose events; empty are all that there are
	After    string                // the cursor that the read before has given; empty begins with the oldest event, Now with the next one to come
	Types    []telephony.EventType // none means all
	Limit    int                   // at least 1
}

// Now is the cursor behind all events that there are.
const Now = "now"

// PrunedError means that events after a cursor have been removed, or that the cursor is of a file in whose place a backup was put. Oldest is the cursor from
// which on nothing is missing.
type PrunedError struct{ Oldest string }

func (e *PrunedError) Error() string {
	return fmt.Sprintf("events after this cursor have been removed from the outbox (by OUTBOX_RETENTION, or earlier since it was nearly full), or a backup was restored; the oldest that are left come after %q", e.Oldest)
}

// Events reads events, oldest first, as the endpoint's webhooks tell them, and gives the cursor to go on from: also when there is none. It fails with
// ErrBadCursor, ErrNoEndpoint or a *PrunedError.
func (o *Outbox) Events(q EventQuery) (bodies [][]byte, cursor string, err error) {
	format, reads := FormatStandard, false
	if q.Endpoint != "" {
		e, err := o.store.endpoint(q.Endpoint)
		if err != nil {
			return nil, "", err
		}
		format, reads = e.Format, e.URL == ""
	}
	var at place
	switch q.After {
	case "":
		if at.told, err = o.store.lastPruned(); err != nil {
			return nil, "", err
		}
	case Now:
		if at.after, err = o.store.lastNumber(); err != nil {
			return nil, "", err
		}
	default:
		if at, err = parsePlace(q.After); err != nil {
			return nil, "", err
		}
		if err := o.store.whole(at); err != nil {
			return nil, "", err
		}
	}
	for more, size := true, 0; more && len(bodies) < q.Limit && size < mostRead; {
		var read [][]byte
		read, at, more, err = o.store.eventsAfter(q, at, q.Limit-len(bodies), mostRead-size)
		if err != nil {
			return nil, "", err
		}
		for _, body := range read {
			size += len(body)
			bodies = append(bodies, format.object(body))
		}
	}
	if reads {
		o.store.readers.note(q.Endpoint, at.after)
	}
	return bodies, at.cursor(), nil
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
					if err := q.put(n, d, d.ended(delivered, time.Now()), history); err != nil {
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

// eventsAfter gives the bodies of events that the query is for, among the next ones after a place: up to limit of them and as long as they have less than size
// bytes in all; where it has ended, and whether there may be more.
func (s *store) eventsAfter(q EventQuery, at place, limit, size int) (bodies [][]byte, end place, more bool, err error) {
	end = at
	err = s.view(func(tx *txn) error {
		bucket := tx.events
		if q.Endpoint != "" {
			bucket = tx.queue(q.Endpoint).deliveries // one for each event that the endpoint gets
		}
		c := bucket.Cursor()
		seen := 0
		for k, _ := c.Seek(number(at.after + 1)); k != nil; k, _ = c.Next() {
			if seen == readAtOnce || len(bodies) == limit || size <= 0 {
				more = true
				return nil
			}
			seen++
			end.after = binary.BigEndian.Uint64(k)
			e, body, err := decodeEventHead(tx.events.Get(k))
			if err == nil && (len(q.Types) == 0 || slices.Contains(q.Types, e.kind)) {
				bodies = append(bodies, bytes.Clone(body))
				size -= len(body)
			}
		}
		// Nothing was missed up to the last event of all, whoever got it: that one stays in the file longer than the last that this endpoint got.
		end.after = max(end.after, tx.events.Sequence())
		return nil
	})
	return bodies, end, more, err
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
