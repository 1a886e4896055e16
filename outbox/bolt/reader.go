package bolt

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"pzbridge/internal/repeat"
	"pzbridge/outbox/store"
)

// keyReader holds, among what belongs to an endpoint, how far it has read: see reading.
var keyReader = []byte("reader")

// readsWait is how long a read may wait to be written down: an endpoint may read many times a
// second, and each commit takes the disk some time.
const readsWait = 2 * time.Second

// reading is how far an endpoint without a URL has read: up to the event with a number, which its
// last read has gone to, and when that was. Its zero value has read nothing.
type reading struct {
	upTo uint64
	at   time.Time
}

func (r reading) encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.upTo), uint64(r.at.UnixNano()))
}

func decodeReading(b []byte) reading {
	if len(b) != 16 {
		return reading{}
	}
	return reading{binary.BigEndian.Uint64(b), time.Unix(0, int64(binary.BigEndian.Uint64(b[8:])))}
}

// readers has the reads since the start. They are in the file within readsWait, so that a restart
// does not lose them; a crash may.
type readers struct {
	wake chan struct{} // something is to be written down

	mu      sync.Mutex
	latest  map[string]reading // by endpoint
	written map[string]reading
}

func newReaders() *readers {
	return &readers{wake: make(chan struct{}, 1), latest: map[string]reading{}, written: map[string]reading{}}
}

// SetRead notes how far an endpoint has read: see store.Archive. The last read counts, also if it
// goes back: an endpoint that reads once more from an earlier cursor has lost what came after it.
func (s *Engine) SetRead(_ context.Context, q store.EventQuery, p store.EventPage, newest uint64, at time.Time) {
	if !q.Backwards {
		s.readers.set(q.Endpoint, p.Last, at)
		return
	}
	var last reading
	if s.view(func(tx *txn) error {
		last, _ = s.reading(tx, q.Endpoint)
		return nil
	}) != nil {
		return
	}
	upTo, isFirst := last.upTo, q.After == "" || q.After == store.CursorLatest
	if isFirst && (p.Cursor == "" || p.Last <= last.upTo) {
		upTo = newest
	}
	s.readers.set(q.Endpoint, upTo, at)
}

func (r *readers) set(endpoint string, upTo uint64, at time.Time) {
	r.mu.Lock()
	r.latest[endpoint] = reading{upTo, at}
	r.mu.Unlock()
	r.wakeUp()
}

func (r *readers) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *readers) get(endpoint string) (reading, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known := r.latest[endpoint]
	return last, known
}

// unwritten gives what the file does not hold yet.
func (r *readers) unwritten() map[string]reading {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := map[string]reading{}
	for name, last := range r.latest {
		if r.written[name] != last {
			list[name] = last
		}
	}
	return list
}

func (r *readers) setWritten(list map[string]reading) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, last := range list {
		r.written[name] = last
	}
}

// keepReads writes down how far endpoints have read, until ctx ends and what there is then is
// written.
func (s *Engine) keepReads(ctx context.Context) {
	failures := repeat.New(s.logger)
	for {
		if err := s.writeReads(); err != nil {
			failures.Failed("how far endpoints have read cannot be recorded", err)
			s.readers.wakeUp()
		} else {
			failures.Recovered("how far endpoints have read is recorded again")
		}
		if ctx.Err() != nil || !sleep(ctx, readsWait) {
			break
		}
		select {
		case <-s.readers.wake:
		case <-ctx.Done():
		}
	}
	if err := s.writeReads(); err != nil {
		failures.Failed("how far endpoints have read cannot be recorded", err)
	}
}

func (s *Engine) writeReads() error {
	list := s.readers.unwritten()
	if len(list) == 0 {
		return nil
	}
	err := s.commit(func(tx *txn) error {
		for name, last := range list {
			if err := tx.queue(name).root.Put(keyReader, last.encode()); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.readers.setWritten(list)
	}
	return err
}

// reading gives how far an endpoint has read; reads is false if its events are sent to it.
func (s *Engine) reading(tx *txn, endpoint string) (last reading, reads bool) {
	if !s.rules.Reads(endpoint) {
		return reading{}, false
	}
	if last, known := s.readers.get(endpoint); known {
		return last, true
	}
	return decodeReading(tx.queue(endpoint).root.Get(keyReader)), true
}

// isUnread reports whether a delivery is there to be read and has not been. What an endpoint was
// sent while it had a URL, it has.
func (r reading) isUnread(n uint64, d store.Delivery) bool {
	return n > r.upTo && d.State == store.Delivered && d.Attempts == 0
}

// shown is a delivery as people see it: the file has one that is there to be read as delivered, for
// them it is pending until it was read.
func (s *Engine) shown(tx *txn, endpoint string, n uint64, d store.Delivery) (_ store.Delivery, toBeRead bool) {
	last, reads := s.reading(tx, endpoint)
	if !reads || !last.isUnread(n, d) {
		return d, false
	}
	d.State, d.Due = store.Pending, store.Asking // no attempt is to come
	return d, true
}

// unread says how many events an endpoint has not read, store.MaxUnread at most, and the number of
// the first.
func (tx *txn) unread(q *queue, last reading) (count, first uint64) {
	c := q.deliveries.Cursor()
	k, v := c.Seek(number(last.upTo + 1))
	for seen := 0; k != nil && seen < store.MaxUnread; seen++ {
		n := binary.BigEndian.Uint64(k)
		if d, _, _, err := decodeDelivery(v); err == nil && last.isUnread(n, d) {
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
		d.Attempts = 0 // by which it differs from what was sent: see isUnread
		if err := q.put(n, d, history); err != nil {
			return false, err
		}
	}
	return len(waiting) <= batch, nil
}
