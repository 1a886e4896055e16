package routing_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"pzbridge/internal/asynclog"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/relay"
)

// BenchmarkQuestion lets 50 calls a second ask where to go and takes the time from the server's
// socket to where the endpoint has the head of the POST: with an outbox that holds nothing else,
// while a million deliveries wait for that endpoint, and while they are delivered to it at full
// speed.
func BenchmarkQuestion(b *testing.B) {
	const many = 1_000_000
	for _, c := range []struct {
		name    string
		pending int
		rate    float64
	}{{"pending=0", 0, 0}, {"pending=1000000", many, 1}, {"pending=1000000/draining", many, 0}} {
		b.Run(c.name, func(b *testing.B) {
			const gap = 20 * time.Millisecond
			arrived := make(chan time.Time, 1)
			receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				now := time.Now()
				if body, _ := io.ReadAll(r.Body); bytes.Contains(body, []byte(`"call.transfer_requested"`)) {
					arrived <- now
				}
			}))
			defer receiver.Close()
			e := storetest.Endpoint("crm")
			e.URL, e.Rate, e.Concurrency, e.RingingTTL = receiver.URL, c.rate, 32, 24*time.Hour
			server := startBridge(b, e, c.pending)
			ticks := time.NewTicker(gap)
			defer ticks.Stop()
			var took []time.Duration
			b.ResetTimer()
			for i := range b.N {
				<-ticks.C
				began := time.Now()
				emit(b, server, 2_000_000+i, pz.Attrs{{Name: "Event", Value: "1"}})
				took = append(took, (<-arrived).Sub(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[b.N/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[b.N*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// startBridge starts a bridge to an endpoint for which so many deliveries wait. It is connected to
// the server and has delivered a first event of it, and ends with the benchmark.
func startBridge(b *testing.B, e store.Endpoint, pending int) *pztest.Server {
	b.Helper()
	nowhere, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	lines := asynclog.New(nowhere, nil)
	b.Cleanup(func() { lines.Close(); _ = nowhere.Close() })
	opts := storetest.WithDefaults(b, bolttest.Harness{}, storetest.Options{
		Endpoints:      []store.Endpoint{e},
		RetrySchedule:  []time.Duration{time.Second},
		Retention:      time.Hour,
		RoutingTimeout: 10 * time.Second,
		MaxBytes:       1 << 40,
		Grace:          time.Second,
		Logger:         slog.New(slog.NewJSONHandler(lines, nil)), // lines are made and written, as they are by default
	})
	fill(b, opts, pending)
	box, err := storetest.Open(bolttest.Harness{}, opts)
	if err != nil {
		b.Fatal(err)
	}
	stop := storetest.RunBox(b, box)
	b.Cleanup(func() { stop(); _ = box.Close() })
	server := connect(b, box, opts.Logger)
	for n := 0; storetest.States(b, box, e.Name)[store.Delivered] == 0; n++ {
		emit(b, server, n, pz.Attrs{{Name: "Event", Value: "2"}, {Name: "To", Value: "101"}})
		<-time.After(10 * time.Millisecond)
	}
	return server
}

// fill appends events, five to a call.
func fill(b *testing.B, opts storetest.Options, n int) {
	b.Helper()
	box, err := storetest.Open(bolttest.Harness{}, opts)
	if err != nil {
		b.Fatal(err)
	}
	defer box.Close()
	const together = 4096
	for done := 0; done < n; done += together {
		events := make([]telephony.Event, min(together, n-done))
		for i := range events {
			events[i] = storetest.Event("call.incoming", fmt.Sprint((done+i)/5))
			events[i].From, events[i].To = "73430112233", "101"
		}
		storetest.MustAppend(b, box, events...)
	}
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

// emit sends an event of a call from a simulated server.
func emit(b *testing.B, server *pztest.Server, call int, fields pz.Attrs) {
	b.Helper()
	fields = append(fields,
		pz.Attr{Name: "CallID", Value: fmt.Sprint(call)},
		pz.Attr{Name: "From", Value: "73430112233"})
	if err := server.Generate(fields); err != nil {
		b.Fatal(err)
	}
}
