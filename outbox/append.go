package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
)

// ErrFull means that OUTBOX_MAX_BYTES of the file are in use. It ends by itself, when endpoints take what waits for them or
// events become old enough to be dropped.
var ErrFull = errors.New("the outbox is full")

// dropAt is the part of Options.MaxBytes from which on the oldest finished events go before their time.
const dropAt = 0.9

// append stores events and the duty to deliver each. It gives the numbers of those that ask where a call should go, and says whether the file is
// nearly full, or full.
func (s *store) append(records []record) (asking []uint64, crowded bool, err error) {
	err = s.commit(func(tx *txn) error {
		asking = nil
		// Only here: outcomes, pruning and routing always have room.
		if tx.inUse == 0 {
			tx.inUse = s.inUse(tx.Tx)
		}
		used := tx.inUse
		crowded = float64(used) >= dropAt*float64(s.maxBytes)
		if used >= s.maxBytes {
			return fmt.Errorf("%w: %s of it are in use, %s are allowed (OUTBOX_MAX_BYTES); it holds events that a CRM has not taken yet",
				ErrFull, humanize.IBytes(uint64(used)), humanize.IBytes(uint64(s.maxBytes)))
		}
		for i := range records {
			n, asks, err := s.appendOne(tx, &records[i])
			if err != nil {
				return err
			}
			if asks {
				asking = append(asking, n)
			}
		}
		return nil
	})
	return asking, crowded, err
}

// appended keeps how an append that is tried until it succeeds has ended: see writable.
func (s *store) appended(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = err
}

// inUse is how many bytes of the file hold events: its size but for the pages that are free, and for idempotency keys, which are bounded for themselves.
func (s *store) inUse(tx *bolt.Tx) int64 {
	free := s.db.Stats()
	return max(0, tx.Size()-int64(free.FreePageN+free.PendingPageN)*s.pageSize-keyBytes(tx))
}

// hasRoom says whether an append would find room now.
func (s *store) hasRoom() (room bool) {
	_ = s.view(func(tx *txn) error { // where it cannot be read, danger says so
		room = s.inUse(tx.Tx) < s.maxBytes
		return nil
	})
	return room
}

// nearlyFull says whether it is time to drop what is finished before its time.
func (s *store) nearlyFull() (nearly bool) {
	_ = s.view(func(tx *txn) error {
		nearly = float64(s.inUse(tx.Tx)) >= dropAt*float64(s.maxBytes)
		return nil
	})
	return nearly
}

// appendOne stores one event, unless it is known, gives its number, and says whether endpoints are to be asked about it.
func (s *store) appendOne(tx *txn, r *record) (n uint64, asks bool, err error) {
	if n, known := tx.knows(r.id); known {
		// The commit that stored it may have been told of as one that failed: then nobody has been asked yet.
		return n, tx.questions.Get(number(n)) != nil, nil
	}
	if r.replayed && tx.told(r) {
		return 0, false, nil
	}
	if telephony.IsOperational(r.kind) && len(s.subscribers(r.kind)) == 0 {
		return 0, false, nil // of the bridge itself only those hear who asked for it
	}
	n, err = tx.events.NextSequence()
	if err != nil {
		return 0, false, err
	}
	// The number and what the call keeps of the event are the same bytes.
	kept := append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(r.fingerprint)), n), r.fingerprint[:]...)
	key, place := kept[:8], callKey(r.call)
	sequence, last := tx.lastOf(place)
	sequence++
	if err := tx.events.Put(key, encodeEvent(r, sequence)); err != nil {
		return 0, false, err
	}
	if err := tx.ids.Put(r.id[:], key); err != nil {
		return 0, false, err
	}
	if err := tx.calls.Put(binary.BigEndian.AppendUint64(place, sequence), kept); err != nil {
		return 0, false, err
	}
	if prints, read := tx.prints[r.call]; read {
		prints[r.fingerprint] = true
	}
	on, err := s.receive(tx, r)
	if err != nil {
		return 0, false, err
	}
	if on.asking {
		if err := tx.questions.Put(key, nil); err != nil {
			return 0, false, err
		}
	}
	route := on.route
	if route != nil && !route.Live(r.at) {
		route = nil
	}
	for i := range s.endpoints {
		e := &s.endpoints[i]
		if !e.Events.Match(r.kind) || !goesTo(r.kind, e.Name, route, s.endpoints, s.quiet) {
			continue
		}
		q := tx.queue(e.Name)
		if e.URL == "" { // it is there to be read: see Events
			err = q.put(n, nil, delivery{}.ended(delivered, r.at), nil)
		} else {
			err = s.appendDelivery(q, tx, n, r.call, sequence, last, on.asking)
		}
		if err != nil {
			return 0, false, err
		}
	}
	return n, on.asking, nil
}

// knows says whether an event with this ID is stored, and gives its number. IDs hold their time, so most are larger than all that are, which is known without
// looking.
func (tx *txn) knows(id uuid.UUID) (n uint64, known bool) {
	if tx.newest == nil {
		tx.newest = []byte{}
		if k, _ := tx.ids.Cursor().Last(); k != nil {
			tx.newest = bytes.Clone(k)
		}
	}
	if bytes.Compare(id[:], tx.newest) > 0 {
		tx.newest = append(tx.newest[:0], id[:]...)
		return 0, false
	}
	v, known := tx.byID.find(tx.ids, binary.BigEndian.Uint64(id[:]), binary.BigEndian.Uint64(id[8:]))
	return decodeNumber(v), known
}

// appendDelivery stores the duty to deliver event n, the one with the sequence in its call; last is the number of the event before it, 0 if there is none.
// A question waits for nothing: the asker has it.
func (s *store) appendDelivery(q *queue, tx *txn, n uint64, call string, sequence, last uint64, question bool) error {
	var before *delivery
	var history []byte
	if last != 0 && call != "" {
		if before, history = q.get(last); before == nil {
			last, before, history = tx.neighbour(q, call, sequence, (*bolt.Cursor).Prev, delivery.isAny)
		}
	}
	if err := q.follow(last, before, history, n); err != nil {
		return err
	}
	d := behind(before, s.hold)
	if question {
		d = delivery{due: asking}
	}
	return q.put(n, nil, d, nil)
}

// lastOf gives the sequence and the number of a call's latest event, 0 if it has none.
func (tx *txn) lastOf(place []byte) (sequence, n uint64) {
	if tx.cursor == nil {
		tx.cursor = tx.calls.Cursor() // to be used again: each one allocates
	}
	c := tx.cursor
	k, _ := c.Seek(append(place, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)) // in the room that the sequence will take
	step := c.Prev
	if k == nil {
		step = c.Last
	}
	k, v := step()
	if !bytes.HasPrefix(k, place) || len(k) != len(place)+8 || len(v) < 8 {
		return 0, 0
	}
	return binary.BigEndian.Uint64(k[len(place):]), binary.BigEndian.Uint64(v)
}

// neighbour gives the nearest delivery of a call to the endpoint, before or after the event with the sequence, that is of the kind: its number, how it stands
// and the attempts. It is nil when there is none; an event of no call has none. A record that is damaged is passed over.
func (tx *txn) neighbour(
	q *queue, call string, sequence uint64, step func(*bolt.Cursor) ([]byte, []byte), kind func(delivery) bool,
) (n uint64, d *delivery, history []byte) {
	// Behind so many events that the endpoint does not get, order is nobody's concern; a scan without a bound would be everybody's.
	const farthest = 1000
	if call == "" {
		return 0, nil, nil
	}
	prefix := callKey(call)
	c := tx.calls.Cursor()
	c.Seek(binary.BigEndian.AppendUint64(bytes.Clone(prefix), sequence))
	for range farthest {
		k, v := step(c)
		if !bytes.HasPrefix(k, prefix) {
			return 0, nil, nil
		}
		n = numberAt(v)
		if d, history = q.get(n); d != nil && kind(*d) {
			return n, d, history
		}
	}
	return 0, nil, nil
}

// told says whether a replayed event says what the outbox has been told already.
func (tx *txn) told(r *record) bool {
	prints, read := tx.prints[r.call]
	if !read {
		// A call is read once in a transaction: a long replay of one call does not read it again for each event.
		prints = map[[16]byte]bool{}
		prefix := callKey(r.call)
		c := tx.calls.Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if len(v) == 8+16 { // else it is damaged
				prints[[16]byte(v[8:])] = true
			}
		}
		tx.prints[r.call] = prints
	}
	return prints[r.fingerprint]
}
