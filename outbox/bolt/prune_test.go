package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store/storetest"
)

// keys counts the keys of the whole file but for those that belong to no event.
func keys(t *testing.T, s *Engine) int {
	t.Helper()
	n := 0
	err := s.db.View(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketEvents, bucketIDs, bucketCalls} {
			n += tx.Bucket(name).Stats().KeyN
		}
		endpoints := tx.Bucket(bucketEndpoints)
		return endpoints.ForEachBucket(func(name []byte) error {
			for _, part := range [][]byte{bucketDeliveries, bucketDue, bucketExpiry} {
				n += endpoints.Bucket(name).Bucket(part).Stats().KeyN
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFileStopsGrowingUnderASteadyLoad checks too that, once all events are old, no key of one is
// left.
func TestFileStopsGrowingUnderASteadyLoad(t *testing.T) {
	storetest.SkipBulk(t)
	t.Parallel()
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		path := harness{}.Place(t)
		box := storetest.OpenBox(t, harness{}, storetest.Options{
			Place:          path,
			DialContext:    c.Net.Dial,
			Retention:      time.Hour,
			RoutingTimeout: time.Hour,
			Logger:         slog.New(slog.DiscardHandler),
		})
		stop := storetest.RunBox(t, box)
		size := func() int64 {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		var early int64
		for hour := range 6 {
			for i := range 60 {
				for j := range 5 {
					storetest.MustAppend(t, box, storetest.Event("call.completed", fmt.Sprint(hour*300+i*5+j)))
				}
				time.Sleep(time.Minute)
			}
			if hour == 2 {
				early = size()
			}
		}
		if late := size(); late > early {
			t.Errorf("from the third hour to the sixth the file grew from %d to %d bytes", early, late)
		}
		time.Sleep(2 * time.Hour)
		stop()
		if n := keys(t, box.Engine.(*Engine)); n != 0 {
			t.Errorf("%d keys are left in the end", n)
		}
	})
}

// TestLastOfACallInAnEmptiedBucket checks that the look for a call's latest event ends also where
// all calls were removed in the same transaction: bbolt's cursor does not find the end of such a
// bucket.
func TestLastOfACallInAnEmptiedBucket(t *testing.T) {
	b := storetest.OpenBox(t, harness{}, storetest.Options{})
	events := make([]telephony.Event, 2000) // several pages
	for i := range events {
		events[i] = storetest.Event("call.completed", fmt.Sprint(i))
	}
	storetest.MustAppend(t, b, events...)
	undo := errors.New("undo")
	err := b.Engine.(*Engine).update(func(tx *txn) error {
		for k, _ := tx.calls.Cursor().First(); k != nil; k, _ = tx.calls.Cursor().First() {
			if err := tx.calls.Delete(bytes.Clone(k)); err != nil {
				return err
			}
		}
		if sequence, entry := tx.lastOf(callKey("1999")); sequence != 0 || entry != nil {
			t.Errorf("the event with sequence %d is the last", sequence)
		}
		return undo
	})
	if !errors.Is(err, undo) {
		t.Fatal(err)
	}
}

// Removing events empties pages until the commit. A look backwards in the same transaction, such as
// that of an append which is committed with a Prune, passes over them.
func TestLooksBackwardsPassOverEmptiedPages(t *testing.T) {
	const calls = 2000
	b := storetest.OpenBox(t, harness{}, quietly(t, storetest.Options{}))
	var events []telephony.Event
	for i := range calls {
		call := fmt.Sprint(10_000 + i)
		events = append(events, eventsOf(call, "call.incoming", "call.completed")...)
	}
	storetest.MustAppend(t, b, events...)
	undo := errors.New("undo")
	for _, gap := range []struct{ from, to int }{{0, 1500}, {300, 900}, {500, 1999}, {1, 1999}, {0, 1999}} {
		err := engineOf(b).update(func(tx *txn) error {
			isGone := func(i int) bool { return gap.from <= i && i < gap.to }
			for i := range calls {
				if !isGone(i) {
					continue
				}
				for sequence := range uint64(2) {
					place := binary.BigEndian.AppendUint64(callKey(fmt.Sprint(10_000+i)), sequence+1)
					if err := tx.calls.Delete(place); err != nil {
						return err
					}
				}
			}
			for i := range calls {
				place := callKey(fmt.Sprint(10_000 + i))
				sequence, _ := tx.lastOf(bytes.Clone(place))
				seen := 0
				for range tx.backwards(place) {
					seen++
				}
				want := 2
				if isGone(i) {
					want = 0
				}
				if sequence != uint64(want) || seen != want {
					t.Fatalf("without %d to %d: call %d has %d events and a last one %d",
						gap.from, gap.to, i, seen, sequence)
				}
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Fatal(err)
		}
	}
}
