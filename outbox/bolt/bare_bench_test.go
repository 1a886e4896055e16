package bolt

import (
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/store/storetest/bench"
	"pzbridge/outbox/webhook"
)

// BenchmarkBare is BenchmarkBridge with nothing but the work that cannot be left out: see
// bench.Bare. It has the same reference, and says about how much of that can be had.
func BenchmarkBare(b *testing.B) {
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = bench.StartReceiver(b), bench.Concurrency
	p := startBare(b, e, bench.Options(b, harness{}, e))
	direct := webhook.New(e, webhook.Options{})
	b.ReportAllocs()
	b.ResetTimer()
	var ours, theirs time.Duration
	for done := 0; done < b.N; done += bench.InARow {
		n := min(bench.InARow, b.N-done)
		took, _ := p.Take(1_000_000+done, n)
		ours += took
		b.StopTimer()
		theirs += bench.PostDirectly(b, direct, p.First.EventID, p.First.Event.Body, n)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
	b.ReportMetric(float64(b.N)/theirs.Seconds(), "direct/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-direct")
}

// bare is a bbolt file that keeps the events of a bare way.
type bare struct {
	db   *bolt.DB
	last uint64 // number of the last event that was stored
}

// startBare starts a bare way that is connected. It ends with the benchmark.
func startBare(b *testing.B, e store.Endpoint, opts storetest.Options) *bench.Bare {
	b.Helper()
	path, options := filepath.Join(b.TempDir(), "bare.db"), bolt.Options{
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: 1 << 30,
	}
	db, err := bolt.Open(path, 0o600, &options)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	return bench.StartBare(b, &bare{db: db}, e, opts.Logger)
}

// Append stores events as the outbox encodes them.
func (p *bare) Append(events []telephony.Event) (jobs []store.Job, err error) {
	values := make([][]byte, len(events))
	for i := range events {
		r, err := store.Encode(&events[i], time.Hour)
		if err != nil {
			return nil, err
		}
		values[i] = encodeEvent(&r, 1, "")
	}
	err = p.put("events", len(values), func(i int) ([]byte, []byte) {
		return number(p.last + 1 + uint64(i)), values[i]
	})
	if err != nil {
		return nil, err
	}
	for _, v := range values {
		p.last++
		e, err := decodeEvent(v)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, store.Job{Number: p.last, Event: e, EventID: e.ID.String()})
	}
	return jobs, nil
}

// Record stores that events were sent.
func (p *bare) Record(numbers []uint64) error {
	outcome := encodeDelivery(store.Delivery{}.Ended(store.Delivered, time.Now()), nil)
	return p.put("deliveries", len(numbers), func(i int) ([]byte, []byte) { return number(numbers[i]), outcome })
}

// put writes n keys and values in one transaction.
func (p *bare) put(bucket string, n int, pair func(int) (key, value []byte)) error {
	return p.db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		for i := range n {
			if err := bucket.Put(pair(i)); err != nil {
				return err
			}
		}
		return nil
	})
}
