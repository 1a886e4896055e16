package outbox

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
)

// BenchmarkAppend appends events one by one from as many goroutines as are to wait at once, and beside it does the same to a bare bbolt
// file: the keys and values that the outbox would write, committed by the same grouping. It reports events a second of both, and the ratio, which
// is what counts on a machine whose disk is not ours alone.
func BenchmarkAppend(b *testing.B) {
	for _, waiting := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("waiting=%d", waiting), func(b *testing.B) {
			o, err := Open(Options{
				Path: filepath.Join(b.TempDir(), "outbox.db"), Endpoints: []Endpoint{endpoint("crm")}, Retention: time.Hour,
				RoutingTimeout: time.Second, MaxBytes: 1 << 40, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				b.Fatal(err)
			}
			defer o.Close()
			bare, err := openStore(Options{Path: filepath.Join(b.TempDir(), "bare.db"), Endpoints: []Endpoint{endpoint("crm")}})
			if err != nil {
				b.Fatal(err)
			}
			defer bare.db.Close()
			b.ReportAllocs()
			var ours, theirs time.Duration
			// In turns, so that both meet the same weather.
			const turn = 2048
			for done := 0; done < b.N; done += turn {
				n := min(turn, b.N-done)
				events := make([]telephony.Event, n)
				for i := range events {
					events[i] = event("call.incoming", fmt.Sprint(done+i))
					events[i].From, events[i].To = "73430112233", "101"
				}
				b.StopTimer()
				ready := make([]func(*txn) error, n)
				for i := range ready {
					ready[i] = bareAppend(b, events[i], uint64(done+i)+1)
				}
				theirs += inParallel(b, waiting, n, func(i int) error { return bare.commit(ready[i]) })
				b.StartTimer()
				ours += inParallel(b, waiting, n, func(i int) error { return o.Append(b.Context(), events[i:i+1]) })
			}
			b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
			b.ReportMetric(float64(b.N)/theirs.Seconds(), "bare/s")
			b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-bare")
		})
	}
}

// inParallel does n things from so many goroutines.
func inParallel(b *testing.B, goroutines, n int, do func(i int) error) time.Duration {
	b.Helper()
	began := time.Now()
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			for i := g; i < n; i += goroutines {
				if err := do(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

// bareAppend makes the change that writes what the outbox would write of an event: the bytes are ready, nothing is looked up, nothing decided.
func bareAppend(b *testing.B, e telephony.Event, i uint64) func(*txn) error {
	b.Helper()
	r, err := newRecord(&e)
	if err != nil {
		b.Fatal(err)
	}
	n := number(i)
	value, call := encodeEvent(r, 1), append(callKey(r.call), number(1)...)
	place, pendingDelivery, due := append(n[:8:8], r.fingerprint[:]...), encodeDelivery(delivery{}), dueKey(0, i)
	return func(tx *txn) error {
		crm := tx.Bucket(bucketEndpoints).Bucket([]byte("crm"))
		for _, put := range []struct {
			bucket     *bolt.Bucket
			key, value []byte
		}{
			{tx.Bucket(bucketEvents), n, value},
			{tx.Bucket(bucketIDs), r.id[:], n},
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
