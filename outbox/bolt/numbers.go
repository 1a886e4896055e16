package bolt

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"pzbridge/outbox/store"
)

// The index by number has, for each number of a call, the place of the event with which the number
// came: its key, a zero byte, the number of the event. The calls bucket keeps the keys of an event
// beside its number, so that an event whose numbers are those of the one before it in its call,
// which most are, adds nothing.

// callEntry is the value of an event in the calls bucket: number (8 bytes), fingerprint (16), the
// keys of its numbers with a zero byte between them. An older version wrote no keys.
type callEntry []byte

func (s *Engine) entryFor(n uint64, e *store.NewEvent) callEntry {
	v := make([]byte, 0, 64)
	v = append(binary.BigEndian.AppendUint64(v, n), e.Fingerprint[:]...)
	return s.withKeys(v, e.From, e.To)
}

func (s *Engine) withKeys(v callEntry, from, to string) callEntry {
	v = append(v, s.rules.NumberKey(from)...)
	v = append(v, 0)
	return append(v, s.rules.NumberKey(to)...)
}

const callEntryHead = 8 + 16

// print is the fingerprint of the event, and false if the entry is damaged.
func (v callEntry) print() (print [16]byte, ok bool) {
	if len(v) < callEntryHead {
		return print, false
	}
	return [16]byte(v[8:]), true
}

// keys returns the keys of the event's numbers; an empty one stands for a text that is no number.
// They belong to bbolt.
func (v callEntry) keys() (list [2][]byte) {
	if len(v) > callEntryHead {
		list[0], list[1], _ = bytes.Cut(v[callEntryHead:], []byte{0})
	}
	return list
}

// has reports whether a key is one of those of the event.
func (v callEntry) has(key []byte) bool {
	list := v.keys()
	return bytes.Equal(list[0], key) || bytes.Equal(list[1], key)
}

// isIndexed reports whether the entry has keys: an older version wrote none.
func (v callEntry) isIndexed() bool { return len(v) > callEntryHead }

func numberKey(key []byte, n uint64) []byte {
	k := make([]byte, 0, len(key)+1+8)
	return binary.BigEndian.AppendUint64(append(append(k, key...), 0), n)
}

// indexNumbers adds the numbers of an event to the index, except those of the event before it in
// its call.
func (tx *txn) indexNumbers(n uint64, entry, before callEntry) error {
	list := entry.keys()
	for i, key := range list {
		if len(key) == 0 || before.has(key) || i == 1 && bytes.Equal(key, list[0]) {
			continue
		}
		if err := tx.numbers.Put(numberKey(key, n), present); err != nil {
			return err
		}
	}
	return nil
}

// unindexNumbers takes an event that is being removed out of the index. What it stood for passes to
// the next event of its call, if one is left: an endpoint may wait for that long afterwards.
func (tx *txn) unindexNumbers(n uint64, entry callEntry, place []byte) error {
	for _, key := range entry.keys() {
		if len(key) == 0 || tx.numbers.Get(numberKey(key, n)) == nil {
			continue
		}
		if err := tx.numbers.Delete(numberKey(key, n)); err != nil {
			return err
		}
		k, v := tx.calls.Cursor().Seek(place)
		isOfCall := bytes.HasPrefix(k, place[:len(place)-8])
		if next := callEntry(v); isOfCall && next.has(key) {
			if err := tx.numbers.Put(numberKey(key, numberAt(v)), present); err != nil {
				return err
			}
		}
	}
	return nil
}

// numberEntries returns the events at which the calls with a number are indexed, below a number,
// the newest first, limit at most.
func (tx *txn) numberEntries(q store.CallQuery, below uint64, limit int) (list []uint64) {
	if q.Match == store.KeyEquals {
		return tx.entriesOfNumber([]byte(q.Key), below, limit)
	}
	// Those of one number stand together, so the newest of all are known only when the newest of
	// each number are read. Its older ones are passed over: an extension may have most calls.
	c := tx.numbers.Cursor()
	prefix := []byte(q.Key)
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); {
		end := len(k) - 9
		if end < len(prefix) || k[end] != 0 { // it is damaged
			k, _ = c.Next()
			continue
		}
		key := bytes.Clone(k[:end])
		if list = append(list, tx.entriesOfNumber(key, below, limit)...); len(list) >= 4*limit {
			list = newest(list, limit)
		}
		k, _ = c.Seek(append(key, 1)) // the first of the next number
	}
	return newest(list, limit)
}

// newest returns the highest numbers of a list, each once, limit at most.
func newest(list []uint64, limit int) []uint64 {
	slices.SortFunc(list, func(a, b uint64) int { return cmp.Compare(b, a) })
	list = slices.Compact(list)
	return list[:min(len(list), limit)]
}

func (tx *txn) entriesOfNumber(key []byte, below uint64, limit int) (list []uint64) {
	c := tx.numbers.Cursor()
	prefix := append(bytes.Clone(key), 0)
	k, _ := seekBefore(c, numberKey(key, below))
	for ; bytes.HasPrefix(k, prefix) && len(list) < limit; k, _ = prev(c, k) {
		list = append(list, eventInNumberKey(k))
	}
	return list
}

// eventInNumberKey is 0 for a key that is damaged.
func eventInNumberKey(k []byte) uint64 {
	if len(k) < 9 {
		return 0
	}
	return binary.BigEndian.Uint64(k[len(k)-8:])
}
