package bolt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/store/storetest/bench"
	"pzbridge/outbox/webhook"
)

// BenchmarkBridge takes events from a simulated server's socket through the outbox to a receiver in
// another process, 32 at once, until each is recorded. Beside it the same bodies go straight to
// that receiver, with the same client, nothing stored; and some of them the naive way: one
// transaction, one POST, one transaction. About what can be had, BenchmarkBridgeOfBare says.
func BenchmarkBridge(b *testing.B) {
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = bench.StartReceiver(b), bench.Concurrency
	opts := bench.Options(b, harness{}, e)
	bridge := bench.StartBridge(b, harness{}, opts)
	d, _, err := bridge.Deliveries(store.DeliveryQuery{Limit: 1})
	if err != nil {
		b.Fatal(err)
	}
	_, body, err := bridge.Sent("crm", d[0].EventID)
	if err != nil {
		b.Fatal(err)
	}
	direct := webhook.New(e, webhook.Options{})
	b.ReportAllocs()
	b.ResetTimer()
	var ours, theirs, used time.Duration
	for done := 0; done < b.N; done += bench.InARow {
		n := min(bench.InARow, b.N-done)
		took, spent := bridge.Take(1_000_000+done, n)
		ours, used = ours+took, used+spent
		b.StopTimer()
		theirs += bench.PostDirectly(b, direct, d[0].EventID, body, n)
		b.StartTimer()
	}
	b.StopTimer()
	naive := naiveLoop(b, direct, d[0].EventID, body)
	b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
	b.ReportMetric(float64(b.N)/theirs.Seconds(), "direct/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-direct")
	b.ReportMetric(used.Seconds()*1e6/float64(b.N), "CPU-µs/event")
	b.ReportMetric(naive.Seconds()*float64(b.N)/ours.Seconds(), "times-naive")
	b.ReportMetric(bench.RSSAnon(b, "self"), "RssAnon-MiB")
}

// BenchmarkBridgeOfBare lets the way of BenchmarkBridge and that of BenchmarkBare take turns, so
// that both meet the same weather, and says how fast the former is beside the latter.
func BenchmarkBridgeOfBare(b *testing.B) {
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = bench.StartReceiver(b), bench.Concurrency
	opts := bench.Options(b, harness{}, e)
	bridge, bare := bench.StartBridge(b, harness{}, opts), startBare(b, e, opts)
	bench.BridgeOfBare(b, bridge, bare, webhook.New(e, webhook.Options{}), nil)
}

// BenchmarkLatency emits 50 events a second and takes the time from the server's socket to where
// the receiver has the head of the POST: at an endpoint that is alone, and at one beside which
// another never answers and a third refuses connections. In each gap one event is committed to a
// bare file: the unit in which the time is told.
func BenchmarkLatency(b *testing.B) {
	b.Run("alone", func(b *testing.B) { benchLatency(b) })
	b.Run("beside-failing", func(b *testing.B) {
		silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}))
		defer silent.Close()
		gone := httptest.NewServer(http.NotFoundHandler())
		gone.Close()
		hangs, refuses := storetest.Endpoint("hangs"), storetest.Endpoint("refuses")
		hangs.URL, hangs.Timeout, refuses.URL = silent.URL, time.Second, gone.URL
		benchLatency(b, hangs, refuses)
	})
}

func benchLatency(b *testing.B, others ...store.Endpoint) {
	b.Helper()
	e := storetest.Endpoint("crm")
	url, arrived := bench.StartArrivals(b)
	e.URL = url
	opts := bench.Options(b, harness{}, e)
	opts.Endpoints = append(opts.Endpoints, others...)
	bridge := bench.StartBridge(b, harness{}, opts)
	arrived.Forget()
	bare := benchOutbox(b).Engine.(*Engine)
	ours, theirs := bench.Steadily(b,
		func(i int) time.Duration { return arrived.Of(func() { bridge.Emit(1_000_000 + i) }) },
		func(i int) time.Duration {
			change := bareAppend(b, storetest.Event("call.incoming", fmt.Sprint(i)), uint64(i)+1)
			return bench.Took(b, func() error { return bare.commit(change) })
		})
	commit := bench.Percentile(theirs, 50)
	b.ReportMetric(float64(commit.Microseconds()), "commit-µs")
	b.ReportMetric(bench.Percentile(ours, 50).Seconds()/commit.Seconds(), "p50-commits")
	b.ReportMetric(bench.Percentile(ours, 99).Seconds()/commit.Seconds(), "p99-commits")
}

// BenchmarkIdle takes the processor time of a bridge that is connected and has nothing to do, and
// of its simulated server, for five seconds at a time.
func BenchmarkIdle(b *testing.B) {
	const watched = 5 * time.Second
	e := storetest.Endpoint("crm")
	e.URL = bench.StartReceiver(b)
	bench.StartBridge(b, harness{}, bench.Options(b, harness{}, e))
	<-time.After(time.Second) // its start is over
	b.ResetTimer()
	var used time.Duration
	for range b.N {
		before := bench.ProcessorTime(b)
		<-time.After(watched)
		used += bench.ProcessorTime(b) - before
	}
	b.ReportMetric(used.Seconds()*1000/(float64(b.N)*watched.Minutes()), "CPU-ms/minute")
}

// BenchmarkBacklog starts with so many pending deliveries as its name says, takes the time from
// Open to the first that is recorded as delivered, and delivers b.N of them. Beside it b.N are
// delivered from an outbox that holds nothing else.
func BenchmarkBacklog(b *testing.B) {
	const pending = 1_000_000
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = bench.StartReceiver(b), bench.Concurrency
	e.RingingTTL = 24 * time.Hour
	b.Run(fmt.Sprintf("pending=%d", pending), func(b *testing.B) {
		if b.N > pending {
			b.Skip("there are only so many")
		}
		full, empty := bench.Options(b, harness{}, e), bench.Options(b, harness{}, e)
		fillOutbox(b, full, pending)
		fillOutbox(b, empty, b.N)
		debug.FreeOSMemory() // what filling has left
		b.ResetTimer()
		theirs, _ := drain(b, empty, b.N)
		ours, first := drain(b, full, b.N)
		b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
		b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-empty")
		b.ReportMetric(first.Seconds()*1000, "first-ms")
		b.ReportMetric(bench.RSSAnon(b, "self"), "RssAnon-MiB")
	})
}

// fillOutbox appends n events, five to a call.
func fillOutbox(b *testing.B, opts storetest.Options, n int) {
	b.Helper()
	o, err := storetest.Open(harness{}, opts)
	if err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	const together = 4096
	for done := 0; done < n; done += together {
		events := make([]telephony.Event, min(together, n-done))
		for i := range events {
			events[i] = storetest.Event("call.incoming", fmt.Sprint((done+i)/5))
			events[i].From, events[i].To = "73430112233", "101"
		}
		if err := o.Append(b.Context(), events); err != nil {
			b.Fatal(err)
		}
	}
}

// drain opens an outbox and is done when n are delivered. First is how long it took until one was
// recorded, all how long from then on.
func drain(b *testing.B, opts storetest.Options, n int) (all, first time.Duration) {
	b.Helper()
	began := time.Now()
	o, err := storetest.Open(harness{}, opts)
	if err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = o.Run(ctx, storetest.Silence{}) })
	defer running.Wait()
	defer stop()
	for delivered := uint64(0); delivered < uint64(n); {
		<-time.After(time.Millisecond)
		delivered = bench.DeliveredBy(b, o)
		if first == 0 && delivered > 0 {
			first = time.Since(began)
		}
	}
	return time.Since(began) - first, first
}

// naiveLoop is how long one event takes that is stored, sent and recorded one after the other.
func naiveLoop(b *testing.B, s *webhook.Sender, id string, body []byte) time.Duration {
	b.Helper()
	db, err := bolt.Open(filepath.Join(b.TempDir(), "naive.db"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	var next atomic.Uint64
	put := func(key, value []byte) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists([]byte("events"))
			if err != nil {
				return err
			}
			return bucket.Put(key, value)
		}
	}
	const many = 300
	return bench.InParallel(b, 1, many, func(int) error {
		key := number(next.Add(1))
		if err := db.Update(put(key, body)); err != nil {
			return err
		}
		if o := s.Send(b.Context(), store.Job{EventID: id, Event: store.Event{Body: body}}); o.Verdict != store.Done {
			return errors.New(o.Text())
		}
		return db.Update(put(key, []byte("delivered")))
	}) / many
}
