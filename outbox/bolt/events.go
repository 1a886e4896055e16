package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

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
func (s *Engine) forwards(cursor string) (at eventCursor, err error) {
	if cursor == "" || cursor == store.CursorLatest {
		err = s.view(func(tx *txn) error {
			if cursor == "" {
				at.warned = decodeNumber(tx.meta.Get(keyPruned))
			} else {
				at.after = tx.events.Sequence()
			}
			return nil
		})
		return at, err
	}
	if at, err = parseEventCursor(cursor); err != nil {
		return eventCursor{}, err
	}
	return at, s.checkGap(at)
}

// backwards is where a read of events begins that gives the newest first.
func (s *Engine) backwards(cursor string) (eventCursor, error) {
	if cursor == "" || cursor == store.CursorLatest {
		return eventCursor{after: math.MaxUint64}, nil
	}
	return parseEventCursor(cursor)
}

// eventCursor is where a reader stands: behind an event. Events stay while an endpoint waits for
// them, so some are left between those that have been removed. A reader that got a PrunedError goes
// on with the number of the last event that was removed in its cursor, or it would get the error
// again.
type eventCursor struct {
	after, warned uint64
}

func (p eventCursor) String() string {
	if p.after >= p.warned {
		return strconv.FormatUint(p.after, 10)
	}
	return fmt.Sprintf("%d.%d", p.after, p.warned)
}

func parseEventCursor(cursor string) (p eventCursor, err error) {
	after, warned, has := strings.Cut(cursor, ".")
	if p.after, err = strconv.ParseUint(after, 10, 64); err != nil {
		return eventCursor{}, store.ErrBadCursor
	}
	if p.warned, err = strconv.ParseUint(warned, 10, 64); has && err != nil {
		return eventCursor{}, store.ErrBadCursor
	}
	return p, nil
}

// checkGap fails with a *store.PrunedError where events after a cursor are missing and the reader
// does not know it. A number at which there is no event, nor the next one, is of a file in whose
// place a backup was put (see renumber): what comes after that is new. One that was never given is
// of a file of which nothing is known.
func (s *Engine) checkGap(at eventCursor) error {
	return s.view(func(tx *txn) error {
		after, pruned, last := at.after, decodeNumber(tx.meta.Get(keyPruned)), tx.events.Sequence()
		isThere := func(n uint64) bool { return tx.events.Get(number(n)) != nil }
		switch {
		case after < pruned && at.warned >= pruned:
			return nil
		case after < pruned:
			return &store.PrunedError{Oldest: tx.firstCursorAfter(after, pruned).String()}
		case after == pruned, after == last, isThere(after), isThere(after + 1):
			return nil
		case after > last:
			return &store.PrunedError{Oldest: tx.firstCursorAfter(0, pruned).String()}
		}
		c := tx.events.Cursor()
		k, _ := c.Seek(number(after))
		if k == nil {
			k, _ = c.Last()
		} else {
			k, _ = c.Prev()
		}
		return &store.PrunedError{Oldest: eventCursor{decodeNumber(k), pruned}.String()}
	})
}

// firstCursorAfter is where to go on behind a number to miss nothing of what is left: at the last
// that was removed, or before it where some are left.
func (tx *txn) firstCursorAfter(after, pruned uint64) eventCursor {
	k, _ := tx.events.Cursor().Seek(number(after + 1))
	if k == nil || decodeNumber(k) > pruned {
		return eventCursor{after: pruned}
	}
	return eventCursor{after, pruned}
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
	if r.looked == maxLooked || len(r.page.Events) == r.Limit || r.size >= maxPageBytes {
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
func (s *Engine) eventsAfter(q store.EventQuery, at eventCursor) (store.EventPage, error) {
	r := eventReading{EventQuery: q}
	err := s.view(func(tx *txn) error {
		c := tx.eventsOf(q).Cursor()
		for k, _ := c.Seek(number(at.after + 1)); k != nil; k, _ = c.Next() {
			if !r.look(tx, k) {
				return nil
			}
			at.after = binary.BigEndian.Uint64(k)
		}
		// Nothing was missed up to the last event of all, whatever endpoint got it: that one stays
		// in the file longer than the last that this endpoint got.
		at.after = max(at.after, tx.events.Sequence())
		return nil
	})
	r.page.Cursor, r.page.Last = at.String(), at.after
	return r.page, err
}

// eventsBefore reads the events up to a place, the newest first.
func (s *Engine) eventsBefore(q store.EventQuery, at eventCursor) (store.EventPage, error) {
	r := eventReading{EventQuery: q}
	err := s.view(func(tx *txn) error {
		c := tx.eventsOf(q).Cursor()
		for k, _ := seekBack(c, at.after); k != nil; k, _ = c.Prev() {
			if !r.look(tx, k) {
				r.page.Last = binary.BigEndian.Uint64(k)
				r.page.Cursor = eventCursor{after: r.page.Last}.String()
				return nil
			}
		}
		return nil
	})
	return r.page, err
}
