package postgres

import (
	"context"
	"testing"
	"time"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/store/storetest/bench"
	"pzbridge/outbox/webhook"
)

// live is a harness whose engines look at the database as often as those of a bridge do.
type live struct{ harness }

func (live) Open(o storetest.EngineOptions) (store.Engine, error) {
	e, err := Open(context.Background(), Options{
		URL:       o.Place,
		MaxBytes:  o.MaxBytes,
		Rules:     o.Rules,
		Logger:    o.Logger,
		Clock:     o.Clock,
		Committed: o.Committed,
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// newLive returns the harness of a server of its own.
func newLive(b *testing.B) live {
	b.Helper()
	return live{harness{server: benchServer(b)}}
}

// BenchmarkBridgeOfBare takes events from a simulated server's socket through the outbox to a
// receiver in another process, 32 at once, until each is recorded. In turns with it a bare way does
// the same with the same database, server and receiver, and does nothing else: see bench.Bare.
func BenchmarkBridgeOfBare(b *testing.B) {
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = bench.StartReceiver(b), bench.Concurrency
	h := newLive(b)
	bridge := bench.StartBridge(b, h, bench.Options(b, h, e))
	s := engineOf(bridge.Box)
	bare := startBare(b, s, e)
	// A first turn of each opens the connections and has the statements planned.
	bridge.Take(100_000, bench.InARow)
	bare.Take(100_000, bench.InARow)
	bench.BridgeOfBare(b, bridge, bare, webhook.New(e, webhook.Options{}), servedBy(b, s))
}

// BenchmarkLatency emits 50 events a second and takes the time from the server's socket to where
// the receiver has the head of the POST. In each gap it does the same with the bare way beside it.
func BenchmarkLatency(b *testing.B) {
	e, beside := storetest.Endpoint("crm"), storetest.Endpoint("crm")
	var arrived, arrivedBare bench.Arrivals
	e.URL, arrived = bench.StartArrivals(b)
	beside.URL, arrivedBare = bench.StartArrivals(b)
	h := newLive(b)
	bridge := bench.StartBridge(b, h, bench.Options(b, h, e))
	bare := startBare(b, engineOf(bridge.Box), beside)
	arrived.Forget()
	arrivedBare.Forget()
	ours, theirs := bench.Steadily(b,
		func(i int) time.Duration { return arrived.Of(func() { bridge.Emit(1_000_000 + i) }) },
		func(i int) time.Duration { return arrivedBare.Of(func() { bare.Emit(1_000_000 + i) }) })
	for _, p := range []struct {
		name    string
		percent int
	}{{"p50", 50}, {"p99", 99}} {
		ours, theirs := bench.Percentile(ours, p.percent), bench.Percentile(theirs, p.percent)
		b.ReportMetric(ours.Seconds()*1000, p.name+"-ms")
		b.ReportMetric(theirs.Seconds()*1000, "bare-"+p.name+"-ms")
		b.ReportMetric(ours.Seconds()/theirs.Seconds(), p.name+"-of-bare")
	}
}
