package outbox

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// hashOf is the hash of a key by its number.
func hashOf(n int) [32]byte { return sha256.Sum256(number(uint64(n))) }

// claimMany takes keys for a bearer, from a number on, one each second until now.
func claimMany(t *testing.T, o *Outbox, bearer string, from, n int) {
	t.Helper()
	began := time.Now().Add(-time.Duration(n) * time.Second)
	err := o.store.commit(func(tx *txn) error {
		for i := range n {
			record := encodeClaim(began.Add(time.Duration(i)*time.Second), Claim{})
			if err := o.store.putKey(tx, bearer, hashOf(from+i), record); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// isKnown says whether a key is, without taking it.
func isKnown(t *testing.T, o *Outbox, n int) (known bool) {
	t.Helper()
	key := hashOf(n)
	if err := o.store.view(func(tx *txn) error { known = tx.keys.Get(key[:]) != nil; return nil }); err != nil {
		t.Fatal(err)
	}
	return known
}

// A bearer that brings more keys than there is room for loses its oldest, and no other bearer any.
func TestKeysAreBoundedForEachBearer(t *testing.T) {
	o := openOutbox(t, Options{MaxBytes: 1 << 20})
	room := int(o.store.keyRoom() / reckoned(encodeClaim(time.Now(), Claim{})))
	const other, many = 1_000_000, 20_000
	claimMany(t, o, "other", other, 10)
	claimMany(t, o, "crm", 0, many)
	for n, want := range map[int]bool{0: false, many - room - 1: false, many - room: true, many - 1: true, other: true, other + 9: true} {
		if known := isKnown(t, o, n); known != want {
			t.Errorf("whether the key %d is known: %v", n, known)
		}
	}
	// What is answered is the newest again, and takes more room.
	if err := o.AnswerKey("crm", hashOf(many-room), [32]byte{}, 200, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if !isKnown(t, o, many-room) || isKnown(t, o, many-room+1) || isKnown(t, o, many-room+4) || !isKnown(t, o, many-room+20) {
		t.Error("the answer did not push out the oldest")
	}
	if err := o.ReleaseKey(hashOf(many - 1)); err != nil || isKnown(t, o, many-1) {
		t.Errorf("a key that is given back is known, %v", err)
	}
	if err := o.ReleaseKey(hashOf(many - 1)); err != nil {
		t.Errorf("giving it back once more: %v", err)
	}
	taken, err := o.ClaimKey("crm", hashOf(many-room), [32]byte{1})
	if err != nil || taken == nil || taken.Status != 200 || len(taken.Answer) != 1000 {
		t.Errorf("what was answered: %+v, %v", taken, err)
	}
}

// However many keys bearers bring, the outbox is full of events only.
func TestKeysDoNotFillTheOutbox(t *testing.T) {
	o := openOutbox(t, Options{MaxBytes: 1 << 20})
	before := o.InUse()
	for i := range 6 {
		claimMany(t, o, fmt.Sprint(i), i*10_000, 6000)
	}
	if size := int64(6 * o.store.keyRoom()); o.InUse() > before+size/4 || o.store.nearlyFull() {
		t.Errorf("%d bytes are in use, %d were before there were keys of %d", o.InUse(), before, size)
	}
	mustAppend(t, o, event("call.completed", "1"))
	if err := o.Writable(); err != nil {
		t.Error(err)
	}
	var err error
	for n := 0; err == nil && n < 500_000; {
		events := make([]telephony.Event, 500)
		for i := range events {
			n++
			events[i] = event("call.completed", fmt.Sprint(n))
		}
		err = o.Append(t.Context(), events)
	}
	if !errors.Is(err, ErrFull) { // events do
		t.Errorf("it takes half a million events: %v", err)
	}
}

// Keys that an older version has stored, which noted no ages, are known, go after a day, and are bounded.
func TestKeysOfAnOlderVersion(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "outbox.db")
		opts := Options{Path: path, MaxBytes: 1 << 20}
		old, err := Open(withDefaults(t, opts))
		if err != nil {
			t.Fatal(err)
		}
		const many = 7000
		err = old.store.commit(func(tx *txn) error {
			for i := range many {
				key := hashOf(i)
				if err := tx.keys.Put(key[:], encodeClaim(time.Now().Add(time.Duration(i)*time.Millisecond), Claim{Status: 200})); err != nil {
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
			first, err := Open(withDefaults(t, opts))
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
		}
		o := openOutbox(t, opts)
		defer run(t, o)()
		if taken, err := o.ClaimKey("crm", hashOf(many-1), [32]byte{}); err != nil || taken == nil || taken.Status != 200 {
			t.Errorf("the newest: %+v, %v", taken, err)
		}
		if isKnown(t, o, 0) || !isKnown(t, o, many-1000) {
			t.Error("the oldest were not forgotten for lack of room, or others were")
		}
		if err := o.AnswerKey("crm", hashOf(many-1), [32]byte{}, 200, nil); err != nil { // whose it was is not known
			t.Fatal(err)
		}
		time.Sleep(23 * time.Hour)
		synctest.Wait()
		if !isKnown(t, o, many-2) {
			t.Error("they were forgotten before a day was over")
		}
		if err := o.AnswerKey("crm", hashOf(many-1), [32]byte{}, 200, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		left := 0
		if err := o.store.view(func(tx *txn) error { left = tx.keys.Stats().KeyN; return nil }); err != nil || left != 1 || !isKnown(t, o, many-1) {
			t.Errorf("%d keys are left, %v", left, err)
		}
	})
}
