package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/dustin/go-humanize"
	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// nearlyFullAt is the part of Options.MaxBytes from which on the oldest finished events go before
// their time.
const nearlyFullAt = 0.9

// Append stores events with the duty to deliver each: see store.Appender.
func (s *Engine) Append(_ context.Context, events []store.NewEvent) (out store.Appended, err error) {
	err = s.commit(func(tx *txn) error {
		out = store.Appended{}
		// Only here: outcomes, pruning and routing always have room.
		if tx.inUse == 0 {
			tx.inUse = s.inUse(tx.Tx)
		}
		used := tx.inUse
		out.NearlyFull = float64(used) >= nearlyFullAt*float64(s.maxBytes)
		if used >= s.maxBytes {
			return full(used, s.maxBytes)
		}
		for i := range events {
			n, asks, err := s.appendOne(tx, &events[i])
			if err != nil {
				return err
			}
			if asks {
				out.Questions = append(out.Questions, n)
			}
		}
		return nil
	})
	if err == nil {
		s.notifyReaders()
	}
	return out, err
}

// full is store.ErrFull with the bytes that are in use, and how many may be.
func full(used, allowed int64) error {
	inUse, limit := humanize.IBytes(uint64(used)), humanize.IBytes(uint64(allowed))
	text := fmt.Sprintf(": it holds events that a CRM has not taken yet; %s of it are in use, %s are allowed",
		inUse, limit)
	return store.ErrFull.With(text, inUse, limit)
}

// appendOne stores one event, unless it is known, gives its number, and says whether endpoints are
// to be asked about it.
func (s *Engine) appendOne(tx *txn, e *store.NewEvent) (n uint64, asks bool, err error) {
	if n, known := tx.knows(e.ID); known {
		// The commit that stored it may have been reported as failed: then nothing was asked yet.
		return n, tx.questions.Get(number(n)) != nil, nil
	}
	if e.Replayed && tx.isReplay(e) {
		return 0, false, nil
	}
	if telephony.IsOperational(e.Type) && !s.rules.IsWanted(e) {
		return 0, false, nil
	}
	n, err = tx.events.NextSequence()
	if err != nil {
		return 0, false, err
	}
	// The number and what the call keeps of the event are the same bytes.
	entry, place := s.entryFor(n, e), callKey(e.Call)
	key := entry[:8]
	sequence, before := tx.lastOf(place)
	sequence++
	last := numberAt(before)
	if e.Call != "" {
		if err := tx.indexNumbers(n, entry, tx.sameCall(e, before)); err != nil {
			return 0, false, err
		}
	}
	var outcome telephony.Outcome
	if e.Type == telephony.EventCompleted {
		outcome = store.OutcomeOf(e, tx.backwards(place))
	}
	if err := tx.events.Put(key, encodeEvent(e, sequence, outcome)); err != nil {
		return 0, false, err
	}
	if err := tx.ids.Put(e.ID[:], key); err != nil {
		return 0, false, err
	}
	if err := tx.calls.Put(binary.BigEndian.AppendUint64(place, sequence), entry); err != nil {
		return 0, false, err
	}
	if prints, read := tx.prints[e.Call]; read {
		prints[e.Fingerprint] = true
	}
	route, asks, err := s.receive(tx, e)
	if err != nil {
		return 0, false, err
	}
	if asks {
		if err := tx.questions.Put(key, nil); err != nil {
			return 0, false, err
		}
	}
	for _, name := range s.rules.Endpoints {
		if s.rules.IsFor(name, &e.Event, route) {
			if err := s.appendDelivery(tx.queue(name), n, e, sequence, last, asks); err != nil {
				return 0, false, err
			}
		}
	}
	return n, asks, nil
}

// sameCall returns the entry of the event before a new one in its call, nil if the new one begins
// another call with the same ID, as servers do after a restart: that is found by all its numbers.
// Only events with which calls begin are looked at, so that the others cost nothing.
func (tx *txn) sameCall(e *store.NewEvent, before callEntry) callEntry {
	if before == nil {
		return nil
	}
	switch e.Type {
	case telephony.EventIncoming, telephony.EventOutgoing, telephony.EventTransferRequested:
		last, _, err := decodeEventHead(tx.events.Get(number(numberAt(before))))
		if err == nil && e.At.Sub(last.At) > store.CallEndsAfter {
			return nil
		}
	}
	return before
}

// knows reports whether an event with this ID is stored, and gives its number.
func (tx *txn) knows(id uuid.UUID) (n uint64, known bool) {
	v := tx.ids.Get(id[:])
	return decodeNumber(v), v != nil
}

// appendDelivery stores the duty to deliver event n, the one with the sequence in its call; last is
// the number of the event before it, 0 if there is none.
func (s *Engine) appendDelivery(q *queue, n uint64, e *store.NewEvent, sequence, last uint64, asks bool) error {
	if s.rules.Reads(q.name) {
		return q.replace(n, nil, store.Delivery{}.Ended(store.Delivered, e.At), nil) // it is there to be read
	}
	r := q.rowsAt(n, e.Call, sequence, last)
	r.isNew()
	if last == 0 {
		r.call = "" // the first of its call has no neighbour
	}
	expires := unixNano(s.rules.Expires(q.name, &e.Event))
	if asks {
		store.EnqueueQuestion(r, n, expires)
	} else {
		store.Enqueue(r, n, expires, s.rules.Hold)
	}
	return r.finish(e.At, s.rules.Hold)
}

// backwards gives the heads of a call's events, the latest first.
func (tx *txn) backwards(place []byte) iter.Seq[store.Event] {
	return func(yield func(store.Event) bool) {
		const farthest = 100 // a call with more events does not end with the last of many legs
		c := tx.calls.Cursor()
		sequence, v := tx.lastOf(place)
		if sequence == 0 {
			return
		}
		k, _ := c.Seek(binary.BigEndian.AppendUint64(bytes.Clone(place), sequence))
		for range farthest {
			if !bytes.HasPrefix(k, place) {
				return
			}
			e, _, err := decodeEventHead(tx.events.Get(number(numberAt(v))))
			if err == nil && !yield(e) {
				return
			}
			k, v = prev(c, k)
		}
	}
}

// lastOf gives the sequence and the entry of a call's latest event, 0 and nil if it has none.
func (tx *txn) lastOf(place []byte) (sequence uint64, entry callEntry) {
	if tx.cursor == nil {
		tx.cursor = tx.calls.Cursor() // to be used again: each one allocates
	}
	// In the room that the sequence will take.
	k, v := seekBefore(tx.cursor, append(place, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	if !bytes.HasPrefix(k, place) || len(k) != len(place)+8 || len(v) < 8 {
		return 0, nil
	}
	return binary.BigEndian.Uint64(k[len(place):]), v
}

// isReplay reports whether a replayed event says what is stored of its call already.
func (tx *txn) isReplay(e *store.NewEvent) bool {
	prints, read := tx.prints[e.Call]
	if !read {
		// A call is read once in a transaction: a long replay of one call does not read it again
		// for each event.
		prints = map[[16]byte]bool{}
		prefix := callKey(e.Call)
		c := tx.calls.Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if print, ok := callEntry(v).print(); ok {
				prints[print] = true
			}
		}
		tx.prints[e.Call] = prints
	}
	return prints[e.Fingerprint]
}
