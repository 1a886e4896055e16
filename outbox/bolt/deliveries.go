package bolt

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"math"
	"slices"
	"sort"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/outbox/store"
)

// Deliveries lists deliveries: see store.Archive.
func (s *Engine) Deliveries(_ context.Context, q store.DeliveryQuery) (page store.DeliveryPage, err error) {
	err = s.view(func(tx *txn) error {
		l, err := store.NewListing(q, tx.names())
		if err != nil {
			return err
		}
		s.list(tx, l)
		page = l.Page
		return nil
	})
	return page, err
}

// list makes a page of a list of deliveries.
func (s *Engine) list(tx *txn, l *store.Listing) {
	if len(l.Endpoints()) == 0 {
		return
	}
	if !l.Until.IsZero() {
		l.StartBelow(tx.firstSince(l.Until.Add(store.ClockSlack)))
	}
	next := s.candidates(tx, l)
	for more := true; more; {
		n, event := next()
		if event == nil {
			return
		}
		e, body, err := decodeEventHead(event)
		if err != nil {
			more = l.Skip(n)
			continue
		}
		e.Body = body
		more = l.Add(n, &e, func(endpoint string) (store.Listed, bool) { return s.listed(tx, endpoint, n) })
	}
}

// listed returns a delivery as people see it.
func (s *Engine) listed(tx *txn, endpoint string, n uint64) (store.Listed, bool) {
	d, history, ok := tx.queue(endpoint).get(n)
	if !ok {
		return store.Listed{}, false
	}
	d, toBeRead := s.shown(tx, endpoint, n, d)
	return store.Listed{Delivery: d, History: history, ToBeRead: toBeRead}, true
}

// candidates goes backwards through the events that the query may be for, up to where the page
// begins. An index gives those whose deliveries have failed, however many events lie between them;
// so do the due deliveries those that are pending, as long as they are few.
func (s *Engine) candidates(tx *txn, l *store.Listing) (next func() (uint64, []byte)) {
	var numbers []uint64
	for _, name := range l.Endpoints() {
		list, ok := s.numbersIn(tx, name, l.State, l.From.Number)
		if !ok || l.CallID != "" {
			return tx.eventsBefore(l.CallID, l.From.Number)
		}
		numbers = append(numbers, list...)
	}
	slices.SortFunc(numbers, func(a, b uint64) int { return cmp.Compare(b, a) })
	numbers = slices.Compact(numbers)
	return func() (uint64, []byte) {
		for len(numbers) > 0 {
			n := numbers[0]
			numbers = numbers[1:]
			if v := tx.events.Get(number(n)); v != nil {
				return n, v
			}
		}
		return 0, nil
	}
}

// seekBack goes to the last key that is a number up to one.
func seekBack(c *bolt.Cursor, n uint64) (k, v []byte) { return seekUpTo(c, number(n)) }

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
			k, v = prev(c, k)
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
		k, v = prev(c, k)
		return n, tx.events.Get(number(n))
	}
}

// seekBackInCall goes to the last event of a call up to a number; numbers grow with the sequence,
// which may have gaps. The key is another's if there is none.
func (tx *txn) seekBackInCall(c *bolt.Cursor, prefix []byte, from uint64) (k, v []byte) {
	place := func(sequence int) []byte {
		return binary.BigEndian.AppendUint64(bytes.Clone(prefix), uint64(sequence))
	}
	last, _ := tx.lastOf(bytes.Clone(prefix))
	return seekBefore(c, place(sort.Search(int(min(last, math.MaxInt32))+1, func(sequence int) bool {
		k, v := c.Seek(place(sequence))
		return !bytes.HasPrefix(k, prefix) || numberAt(v) > from
	})))
}

// Delivery gives one delivery and its last attempts: see store.Archive.
func (s *Engine) Delivery(
	_ context.Context, eventID, endpoint string,
) (view store.DeliveryView, attempts []store.Attempt, err error) {
	err = s.view(func(tx *txn) error {
		n, known := tx.numberOf(eventID)
		if !known || endpoint == "" || tx.queue(endpoint) == nil {
			return store.ErrNotFound
		}
		d, history, ok := tx.queue(endpoint).get(n)
		e, _, err := decodeEventHead(tx.events.Get(number(n)))
		if !ok || err != nil {
			return store.ErrNotFound
		}
		d, toBeRead := s.shown(tx, endpoint, n, d)
		view, attempts = store.DescribeDelivery(e, endpoint, d, history), store.Attempts(history)
		view.ToBeRead = toBeRead
		return nil
	})
	return view, attempts, err
}

// Standing says how the deliveries of each endpoint stand: see store.Archive.
func (s *Engine) Standing(context.Context) (map[string]store.Standing, error) {
	list := map[string]store.Standing{}
	err := s.view(func(tx *txn) error {
		for _, name := range tx.names() {
			q := tx.queue(name)
			n, standing := q.counts, store.Standing{}
			if last, reads := s.reading(tx, name); reads {
				standing.LastRead = last.At
				n[store.Pending], _ = tx.unread(q, last)
				n[store.Delivered] -= min(n[store.Delivered], n[store.Pending]) // a count may be damaged
			}
			standing.Pending, standing.Delivered = n[store.Pending], n[store.Delivered]
			standing.Expired, standing.Dead = n[store.Expired], n[store.Dead]
			list[name] = standing
		}
		return nil
	})
	return list, err
}

// OldestPending is when the oldest event was read that waits for an endpoint: see store.Archive. A
// question that is being asked does not count, nor what waits behind it, nor what is delivered
// again, which has not waited since it was read. Of those that are retried later only the next few
// thousand are looked at.
func (s *Engine) OldestPending(_ context.Context, endpoint string) (at time.Time, err error) {
	err = s.view(func(tx *txn) error {
		q := tx.queue(endpoint)
		if q == nil {
			return nil
		}
		oldest := uint64(0)
		if last, reads := s.reading(tx, endpoint); reads {
			_, oldest = tx.unread(q, last)
		}
		c := q.due.Cursor()
		k, _ := c.First()
		for seen := 0; k != nil && seen < maxRead; seen++ {
			due, n := readTimeKey(k)
			d, _, ok := q.get(n)
			counts := ok && d.Redelivered == 0
			if counts && (oldest == 0 || n < oldest) {
				oldest = n
			}
			if counts && due == 0 { // those that have not been tried are in the order of events
				k, _ = c.Seek(timeKey(1, 0))
			} else {
				k, _ = c.Next()
			}
		}
		if e, _, err := decodeEventHead(tx.events.Get(number(oldest))); err == nil {
			at = e.At
		}
		return nil
	})
	return at, err
}
