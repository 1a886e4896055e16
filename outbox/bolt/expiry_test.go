package bolt

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// entriesOf counts the entries of the index by expiry of "crm".
func entriesOf(t *testing.T, s *Engine) (n int) {
	t.Helper()
	if err := s.view(func(tx *txn) error {
		n = tx.queue("crm").expiry.Stats().KeyN
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// Deliveries that expire in the same second share an entry of the index, block by block.
func TestIndexByExpiryHasAnEntryForABlockOfDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storetest.Endpoint("crm")
		e.RingingTTL = time.Minute
		o := storetest.OpenBox(t, harness{}, storetest.Options{Endpoints: []store.Endpoint{e}})
		for i := range 10 * expiryBlock {
			storetest.MustAppend(t, o, storetest.Event("call.incoming", fmt.Sprint(i)))
		}
		checkFile(t, engineOf(o))
		if n := entriesOf(t, engineOf(o)); n != 11 { // deliveries are numbered from 1
			t.Errorf("%d entries for ten blocks of deliveries and one more", n)
		}
	})
}

// Entries of the index by expiry go once their second is over and nothing in their block expires
// any more, whether it was delivered or has expired, and however little happens afterwards.
func TestPastEntriesOfTheIndexByExpiryAreRemoved(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		c := &storetest.CRM{Answer: func(_ int, _ storetest.Received, w http.ResponseWriter) { w.WriteHeader(status) }}
		storetest.Bubble(t, c, func(t *testing.T) {
			e := storetest.Endpoint("crm")
			e.RingingTTL = time.Minute
			o := storetest.OpenBox(t, harness{}, storetest.Options{
				DialContext: c.Net.Dial,
				Endpoints:   []store.Endpoint{e},
			})
			stop := storetest.RunBox(t, o)
			for i := range 200 { // each in a second of its own
				storetest.MustAppend(t, o, storetest.Event("call.incoming", fmt.Sprint(i)))
				time.Sleep(time.Second)
			}
			time.Sleep(2 * time.Minute)
			stop()
			checkFile(t, engineOf(o))
			if n := entriesOf(t, engineOf(o)); n >= maxEmpty {
				t.Errorf("status %d: %d entries of 200 are left", status, n)
			}
			if got := storetest.States(t, o, "crm"); got[store.Pending] != 0 {
				t.Errorf("status %d: states: %v", status, got)
			}
		})
	}
}

// Many past entries of the index by expiry, as of a standstill or of a busy hour, are removed by
// looks that follow at once, and each look passes over a bounded number of them.
func TestManyPastEntriesOfTheIndexByExpiryAreRemovedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 5000
		o := storetest.OpenBox(t, harness{}, storetest.Options{})
		s := engineOf(o)
		mustCommit(t, s, func(tx *txn) error {
			for i := range many {
				expires := time.Now().Add(time.Duration(i) * time.Second).UnixNano()
				if err := tx.queue("crm").addExpiry(expires, uint64(i)*expiryBlock); err != nil {
					return err
				}
			}
			return nil
		})
		time.Sleep(3 * time.Hour)
		l := laneOf(t, s, "crm")
		for range many/emptyBatch + 1 {
			f, err := l.claimLate(time.Now(), 10)
			if err != nil || len(f.empty) > emptyBatch {
				t.Fatalf("a look has found %d past entries, %v", len(f.empty), err)
			}
			_, next, err := l.Expire(t.Context(), time.Now(), 10)
			if left := entriesOf(t, s); err != nil || left > 0 && next.After(time.Now()) || left > 0 && next.IsZero() {
				t.Fatalf("%d entries are left, the next look is at %v, %v", left, next, err)
			}
		}
		if n := entriesOf(t, s); n >= maxEmpty {
			t.Errorf("%d of %d entries are left", n, many)
		}
	})
}

// An entry that was found empty stays if a delivery of its block is stored, or released from a
// hold, before it is removed.
func TestEntryOfTheIndexByExpiryStaysForADeliveryThatCameSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storetest.Endpoint("crm")
		e.RingingTTL = time.Minute
		o := storetest.OpenBox(t, harness{}, storetest.Options{Endpoints: []store.Endpoint{e}})
		s := engineOf(o)
		l := laneOf(t, s, "crm")
		late := storetest.Event("call.incoming", "1")
		mustCommit(t, s, func(tx *txn) error {
			return tx.queue("crm").addExpiry(late.Time.Add(time.Minute).UnixNano(), 1)
		})
		time.Sleep(2 * time.Minute)
		f, err := l.claimLate(time.Now(), 10)
		if err != nil || len(f.empty) != 1 || len(f.late) != 0 {
			t.Fatalf("the look has found %+v, %v", f, err)
		}
		storetest.MustAppend(t, o, late) // it was read so late that it has expired already
		mustCommit(t, s, func(tx *txn) error {
			_, err := l.endLate(tx, f, time.Now())
			return err
		})
		checkFile(t, s)
		if expired, _, err := l.Expire(t.Context(), time.Now(), 10); len(expired) != 1 || err != nil {
			t.Errorf("%d have expired, %v", len(expired), err)
		}
	})
}

// An entry that was added, found empty and removed is added again, all in one transaction.
func TestEntryOfTheIndexByExpiryIsAddedAgainAfterItsRemoval(t *testing.T) {
	o := storetest.OpenBox(t, harness{}, storetest.Options{Endpoints: []store.Endpoint{storetest.Endpoint("crm")}})
	s := engineOf(o)
	l, past := laneOf(t, s, "crm"), time.Now().Add(-time.Hour)
	mustCommit(t, s, func(tx *txn) error {
		q := tx.queue("crm")
		if err := q.addExpiry(past.UnixNano(), 1); err != nil {
			return err
		}
		f := expiredBatch{empty: [][]byte{entryOf(past.UnixNano(), 1).key()}}
		if _, err := l.endLate(tx, f, time.Now()); err != nil {
			return err
		}
		return q.addExpiry(past.UnixNano(), 2)
	})
	if n := entriesOf(t, s); n != 1 {
		t.Errorf("the index has %d entries, want 1", n)
	}
}
