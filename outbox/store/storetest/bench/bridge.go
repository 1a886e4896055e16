// Package bench is what the benchmarks of every engine stand on: a bridge between a simulated
// server and a receiver in another process, a bare way that stores, sends and records and does
// nothing else, and the POSTs alone.
package bench

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pzbridge/internal/asynclog"
	"pzbridge/internal/clock"
	"pzbridge/internal/metrics"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/relay"
)

// Concurrency is how many attempts are made at once, and InARow how many events come in a row
// before a reference has its turn.
const Concurrency, InARow = 32, 4096

// Options are those of an outbox in a place of its own.
func Options(b *testing.B, h storetest.Harness, e store.Endpoint) storetest.Options {
	b.Helper()
	nowhere, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	lines := asynclog.New(nowhere, nil)
	b.Cleanup(func() { lines.Close(); _ = nowhere.Close() })
	return storetest.Options{
		Place:          h.Place(b),
		Endpoints:      []store.Endpoint{e},
		RetrySchedule:  []time.Duration{time.Second},
		Retention:      time.Hour,
		RoutingTimeout: time.Hour,
		MaxBytes:       1 << 40,
		Grace:          time.Second,
		Clock:          clock.New(time.Time{}, time.Time{}),
		Logger:         slog.New(slog.NewJSONHandler(lines, nil)), // lines are made and written, as they are by default
	}
}

// Bridge is a bridge between a simulated server and its endpoints.
type Bridge struct {
	*storetest.Box
	b      *testing.B
	server *pztest.Server
	made   *attempts
}

// attempts counts those that have ended.
type attempts struct {
	outbox.Observer
	atomic.Uint64
}

// AttemptEnded counts one.
func (a *attempts) AttemptEnded(string, string, time.Duration, time.Duration) { a.Add(1) }

// StartBridge starts a bridge that is connected and has delivered a first event. It ends with the
// benchmark.
func StartBridge(b *testing.B, h storetest.Harness, opts storetest.Options) *Bridge {
	b.Helper()
	made := &attempts{Observer: metrics.New("")}
	opts.Observer = made
	o, err := storetest.Open(h, opts)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = o.Run(ctx, storetest.Silence{}) })
	b.Cleanup(func() {
		stop()
		running.Wait()
		_ = o.Close()
	})
	bridge := &Bridge{Box: o, b: b, server: connect(b, o, opts.Logger), made: made}
	for n := 0; DeliveredBy(b, o) == 0; n++ {
		bridge.Emit(n)
		<-time.After(10 * time.Millisecond)
	}
	return bridge
}

// connect connects a sink to a simulated server. The session ends with the benchmark, before what
// was started before it.
func connect(b *testing.B, sink relay.Sink, logger *slog.Logger) *pztest.Server {
	b.Helper()
	server := pztest.NewServer(pztest.Options{})
	address, err := url.Parse(server.URL)
	if err != nil {
		b.Fatal(err)
	}
	session, err := relay.New(relay.Options{
		URL:      address,
		Identity: pz.Identity{GUID: "g", EventsMask: 65535, Protocol: 2},
		Grace:    time.Second,
		Sink:     sink,
		Logger:   logger,
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = session.Run(ctx) })
	b.Cleanup(func() {
		stop()
		running.Wait()
		server.Close()
	})
	return server
}

// emit sends the event of a call from a simulated server.
func emit(b *testing.B, server *pztest.Server, call int) {
	fields := pz.Attrs{
		{Name: "Event", Value: "2"},
		{Name: "CallID", Value: fmt.Sprint(call)},
		{Name: "From", Value: "73430112233"},
		{Name: "To", Value: "101"},
	}
	if err := server.Generate(fields); err != nil {
		b.Fatal(err)
	}
}

// Emit sends the event of a call from the simulated server.
func (bridge *Bridge) Emit(call int) { emit(bridge.b, bridge.server, call) }

// Take lets n events come and says how long it takes until all are recorded as delivered to the
// first endpoint, and how much of the processor.
func (bridge *Bridge) Take(first, n int) (took, used time.Duration) {
	delivered, made := DeliveredBy(bridge.b, bridge.Box)+uint64(n), bridge.made.Load()+uint64(n)
	began, usedBefore := time.Now(), ProcessorTime(bridge.b)
	for i := range n {
		bridge.Emit(first + i)
	}
	for bridge.made.Load() < made { // to ask the outbox each time would be work of the benchmark's own
		<-time.After(time.Millisecond)
	}
	for DeliveredBy(bridge.b, bridge.Box) < delivered {
		<-time.After(time.Millisecond)
	}
	return time.Since(began), ProcessorTime(bridge.b) - usedBefore
}

// DeliveredBy is how many deliveries to the first endpoint are recorded as made.
func DeliveredBy(b *testing.B, o *storetest.Box) uint64 {
	b.Helper()
	list, err := o.Endpoints()
	if err != nil {
		b.Fatal(err)
	}
	return list[0].Delivered
}
