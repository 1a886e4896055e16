package bolt

import (
	"context"
	"encoding/binary"
	"time"

	"pzbridge/internal/repeat"
	"pzbridge/outbox/store"
)

// keyReader holds, among what belongs to an endpoint, how far it has read: see
// store.Reading.
var keyReader = []byte("reader")

func encodeReading(r store.Reading) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.UpTo), uint64(r.At.UnixNano()))
}

func decodeReading(b []byte) store.Reading {
	if len(b) != 16 {
		return store.Reading{}
	}
	return store.Reading{UpTo: binary.BigEndian.Uint64(b), At: time.Unix(0, int64(binary.BigEndian.Uint64(b[8:])))}
}

// SetRead notes how far an endpoint has read: see store.Archive.
func (s *Engine) SetRead(_ context.Context, q store.EventQuery, p store.EventPage, newest uint64, at time.Time) {
	var last store.Reading
	if q.Backwards { // only then it counts how far the endpoint had read before
		if s.view(func(tx *txn) error {
			last, _ = s.reading(tx, q.Endpoint)
			return nil
		}) != nil {
			return
		}
	}
	s.readers.Set(q.Endpoint, last.After(q, p, newest, at))
}

// keepReads writes down how far endpoints have read, until ctx ends and what there is then is
// written.
func (s *Engine) keepReads(ctx context.Context) {
	failures := repeat.New(s.logger)
	s.readers.Keep(ctx, s.writeReads, func(err error) {
		if err != nil {
			failures.Failed("how far endpoints have read cannot be recorded", err)
		} else {
			failures.Recovered("how far endpoints have read is recorded again")
		}
	})
}

func (s *Engine) writeReads(list map[string]store.Reading) error {
	return s.commit(func(tx *txn) error {
		for name, last := range list {
			if err := tx.queue(name).root.Put(keyReader, encodeReading(last)); err != nil {
				return err
			}
		}
		return nil
	})
}

// reading gives how far an endpoint has read; reads is false if its events are sent to it.
func (s *Engine) reading(tx *txn, endpoint string) (last store.Reading, reads bool) {
	if !s.rules.Reads(endpoint) {
		return store.Reading{}, false
	}
	if last, known := s.readers.Get(endpoint); known {
		return last, true
	}
	return decodeReading(tx.queue(endpoint).root.Get(keyReader)), true
}

// shown is a delivery as people see it: the file has one that is there to be read as delivered, for
// them it is pending until it was read.
func (s *Engine) shown(tx *txn, endpoint string, n uint64, d store.Delivery) (_ store.Delivery, toBeRead bool) {
	last, reads := s.reading(tx, endpoint)
	if !reads {
		return d, false
	}
	return last.Shown(n, d)
}

// unread says how many events an endpoint has not read, store.MaxUnread at most, and the number of
// the first.
func (tx *txn) unread(q *queue, last store.Reading) (count, first uint64) {
	c := q.deliveries.Cursor()
	k, v := c.Seek(number(last.UpTo + 1))
	for seen := 0; k != nil && seen < store.MaxUnread; seen++ {
		n := binary.BigEndian.Uint64(k)
		if d, _, _, err := decodeDelivery(v); err == nil && last.IsUnread(n, d) {
			if count++; count == 1 {
				first = n
			}
		}
		k, v = c.Next()
	}
	return count, first
}

// closeReaders ends what is pending for endpoints that read their events and had an address before:
// it is there to be read, and there is nowhere to send it.
func (s *Engine) closeReaders() error {
	for _, name := range s.rules.Endpoints {
		if !s.rules.Reads(name) {
			continue
		}
		for done := false; !done; {
			err := s.commit(func(tx *txn) (err error) {
				done, err = tx.queue(name).closeSome(time.Now())
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// closeSome ends some of what is pending, and says whether that was all.
func (q *queue) closeSome(now time.Time) (done bool, err error) {
	const batch = 1024 // deliveries in one transaction
	if q.counts[store.Pending] == 0 {
		return true, nil
	}
	var waiting []uint64
	c := q.deliveries.Cursor()
	for k, v := c.First(); k != nil && len(waiting) <= batch; k, v = c.Next() {
		if d, _, _, err := decodeDelivery(v); err == nil && d.State == store.Pending {
			waiting = append(waiting, decodeNumber(k))
		}
	}
	for _, n := range waiting {
		d, history, _ := q.get(n)
		d = d.Ended(store.Delivered, now)
		d.Attempts = 0 // by which it differs from what was sent: see store.Reading
		if err := q.put(n, d, history); err != nil {
			return false, err
		}
	}
	return len(waiting) <= batch, nil
}
