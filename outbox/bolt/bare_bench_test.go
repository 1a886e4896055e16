package bolt

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/webhook"
)

// BenchmarkBare is BenchmarkBridge with nothing but the work that cannot be left out: each event is
// stored, sent and recorded, together with what waits just then. There is no order, no schedule, no
// state to ask for and no log. It has the same reference, and says about how much of that can be
// had.
func BenchmarkBare(b *testing.B) {
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = startReceiver(b), concurrency
	opts := benchOptions(b, e)
	p := startBare(b, e, opts)
	direct := webhook.New(e, webhook.Options{})
	b.ReportAllocs()
	b.ResetTimer()
	var ours, theirs time.Duration
	for done := 0; done < b.N; done += inARow {
		n := min(inARow, b.N-done)
		ours += p.take(b, 1_000_000+done, n)
		b.StopTimer()
		theirs += postDirectly(b, direct, p.first.EventID, p.first.Event.Body, n)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
	b.ReportMetric(float64(b.N)/theirs.Seconds(), "direct/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-direct")
}

// bare is the bare way from a simulated server to a receiver.
type bare struct {
	db     *bolt.DB
	sender *webhook.Sender
	last   uint64         // number of the last event that was stored
	first  store.Job      // of the first one
	stored chan store.Job // to be sent
	sent   chan uint64    // to be recorded

	server   *pztest.Server
	recorded atomic.Uint64
}

// outcomesWait is how long outcomes wait for others, as the outbox lets them.
const outcomesWait = 2 * time.Millisecond

// startBare starts one that is connected. It ends with the benchmark.
func startBare(b *testing.B, e store.Endpoint, opts storetest.Options) *bare {
	b.Helper()
	const queued = 1024 // events: about as many as are stored together
	path, options := filepath.Join(b.TempDir(), "bare.db"), bolt.Options{
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: 1 << 30,
	}
	db, err := bolt.Open(path, 0o600, &options)
	if err != nil {
		b.Fatal(err)
	}
	p := &bare{
		db:     db,
		sender: webhook.New(e, webhook.Options{}),
		stored: make(chan store.Job, queued),
		sent:   make(chan uint64, queued),
	}
	var sending, recording sync.WaitGroup
	for range e.Concurrency {
		sending.Go(func() { p.send(b) })
	}
	recording.Go(func() { p.record(b) })
	b.Cleanup(func() {
		close(p.stored)
		sending.Wait()
		close(p.sent)
		recording.Wait()
		_ = db.Close()
	})
	p.server = connect(b, p, opts.Logger)
	for n := 0; p.recorded.Load() == 0; n++ {
		emit(b, p.server, n)
		<-time.After(10 * time.Millisecond)
	}
	return p
}

// Append stores events as the outbox encodes them.
func (p *bare) Append(_ context.Context, events []telephony.Event) error {
	values := make([][]byte, len(events))
	for i := range events {
		r, err := store.Encode(&events[i], time.Hour)
		if err != nil {
			return err
		}
		values[i] = encodeEvent(&r, 1, "")
	}
	err := p.put("events", len(values), func(i int) ([]byte, []byte) {
		return number(p.last + 1 + uint64(i)), values[i]
	})
	if err != nil {
		return err
	}
	for _, v := range values {
		p.last++
		e, err := decodeEvent(v)
		if err != nil {
			return err
		}
		j := store.Job{Number: p.last, Event: e, EventID: e.ID.String()}
		if p.last == 1 {
			p.first = j
		}
		p.stored <- j
	}
	return nil
}

// send is one of the senders.
func (p *bare) send(b *testing.B) {
	for j := range p.stored {
		if o := p.sender.Send(context.Background(), j); o.Verdict != store.Done {
			b.Error(o.Text())
		}
		p.sent <- j.Number
	}
}

// record records what was sent.
func (p *bare) record(b *testing.B) {
	for n := range p.sent {
		time.Sleep(outcomesWait)
		numbers := []uint64{n}
		for range len(p.sent) {
			numbers = append(numbers, <-p.sent)
		}
		outcome := encodeDelivery(store.Delivery{}.Ended(store.Delivered, time.Now()), nil)
		err := p.put("deliveries", len(numbers), func(i int) ([]byte, []byte) { return number(numbers[i]), outcome })
		if err != nil {
			b.Error(err)
		}
		p.recorded.Add(uint64(len(numbers)))
	}
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

// take lets n events come and says how long it takes until all are recorded.
func (p *bare) take(b *testing.B, first, n int) time.Duration {
	before, began := p.recorded.Load(), time.Now()
	for i := range n {
		emit(b, p.server, first+i)
	}
	for p.recorded.Load() < before+uint64(n) {
		<-time.After(time.Millisecond)
	}
	return time.Since(began)
}
