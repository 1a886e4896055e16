package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"pzbridge/outbox/store"
)

// addCall adds to a job what the sender kept for its call, and the call's later events.
func (q *queue) addCall(j *store.Job) {
	if j.Event.Call == "" {
		return
	}
	prefix := callKey(j.Event.Call)
	if v := q.kept.Get(prefix); len(v) >= 8 {
		j.KeptVersion, j.Kept = binary.BigEndian.Uint64(v), bytes.Clone(v[8:])
	}
	c := q.tx.calls.Cursor()
	k, v := c.Seek(binary.BigEndian.AppendUint64(bytes.Clone(prefix), j.Event.Sequence+1))
	for ; bytes.HasPrefix(k, prefix) && len(j.Later) < store.MaxLater; k, v = c.Next() {
		if e, err := decodeEvent(q.tx.events.Get(number(numberAt(v)))); err == nil {
			j.Later = append(j.Later, e)
		}
	}
}

// keep stores what a sender keeps for a call. It is false, and stores nothing, where something
// newer is stored than what the attempt began with. The same result once more is the newest.
func (q *queue) keep(call string, r *store.Result) (isNewest bool, err error) {
	if len(r.Keep) > store.MaxKept {
		return false, fmt.Errorf("%w: %d bytes for a call, %d are allowed",
			store.ErrTooLong, len(r.Keep), store.MaxKept)
	}
	v := q.kept.Get(callKey(call))
	version, kept := uint64(0), []byte(nil)
	if len(v) >= 8 {
		version, kept = binary.BigEndian.Uint64(v), v[8:]
	}
	switch isRepeated := version == r.Job.KeptVersion+1 && bytes.Equal(kept, r.Keep); {
	case isRepeated:
		return true, nil
	case version != r.Job.KeptVersion:
		return false, nil
	case r.Keep == nil, !q.tx.hasEvents(call):
		return true, nil
	}
	return true, q.kept.Put(callKey(call), append(number(version+1), r.Keep...))
}

// forgetCall removes what senders have kept for a call of which no event is left.
func (tx *txn) forgetCall(call string) error {
	if tx.hasEvents(call) {
		return nil
	}
	place := callKey(call)
	for _, name := range tx.names() {
		if err := tx.queue(name).kept.Delete(place); err != nil {
			return err
		}
	}
	return nil
}

// hasEvents reports whether an event of a call is left. Nothing is kept for a call without: it may
// have been forgotten while an attempt was under way, and nothing would remove it any more.
func (tx *txn) hasEvents(call string) bool {
	place := callKey(call)
	k, _ := tx.calls.Cursor().Seek(place)
	return bytes.HasPrefix(k, place)
}

// noteHead is how long a note is before its value: version (8 bytes), end in Unix nanoseconds (8),
// 0 for none.
const noteHead = 16

// Note gives a note of an endpoint: see store.Notes.
func (s *Engine) Note(
	_ context.Context, endpoint, name string, now time.Time,
) (value []byte, version uint64, err error) {
	err = s.view(func(tx *txn) error {
		q := tx.queue(endpoint)
		if q == nil {
			return fmt.Errorf("%w: %q", store.ErrNoEndpoint, endpoint)
		}
		v := q.notes.Get([]byte(name))
		if len(v) < noteHead {
			return nil
		}
		version = binary.BigEndian.Uint64(v)
		if until := int64(binary.BigEndian.Uint64(v[8:])); until == 0 || now.UnixNano() < until {
			value = bytes.Clone(v[noteHead:])
		}
		return nil
	})
	return value, version, err
}

// SetNote stores a note of an endpoint: see store.Notes.
func (s *Engine) SetNote(
	_ context.Context, endpoint, name string, version uint64, value []byte, until time.Time,
) error {
	if len(value) > store.MaxNote {
		return fmt.Errorf("%w: a note of %d bytes, %d are allowed", store.ErrTooLong, len(value), store.MaxNote)
	}
	return s.commit(func(tx *txn) error {
		q := tx.queue(endpoint)
		if q == nil {
			return fmt.Errorf("%w: %q", store.ErrNoEndpoint, endpoint)
		}
		record := append(append(number(version+1), number(uint64(unixNano(until)))...), value...)
		v := q.notes.Get([]byte(name))
		if bytes.Equal(v, record) { // the same call once more
			return nil
		}
		if known := decodeNumber(v[:min(len(v), 8)]); known != version {
			return store.ErrChanged
		}
		return q.notes.Put([]byte(name), record)
	})
}

// pruneNotes removes the notes whose time is over, a batch in each transaction.
func (s *Engine) pruneNotes() error {
	for {
		old, err := s.oldNotes()
		if err != nil || len(old) == 0 {
			return err
		}
		if err := s.removeNotes(old); err != nil {
			return err
		}
	}
}

// noteKey names a note.
type noteKey struct{ endpoint, name string }

// oldNotes lists a batch of the notes whose time is over.
func (s *Engine) oldNotes() (old []noteKey, err error) {
	err = s.view(func(tx *txn) error {
		return tx.endpoints.ForEachBucket(func(endpoint []byte) error {
			c := tx.queue(string(endpoint)).notes.Cursor()
			for name, v := c.First(); name != nil && len(old) < pruneBatch; name, v = c.Next() {
				if s.isOldNote(v) {
					old = append(old, noteKey{string(endpoint), string(name)})
				}
			}
			return nil
		})
	})
	return old, err
}

// removeNotes removes notes, but for those that were written anew meanwhile.
func (s *Engine) removeNotes(old []noteKey) error {
	return s.commit(func(tx *txn) error {
		for _, k := range old {
			notes := tx.queue(k.endpoint).notes
			if !s.isOldNote(notes.Get([]byte(k.name))) {
				continue
			}
			if err := notes.Delete([]byte(k.name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// isOldNote reports whether a note may be removed.
func (s *Engine) isOldNote(v []byte) bool {
	if len(v) < noteHead {
		return false
	}
	until := int64(binary.BigEndian.Uint64(v[8:]))
	return until != 0 && s.clock.Age(time.Unix(0, until)) >= store.NoteGrace
}
