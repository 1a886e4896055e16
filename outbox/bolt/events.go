package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"slices"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Events reads events: see store.Archive.
func (s *Engine) Events(_ context.Context, q store.EventQuery) (store.EventPage, error) {
	begin, read := s.forwards, s.eventsAfter
	if q.Backwards {
		begin, read = s.backwards, s.eventsBefore
	}
	at, err := begin(q.After)
	if err != nil {
		return store.EventPage{}, err
	}
	return read(q, at)
}

// forwards is where a read of events begins.
func (s *Engine) forwards(cursor string) (at store.EventCursor, err error) {
	if cursor == "" || cursor == store.CursorLatest {
		err = s.view(func(tx *txn) error {
			if cursor == "" {
				at.Warned = decodeNumber(tx.meta.Get(keyPruned))
			} else {
				at.After = tx.events.Sequence()
			}
			return nil
		})
		return at, err
	}
	if at, err = store.ParseEventCursor(cursor); err != nil {
		return store.EventCursor{}, err
	}
	return at, s.checkGap(at)
}

// backwards is where a read of events begins that gives the newest first.
func (s *Engine) backwards(cursor string) (store.EventCursor, error) {
	if cursor == "" || cursor == store.CursorLatest {
		return store.EventCursor{After: math.MaxUint64}, nil
	}
	return store.ParseEventCursor(cursor)
}

// checkGap fails with a *store.PrunedError where events after a cursor are missing.
func (s *Engine) checkGap(at store.EventCursor) error {
	return s.view(func(tx *txn) error {
		stored := store.StoredEvents{
			Last:   tx.events.Sequence(),
			Pruned: decodeNumber(tx.meta.Get(keyPruned)),
			Has:    tx.events.Get(number(at.After)) != nil,
		}
		c := tx.events.Cursor()
		k, _ := c.First()
		stored.First = decodeNumber(k)
		k, _ = seekBefore(c, number(at.After))
		stored.Before = decodeNumber(k)
		if at.After < math.MaxUint64 {
			k, _ = c.Seek(number(at.After + 1))
			stored.Next = decodeNumber(k)
		}
		return at.CheckGap(stored)
	})
}

// eventsOf is the bucket with a number for each event that a query may be for.
func (tx *txn) eventsOf(q store.EventQuery) *bolt.Bucket {
	if q.Endpoint != "" {
		return tx.queue(q.Endpoint).deliveries.Bucket // one for each event that the endpoint gets
	}
	return tx.events.Bucket
}

// eventReading is a read of events under way.
type eventReading struct {
	store.EventQuery
	page   store.EventPage
	looked int
	size   int // bytes of the page's events
}

// look adds an event if the query is for it. It is false, and adds nothing, once the read has
// looked at enough or the page is full.
func (r *eventReading) look(tx *txn, k []byte) bool {
	if r.looked == store.MaxLooked || len(r.page.Events) == r.Limit || r.size >= store.MaxPageBytes {
		r.page.More = true
		return false
	}
	r.looked++
	kind, _, body, err := splitEvent(tx.events.Get(k))
	isOfType := func(t telephony.EventType) bool { return string(t) == string(kind) }
	if err == nil && (len(r.Types) == 0 || slices.ContainsFunc(r.Types, isOfType)) {
		r.page.Events = append(r.page.Events, bytes.Clone(body))
		r.size += len(body)
	}
	return true
}

// eventsAfter reads the next events after a place.
func (s *Engine) eventsAfter(q store.EventQuery, at store.EventCursor) (store.EventPage, error) {
	r := eventReading{EventQuery: q}
	err := s.view(func(tx *txn) error {
		c := tx.eventsOf(q).Cursor()
		for k, _ := c.Seek(number(at.After + 1)); k != nil; k, _ = c.Next() {
			if !r.look(tx, k) {
				return nil
			}
			at.After = binary.BigEndian.Uint64(k)
		}
		// Nothing was missed up to the last event of all, whatever endpoint got it: that one stays
		// in the file longer than the last that this endpoint got.
		at.After = max(at.After, tx.events.Sequence())
		return nil
	})
	r.page.Cursor, r.page.Last = at.String(), at.After
	return r.page, err
}

// eventsBefore reads the events up to a place, the newest first.
func (s *Engine) eventsBefore(q store.EventQuery, at store.EventCursor) (store.EventPage, error) {
	r := eventReading{EventQuery: q}
	err := s.view(func(tx *txn) error {
		c := tx.eventsOf(q).Cursor()
		for k, _ := seekBack(c, at.After); k != nil; k, _ = c.Prev() {
			if !r.look(tx, k) {
				r.page.Last = binary.BigEndian.Uint64(k)
				r.page.Cursor = store.EventCursor{After: r.page.Last}.String()
				return nil
			}
		}
		return nil
	})
	return r.page, err
}
