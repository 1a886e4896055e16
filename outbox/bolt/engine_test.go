package bolt

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// harness opens engines for the tests of what every engine promises.
type harness struct{}

func (harness) Place(t testing.TB) string { return filepath.Join(t.TempDir(), "outbox.db") }

func (harness) Open(o storetest.EngineOptions) (store.Engine, error) {
	e, err := Open(Options{
		Path:      o.Place,
		MaxBytes:  o.MaxBytes,
		Rules:     o.Rules,
		Logger:    o.Logger,
		Clock:     o.Clock,
		Committed: o.Committed,
	})
	if err != nil {
		return nil, err // not a nil *Engine in an interface
	}
	return e, nil
}

func (harness) Check(t testing.TB, e store.Engine) { checkFile(t, e.(*Engine)) }

func TestPromises(t *testing.T) { storetest.Run(t, harness{}) }

// checkFile checks that every delivery stands in the indexes exactly where it should, and that an
// event has what points to it.
func checkFile(t testing.TB, s *Engine) {
	t.Helper()
	err := s.db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		events := tx.Bucket(bucketEvents)
		ids, calls := tx.Bucket(bucketIDs).Stats().KeyN, tx.Bucket(bucketCalls).Stats().KeyN
		if n := events.Stats().KeyN; n != ids || n != calls {
			t.Errorf("%d events, %d IDs, %d in calls", n, ids, calls)
		}
		view := newTxn(tx, &s.rules)
		checkKeys(t, view)
		checkNumbers(t, view)
		for _, name := range view.names() {
			checkQueue(t, view, view.queue(name))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func checkQueue(t testing.TB, tx *txn, q *queue) {
	t.Helper()
	due, failed := 0, 0
	var counted counts
	err := q.deliveries.ForEach(func(k, v []byte) error {
		n := binary.BigEndian.Uint64(k)
		d, _, ok := q.decode(n, v)
		if !ok {
			return store.ErrBadRecord
		}
		if tx.events.Get(k) == nil {
			t.Errorf("delivery %d of %s has no event", n, q.name)
		}
		counted[d.State]++
		if d.State == store.Pending {
			checkLinks(t, q, n, d)
		}
		if isAsked(d) && tx.questions.Get(k) == nil {
			t.Errorf("delivery %d of %s is being asked about, and no question", n, q.name)
		}
		if d.IsDue() {
			due++
			if k, _ := q.due.Cursor().Seek(timeKey(d.Due, n)); !bytes.Equal(k, timeKey(d.Due, n)) {
				t.Errorf("pending delivery %d of %s is not in the due index", n, q.name)
			}
		}
		if isFailed(d.State) && recordVersion(v) > 0 {
			failed++
			if q.failed.Get(failedKey(d.State, n)) == nil {
				t.Errorf("delivery %d of %s is %s and not in the index of failed ones", n, q.name, d.State)
			}
		}
		if d.IsDue() && d.Expires != 0 && recordVersion(v) > 0 {
			if q.expiry.Get(entryOf(d.Expires, n).key()) == nil {
				t.Errorf("pending delivery %d of %s is not in the index by expiry", n, q.name)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if n := q.due.Stats().KeyN; n != due {
		t.Errorf("%s: %d are due, %d in the due index", q.name, due, n)
	}
	if n := q.failed.Stats().KeyN; n != failed {
		t.Errorf("%s: %d have failed, %d in the index of failed ones", q.name, failed, n)
	}
	if q.counts != counted {
		t.Errorf("%s: counts say %v, there are %v", q.name, q.counts, counted)
	}
}

// checkLinks checks that a delivery that is held has one before it to wait for, which has not
// failed yet; and that what a delivery waits for, or would wait for, points to it.
func checkLinks(t testing.TB, q *queue, n uint64, d store.Delivery) {
	t.Helper()
	r, err := q.rowsOf(n)
	if err != nil {
		t.Error(err)
		return
	}
	at, holds := r.Neighbour(n, -1, store.Delivery.IsPending)
	if d.Due == store.Held && (at == 0 || holds.FailedAt != 0 || holds.Next != n) {
		t.Errorf("delivery %d of %s is held by %+v", n, q.name, holds)
	}
	if at, before := r.Neighbour(n, -1, store.Delivery.IsAny); at != 0 && before.IsPending() && before.Next != n {
		t.Errorf("delivery %d of %s comes after one that says that %d does", n, q.name, before.Next)
	}
}

// checkKeys checks that every idempotency key stands by its age, once, and that what keys are
// reckoned to take is the sum.
func checkKeys(t testing.TB, tx *txn) {
	t.Helper()
	noted, all := 0, uint64(0)
	for _, ages := range tx.bearers() {
		sum := uint64(0)
		_ = ages.ForEach(func(age, size []byte) error {
			noted++
			sum += decodeNumber(size)
			record := tx.keys.Get(age[8:])
			if !slices.Equal(ageKey(record, age[8:]), age) || decodeNumber(size) != keySize(record) {
				t.Errorf("the age %x of a key is not that of its record %x", age, record)
			}
			return nil
		})
		if sum != ages.Sequence() {
			t.Errorf("a bearer's keys are reckoned to %d bytes, their sum is %d", ages.Sequence(), sum)
		}
		all += sum
	}
	if n := tx.keys.Stats().KeyN; n != noted || all != tx.ages.Sequence() {
		t.Errorf("%d keys, %d ages; %d bytes, noted are %d", n, noted, all, tx.ages.Sequence())
	}
}

// TestPromisesWithEveryWriteRepeated checks that the same write once more changes nothing: after an
// error a caller cannot know whether it happened.
func TestPromisesWithEveryWriteRepeated(t *testing.T) {
	if testing.Short() {
		t.Skip("the same tests once more")
	}
	storetest.RunQuick(t, storetest.Twice(harness{}), 1)
}

// checkNumbers checks that each call is found by each of its numbers, as far as the index is
// filled, and that nothing is found that there is not.
func checkNumbers(t testing.TB, tx *txn) {
	t.Helper()
	isFilled := decodeNumber(tx.meta.Get(keyNumbered)) == filledWhole
	found := map[string]bool{} // by call and key
	err := tx.numbers.ForEach(func(k, _ []byte) error {
		n := eventInNumberKey(k)
		e, _, err := decodeEventHead(tx.events.Get(number(n)))
		if err != nil {
			t.Errorf("the index by number has event %d, which there is not", n)
			return nil
		}
		entry := callEntry(tx.calls.Get(binary.BigEndian.AppendUint64(callKey(e.Call), e.Sequence)))
		key := k[:len(k)-9]
		if !entry.has(key) {
			t.Errorf("the index by number has event %d under %q", n, key)
		}
		found[e.Call+" "+string(key)] = true
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	err = tx.events.ForEach(func(k, v []byte) error {
		e, _, err := decodeEventHead(v)
		if err != nil || e.Call == "" {
			return nil
		}
		entry := callEntry(tx.calls.Get(binary.BigEndian.AppendUint64(callKey(e.Call), e.Sequence)))
		if isFilled && !entry.isIndexed() {
			t.Errorf("event %d has no keys of numbers", decodeNumber(k))
		}
		for _, key := range entry.keys() {
			if len(key) > 0 && !found[e.Call+" "+string(key)] {
				t.Errorf("call %s is not found by %q", e.Call, key)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
