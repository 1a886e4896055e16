package bolt

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/outbox/store"
)

// position is where a list stands: at the delivery of an event to an endpoint.
type position struct {
	number   uint64
	endpoint string
}

func (p position) cursor() string { return fmt.Sprintf("%d.%s", p.number, p.endpoint) }

func parsePosition(s string) (position, error) {
	if s == "" {
		return position{number: math.MaxUint64}, nil
	}
	n, endpoint, ok := strings.Cut(s, ".")
	at, err := strconv.ParseUint(n, 10, 64)
	if !ok || err != nil {
		return position{}, store.ErrBadCursor
	}
	return position{at, endpoint}, nil
}

const (
	// maxLooked is how many records one request looks at: a client that wants more goes on with the
	// cursor. A request that looked at all of them would keep the processor from the deliveries.
	maxLooked = 2048
	// maxPageBytes is after how many bytes one read ends; its last record may go beyond.
	maxPageBytes = 4 << 20
)

// Deliveries lists deliveries: see store.Archive.
func (s *Engine) Deliveries(_ context.Context, q store.DeliveryQuery) (store.DeliveryPage, error) {
	if q.State != "" && !slices.Contains(store.StateNames[:], q.State) {
		return store.DeliveryPage{}, fmt.Errorf("%w as %q: there are %s",
			store.ErrBadState, q.State, strings.Join(store.StateNames[:], ", "))
	}
	from, err := parsePosition(q.Cursor)
	if err != nil {
		return store.DeliveryPage{}, err
	}
	l := listing{DeliveryQuery: q, engine: s, from: from}
	err = s.view(l.run)
	return store.DeliveryPage{Deliveries: l.found, Cursor: l.cursor}, err
}

// listing is a list of deliveries that is being made.
type listing struct {
	store.DeliveryQuery
	engine *Engine
	from   position
	found  []store.DeliveryView
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
	if !l.Until.IsZero() {
		if first := tx.firstSince(l.Until.Add(clockSlack)); first <= l.from.number {
			l.from = position{number: max(first, 1) - 1}
		}
	}
	next := l.candidates(tx, endpoints)
	for end := l.from; ; {
		n, event := next()
		if event == nil {
			return nil
		}
		e, body, err := decodeEventHead(event)
		if err != nil || !l.isFor(&e) {
			if err == nil && e.At.Before(l.Since.Add(-clockSlack)) {
				return nil
			}
			if l.looked++; l.looked >= maxLooked {
				l.cursor = position{n, lastEndpoint}.cursor()
				return nil
			}
			continue
		}
		for _, name := range endpoints {
			if n == l.from.number && name <= l.from.endpoint {
				continue
			}
			if l.looked == maxLooked || l.size >= maxPageBytes {
				l.cursor = end.cursor()
				return nil
			}
			l.looked++
			end = position{n, name}
			if !l.look(tx, end, e, body) {
				return nil
			}
		}
	}
}

// lastEndpoint is behind the names of all endpoints: a cursor with it is behind all deliveries of
// an event.
const lastEndpoint = "\xff"

// isFor reports whether the query is for deliveries of an event.
func (l *listing) isFor(e *store.Event) bool {
	return !e.At.Before(l.Since) && (l.Until.IsZero() || e.At.Before(l.Until)) &&
		(len(l.Types) == 0 || slices.Contains(l.Types, e.Type))
}

// candidates goes backwards through the events that the query may be for, up to where the page
// begins. An index gives those whose deliveries have failed, however many events lie between them;
// so do the due deliveries those that are pending, as long as they are few.
func (l *listing) candidates(tx *txn, endpoints []string) (next func() (uint64, []byte)) {
	var numbers []uint64
	for _, name := range endpoints {
		list, ok := l.engine.numbersIn(tx, name, l.State, l.from.number)
		if !ok || l.CallID != "" {
			return tx.eventsBefore(l.CallID, l.from.number)
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

// look adds a delivery if the query is for it. It is false once the list is full.
func (l *listing) look(tx *txn, at position, e store.Event, body []byte) bool {
	d, history, ok := tx.queue(at.endpoint).get(at.number)
	if !ok {
		return true
	}
	d, toBeRead := l.engine.shown(tx, at.endpoint, at.number, d)
	if l.State != "" && d.State.String() != l.State {
		return true
	}
	if len(l.found) == l.Limit { // only now is it known that another one follows
		l.cursor = l.last.cursor()
		return false
	}
	v := store.DescribeDelivery(e, at.endpoint, d, history)
	v.ToBeRead = toBeRead
	v.Client, v.Extension = store.SidesIn(body)
	l.found, l.last = append(l.found, v), at
	l.size += v.Size()
	return true
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
				standing.LastRead = last.at
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
