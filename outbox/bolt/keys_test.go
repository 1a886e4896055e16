package bolt

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// hashOf is the hash of a key by its number.
func hashOf(n int) [32]byte { return sha256.Sum256(number(uint64(n))) }

// claimMany takes keys for a bearer, from a number on, one each second until now.
func claimMany(t *testing.T, s *Engine, bearer string, from, n int) {
	t.Helper()
	began := time.Now().Add(-time.Duration(n) * time.Second)
	err := s.commit(func(tx *txn) error {
		for i := range n {
			record := encodeClaim(store.KeyClaim{At: began.Add(time.Duration(i) * time.Second)})
			if err := s.putKey(tx, bearer, hashOf(from+i), record); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// oldClaim is the record of a key as versions before named claims wrote it.
func oldClaim(at time.Time, status uint16) []byte {
	v := binary.BigEndian.AppendUint64(nil, uint64(at.UnixMilli()))
	return binary.BigEndian.AppendUint16(append(v, make([]byte, 32)...), status)
}

// isKnown reports whether a key is, without taking it.
func isKnown(t *testing.T, s *Engine, n int) (known bool) {
	t.Helper()
	key := hashOf(n)
	if err := s.view(func(tx *txn) error { known = tx.keys.Get(key[:]) != nil; return nil }); err != nil {
		t.Fatal(err)
	}
	return known
}

// countKeys counts those that are stored.
func countKeys(t *testing.T, s *Engine) (n int) {
	t.Helper()
	if err := s.view(func(tx *txn) error { n = tx.keys.Stats().KeyN; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// answer is what a request was answered, now.
func answer(status int, body []byte) store.KeyClaim {
	return store.KeyClaim{Status: status, Answer: body, At: time.Now()}
}

// TestKeysArePruned checks that idempotency keys go after a day.
func TestKeysArePruned(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		b := storetest.OpenBox(t, harness{}, storetest.Options{DialContext: c.Net.Dial})
		s := b.Engine.(*Engine)
		defer storetest.RunBox(t, b)()
		for i := range byte(3) {
			taken, err := s.ClaimKey(t.Context(), "crm", [32]byte{i}, store.KeyClaim{At: time.Now()})
			if taken != nil || err != nil {
				t.Fatal(taken, err)
			}
			time.Sleep(10 * time.Hour)
		}
		if left := countKeys(t, s); left != 2 {
			t.Errorf("%d keys are left", left)
		}
	})
}

// TestKeysAreBoundedForEachBearer checks that a bearer that brings more keys than there is room for
// loses its oldest, and no other bearer any.
func TestKeysAreBoundedForEachBearer(t *testing.T) {
	storetest.SkipBulk(t)
	b := storetest.OpenBox(t, harness{}, storetest.Options{MaxBytes: 1 << 20})
	s := b.Engine.(*Engine)
	room := int(s.keyRoom() / keySize(encodeClaim(store.KeyClaim{At: time.Now()})))
	const other, many = 1_000_000, 20_000
	claimMany(t, s, "other", other, 10)
	claimMany(t, s, "crm", 0, many)
	for n, want := range map[int]bool{
		0:               false,
		many - room - 1: false,
		many - room:     true,
		many - 1:        true,
		other:           true,
		other + 9:       true,
	} {
		if known := isKnown(t, s, n); known != want {
			t.Errorf("whether the key %d is known: %v", n, known)
		}
	}
	// What is answered is the newest again, and takes more room.
	if err := s.SettleKey(t.Context(), "crm", hashOf(many-room), answer(200, make([]byte, 1000))); err != nil {
		t.Fatal(err)
	}
	if !isKnown(t, s, many-room) || isKnown(t, s, many-room+1) || isKnown(t, s, many-room+4) ||
		!isKnown(t, s, many-room+20) {
		t.Error("the answer did not push out the oldest")
	}
	if err := s.SettleKey(t.Context(), "crm", hashOf(many-1), store.KeyClaim{}); err != nil || isKnown(t, s, many-1) {
		t.Errorf("a key that is given back is known, %v", err)
	}
	if err := s.SettleKey(t.Context(), "crm", hashOf(many-1), store.KeyClaim{}); err != nil {
		t.Errorf("giving it back once more: %v", err)
	}
	another := store.KeyClaim{ID: [16]byte{1}, Request: [32]byte{1}, At: time.Now()}
	taken, err := s.ClaimKey(t.Context(), "crm", hashOf(many-room), another)
	if err != nil || taken == nil || taken.Status != 200 || len(taken.Answer) != 1000 {
		t.Errorf("what was answered: %+v, %v", taken, err)
	}
}

// TestKeysDoNotFillTheOutbox checks that, however many keys bearers bring, the outbox is full of
// events only.
func TestKeysDoNotFillTheOutbox(t *testing.T) {
	storetest.SkipBulk(t)
	b := storetest.OpenBox(t, harness{}, storetest.Options{MaxBytes: 1 << 20})
	s := b.Engine.(*Engine)
	before := b.InUse()
	for i := range 6 {
		claimMany(t, s, fmt.Sprint(i), i*10_000, 6000)
	}
	if size := int64(6 * s.keyRoom()); b.InUse() > before+size/4 || s.nearlyFull() {
		t.Errorf("%d bytes are in use, %d were before there were keys of %d", b.InUse(), before, size)
	}
	storetest.MustAppend(t, b, storetest.Event("call.completed", "1"))
	if err := b.Writable(); err != nil {
		t.Error(err)
	}
	var err error
	for n := 0; err == nil && n < 500_000; {
		events := make([]telephony.Event, 500)
		for i := range events {
			n++
			events[i] = storetest.Event("call.completed", fmt.Sprint(n))
		}
		err = b.Append(t.Context(), events)
	}
	if !errors.Is(err, store.ErrFull) { // events do
		t.Errorf("it takes half a million events: %v", err)
	}
}

// TestKeysOfAnOlderVersionAreAdopted checks that keys that an older version has stored, which noted
// no ages, are known, go after a day, and are bounded.
func TestKeysOfAnOlderVersionAreAdopted(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		opts := storetest.WithDefaults(t, harness{}, storetest.Options{
			Place:       harness{}.Place(t),
			MaxBytes:    1 << 20,
			DialContext: c.Net.Dial,
		})
		old, err := storetest.Open(harness{}, opts)
		if err != nil {
			t.Fatal(err)
		}
		const many = 7000
		err = old.Engine.(*Engine).commit(func(tx *txn) error {
			for i := range many {
				key, at := hashOf(i), time.Now().Add(time.Duration(i)*time.Millisecond)
				if err := tx.keys.Put(key[:], oldClaim(at, 200)); err != nil {
					return err
				}
			}
			if err := tx.keys.Put([]byte("damaged"), []byte("x")); err != nil {
				return err
			}
			return tx.DeleteBucket(bucketKeyAges)
		})
		if err := errors.Join(err, old.Close()); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time there is nothing to do
			first, err := storetest.Open(harness{}, opts)
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
		}
		b := storetest.OpenBox(t, harness{}, opts)
		s := b.Engine.(*Engine)
		defer storetest.RunBox(t, b)()
		taken, err := s.ClaimKey(t.Context(), "crm", hashOf(many-1), store.KeyClaim{ID: [16]byte{1}, At: time.Now()})
		if err != nil || taken == nil || taken.Status != 200 {
			t.Errorf("the newest: %+v, %v", taken, err)
		}
		if isKnown(t, s, 0) || !isKnown(t, s, many-1000) {
			t.Error("the oldest were not forgotten for lack of room, or others were")
		}
		// Whose it was is not known.
		if err := s.SettleKey(t.Context(), "crm", hashOf(many-1), answer(200, nil)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(23 * time.Hour)
		synctest.Wait()
		if !isKnown(t, s, many-2) {
			t.Error("they were forgotten before a day was over")
		}
		if err := s.SettleKey(t.Context(), "crm", hashOf(many-1), answer(200, nil)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if left := countKeys(t, s); left != 1 || !isKnown(t, s, many-1) {
			t.Errorf("%d keys are left", left)
		}
	})
}
