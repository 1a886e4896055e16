package bolt

import (
	"bytes"
	"context"
	"encoding/binary"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Call gives what has happened to a call: see store.Archive.
func (s *Engine) Call(_ context.Context, callID string, after uint64) (page store.CallPage, err error) {
	err = s.view(func(tx *txn) error {
		page = store.CallPage{}
		prefix := callKey(callID)
		c := tx.calls.Cursor()
		if k, _ := c.Seek(prefix); callID == "" || !bytes.HasPrefix(k, prefix) {
			return store.ErrNoCall
		}
		names := tx.names()
		size, looked := 0, 0
		k, v := c.Seek(binary.BigEndian.AppendUint64(bytes.Clone(prefix), after+1))
		for ; bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if len(page.Events) == store.MaxCallEvents || size >= store.MaxCallBytes || looked == store.MaxLooked {
				page.Next = after
				break
			}
			looked++
			after = decodeNumber(k[len(prefix):])
			event, eventSize, err := s.callEvent(tx, numberAt(v), names)
			if err != nil {
				continue // the rest is worth knowing
			}
			page.Events = append(page.Events, event)
			size += eventSize
		}
		if page.Route, err = tx.route(callID); err != nil {
			page.Route = nil // it is damaged, and the events are worth knowing all the same
		}
		return nil
	})
	return page, err
}

// callEvent reads one event of a call, and says about how many bytes it takes with the attempts of
// its deliveries.
func (s *Engine) callEvent(tx *txn, n uint64, names []string) (event store.CallEvent, size int, err error) {
	e, body, err := decodeEventHead(tx.events.Get(number(n)))
	if err != nil {
		return store.CallEvent{}, 0, err
	}
	event = store.CallEvent{ID: e.ID.String(), Type: e.Type, Sequence: e.Sequence, Time: e.At.UTC()}
	from, to := store.NumbersIn(body)
	event.From, event.To = telephony.Brief(from), telephony.Brief(to)
	for _, name := range names {
		if d, history, ok := tx.queue(name).get(n); ok {
			d, toBeRead := s.shown(tx, name, n, d)
			v := store.DescribeDelivery(e, name, d, history)
			v.ToBeRead = toBeRead
			event.Deliveries = append(event.Deliveries, v)
			size += v.Size() + len(history)
		}
	}
	return event, size, nil
}

// Event gives one event by its ID: see store.Archive.
func (s *Engine) Event(_ context.Context, eventID string) (e store.Event, err error) {
	err = s.view(func(tx *txn) error {
		n, known := tx.numberOf(eventID)
		if e, err = decodeEvent(tx.events.Get(number(n))); !known || err != nil {
			return store.ErrNotFound
		}
		return nil
	})
	return e, err
}
