package bolt

import (
	"errors"
	"fmt"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/store/storetest/bench"
)

// BenchmarkAppend appends events one by one from as many goroutines as are to wait at once, and
// beside it does the same to a bare bbolt file: the keys and values that the outbox would write,
// committed by the same grouping. It reports events a second of both, and the ratio, which is what
// counts on a machine whose disk is not ours alone.
func BenchmarkAppend(b *testing.B) {
	for _, waiting := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("waiting=%d", waiting), func(b *testing.B) {
			o := benchOutbox(b)
			bare := benchOutbox(b).Engine.(*Engine)
			b.ReportAllocs()
			var ours, theirs time.Duration
			// In turns, so that both meet the same weather.
			const turn = 2048
			for done := 0; done < b.N; done += turn {
				n := min(turn, b.N-done)
				events := make([]telephony.Event, n)
				for i := range events {
					events[i] = storetest.Event("call.incoming", fmt.Sprint(done+i))
					events[i].From, events[i].To = "73430112233", "101"
				}
				b.StopTimer()
				ready := make([]func(*txn) error, n)
				for i := range ready {
					ready[i] = bareAppend(b, events[i], uint64(done+i)+1)
				}
				theirs += bench.InParallel(b, waiting, n, func(i int) error { return bare.commit(ready[i]) })
				b.StartTimer()
				ours += bench.InParallel(b, waiting, n, func(i int) error {
					return o.Append(b.Context(), events[i:i+1])
				})
			}
			b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
			b.ReportMetric(float64(b.N)/theirs.Seconds(), "bare/s")
			b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-bare")
		})
	}
}

// BenchmarkRecordOutcomes records, 256 together, that deliveries were made, and beside it writes
// the same bytes to a bare bbolt file.
func BenchmarkRecordOutcomes(b *testing.B) {
	const together = 256
	b.Run(fmt.Sprint(together), func(b *testing.B) {
		o := benchOutbox(b)
		other := benchOutbox(b)
		lane, err := o.Engine.Lane(b.Context(), "crm", false)
		if err != nil {
			b.Fatal(err)
		}
		bare := other.Engine.(*Engine)
		made := &store.Attempt{At: time.Now(), Took: 20 * time.Millisecond, Status: 200, Response: `{"status":"ok"}`}
		b.ReportAllocs()
		var ours, theirs time.Duration
		for done := 0; done < b.N; done += together {
			n := min(together, b.N-done)
			b.StopTimer()
			events := make([]telephony.Event, n)
			for i := range events {
				events[i] = storetest.Event("call.incoming", fmt.Sprint(done+i))
			}
			for _, s := range []*storetest.Box{o, other} {
				if err := s.Append(b.Context(), events); err != nil {
					b.Fatal(err)
				}
			}
			c, err := lane.Claim(b.Context(), time.Now(), n, nil)
			if err != nil || len(c.Jobs) != n {
				b.Fatal(len(c.Jobs), err)
			}
			results := make([]store.Result, n)
			writes := make([]struct{ key, due, value []byte }, n)
			for i, j := range c.Jobs {
				d := j.Delivery
				d.Attempts++
				results[i] = store.Result{Job: j, Now: d.Ended(store.Delivered, time.Now()), Attempt: made}
				writes[i].key, writes[i].due = number(j.Number), timeKey(0, j.Number)
				writes[i].value = encodeDelivery(results[i].Now, store.AppendAttempt(nil, nil, *made))
			}
			writeBare := func() error {
				return bare.commit(func(tx *txn) error {
					crm := tx.Bucket(bucketEndpoints).Bucket([]byte("crm"))
					deliveries, due := crm.Bucket(bucketDeliveries), crm.Bucket(bucketDue)
					for _, w := range writes {
						if err := errors.Join(due.Delete(w.due), deliveries.Put(w.key, w.value)); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if done/together%2 == 0 { // whoever is first meets the colder cache
				theirs += bench.Took(b, writeBare)
			}
			b.StartTimer()
			ours += bench.Took(b, func() error { return lane.Record(b.Context(), results) })
			b.StopTimer()
			if done/together%2 == 1 {
				theirs += bench.Took(b, writeBare)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(b.N)/ours.Seconds(), "outcomes/s")
		b.ReportMetric(float64(b.N)/theirs.Seconds(), "bare/s")
		b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-bare")
	})
}

func benchOutbox(b *testing.B) *storetest.Box {
	b.Helper()
	o, err := storetest.Open(harness{}, bench.Options(b, harness{}, storetest.Endpoint("crm")))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = o.Close() })
	return o
}

// bareAppend makes the change that writes what the outbox would write of an event: the bytes are
// ready, nothing is looked up, nothing decided.
func bareAppend(b *testing.B, e telephony.Event, i uint64) func(*txn) error {
	b.Helper()
	r, err := store.Encode(&e, time.Second)
	if err != nil {
		b.Fatal(err)
	}
	n := number(i)
	value, call := encodeEvent(&r, 1, ""), append(callKey(r.Call), number(1)...)
	place, due := append(n[:8:8], r.Fingerprint[:]...), timeKey(0, i)
	pendingDelivery := encodeDelivery(store.Delivery{}, nil)
	return func(tx *txn) error {
		crm := tx.Bucket(bucketEndpoints).Bucket([]byte("crm"))
		for _, put := range []struct {
			bucket     *bolt.Bucket
			key, value []byte
		}{
			{tx.Bucket(bucketEvents), n, value},
			{tx.Bucket(bucketIDs), r.ID[:], n},
			{tx.Bucket(bucketCalls), call, place},
			{crm.Bucket(bucketDeliveries), n, pendingDelivery},
			{crm.Bucket(bucketDue), due, nil},
		} {
			if err := put.bucket.Put(put.key, put.value); err != nil {
				return err
			}
		}
		return nil
	}
}
