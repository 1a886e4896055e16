package outbox

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"pzbridge/internal/repeat"
)

// keyReader holds, among what belongs to an endpoint, how far it has read: see reading.
var keyReader = []byte("reader")

// readsKept is how long a read may wait to be written down: an endpoint may read many times a
// second, and each commit takes the disk some time.
const readsKept = 2 * time.Second

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

// readers has the reads since the start. They are in the file within readsKept, so that a restart
// does not forget who has read what; a crash may.
type readers struct {
	wake chan struct{} // something is to be written down

	mu      sync.Mutex
	latest  map[string]reading // by endpoint
	written map[string]reading
}

func newReaders() *readers {
	return &readers{wake: make(chan struct{}, 1), latest: map[string]reading{}, written: map[string]reading{}}
}

// note takes a read. The last one counts, also if it goes back: who reads once more from an earlier
// cursor has lost what came after it.
func (r *readers) note(endpoint string, upTo uint64) {
	r.mu.Lock()
	r.latest[endpoint] = reading{upTo, time.Now()}
	r.mu.Unlock()
	signal(r.wake)
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

func (r *readers) wrote(list map[string]reading) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, last := range list {
		r.written[name] = last
	}
}

// keepReads writes down how far endpoints have read, until ctx ends and what there is then is
// written.
func (o *Outbox) keepReads(ctx context.Context) {
	trouble := repeat.New(o.opts.Logger)
	for {
		if err := o.store.keepReads(); err != nil {
			trouble.Failed("how far endpoints have read cannot be recorded", err)
			signal(o.store.readers.wake)
		} else {
			trouble.Recovered("how far endpoints have read is recorded again")
		}
		if ctx.Err() != nil || !sleepUntil(ctx, time.Now().Add(readsKept)) {
			break
		}
		select {
		case <-o.store.readers.wake:
		case <-ctx.Done():
		}
	}
	if err := o.store.keepReads(); err != nil {
		trouble.Failed("how far endpoints have read cannot be recorded", err)
	}
}

func (s *store) keepReads() error {
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
		s.readers.wrote(list)
	}
	return err
}

// reading says how far an endpoint has read; reads is false if it takes webhooks.
func (s *store) reading(tx *txn, endpoint string) (last reading, reads bool) {
	if e, err := s.endpoint(endpoint); err != nil || e.URL != "" {
		return reading{}, false
	}
	if last, known := s.readers.get(endpoint); known {
		return last, true
	}
	return decodeReading(tx.queue(endpoint).root.Get(keyReader)), true
}

// isUnread says whether a delivery is there to be read and has not been. What an endpoint was sent
// while it had a URL, it has.
func (r reading) isUnread(n uint64, d delivery) bool {
	return n > r.upTo && d.state == delivered && d.attempts == 0
}

// shown is a delivery as people see it: for the file one that is there to be read is done with, for
// them it is pending until it was read.
func (s *store) shown(tx *txn, endpoint string, n uint64, d *delivery) (_ *delivery, toBeRead bool) {
	last, reads := s.reading(tx, endpoint)
	if !reads || !last.isUnread(n, *d) {
		return d, false
	}
	waiting := *d
	waiting.state, waiting.due = pending, asking // no attempt is to come
	return &waiting, true
}

// MaxUnread is how many of the events that an endpoint has not read are counted at most: who looks
// at a page is not to hold up the others.
const MaxUnread = readAtOnce

// unread says how many events an endpoint has not read, MaxUnread at most, and the number of the
// first.
func (tx *txn) unread(q *queue, last reading) (count, first uint64) {
	c := q.deliveries.Cursor()
	k, v := c.Seek(number(last.upTo + 1))
	for seen := 0; k != nil && seen < MaxUnread; seen++ {
		n := binary.BigEndian.Uint64(k)
		if d, err := decodeDelivery(v); err == nil && last.isUnread(n, d) {
			if count++; count == 1 {
				first = n
			}
		}
		k, v = c.Next()
	}
	return count, first
}
