package bolt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/asynclog"
	"pzbridge/internal/clock"
	"pzbridge/internal/metrics"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/webhook"
	"pzbridge/relay"
)

// receive is the receiver of BenchmarkBridge, in a process of its own: it takes everything and says
// its address.
func receive() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	}))
}

func startReceiver(b *testing.B) (url string) {
	b.Helper()
	p := exec.Command(os.Args[0])
	p.Env = []string{"RECEIVE=1"}
	out, err := p.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return "http://" + address[:len(address)-1]
}

// benchBridge is a bridge between a simulated server and its endpoints.
type benchBridge struct {
	*storetest.Box
	b      *testing.B
	server *pztest.Server
	made   *attempts
}

// startBridge starts one that is connected and has delivered a first event. It ends with the
// benchmark.
func startBridge(b *testing.B, opts storetest.Options) *benchBridge {
	b.Helper()
	made := &attempts{Observer: metrics.New("")}
	opts.Observer = made
	o, err := storetest.Open(harness{}, opts)
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
	bridge := &benchBridge{Box: o, b: b, server: connect(b, o, opts.Logger), made: made}
	for n := 0; deliveredBy(b, o) == 0; n++ {
		bridge.emit(n)
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

func (bridge *benchBridge) emit(call int) { emit(bridge.b, bridge.server, call) }

// take lets n events come and says how long it takes until all are recorded as delivered to the
// first endpoint, and how much of the processor.
func (bridge *benchBridge) take(first, n int) (took, used time.Duration) {
	delivered, made := deliveredBy(bridge.b, bridge.Box)+uint64(n), bridge.made.Load()+uint64(n)
	began, usedBefore := time.Now(), processorTime(bridge.b)
	for i := range n {
		bridge.emit(first + i)
	}
	for bridge.made.Load() < made { // to ask the outbox each time would be work of the benchmark's own
		<-time.After(time.Millisecond)
	}
	for deliveredBy(bridge.b, bridge.Box) < delivered {
		<-time.After(time.Millisecond)
	}
	return time.Since(began), processorTime(bridge.b) - usedBefore
}

// deliveredBy is how many deliveries to the first endpoint are recorded as made.
func deliveredBy(b *testing.B, o *storetest.Box) uint64 {
	b.Helper()
	list, err := o.Endpoints()
	if err != nil {
		b.Fatal(err)
	}
	return list[0].Delivered
}

func benchOptions(b *testing.B, e store.Endpoint) storetest.Options {
	b.Helper()
	nowhere, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	lines := asynclog.New(nowhere, nil)
	b.Cleanup(func() { lines.Close(); _ = nowhere.Close() })
	return storetest.Options{
		Place:          harness{}.Place(b),
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

// attempts counts those that have ended.
type attempts struct {
	outbox.Observer
	atomic.Uint64
}

// AttemptEnded counts one.
func (a *attempts) AttemptEnded(string, string, time.Duration, time.Duration) { a.Add(1) }

// BenchmarkBridge takes events from a simulated server's socket through the outbox to a receiver in
// another process, 32 at once, until each is recorded. Beside it the same bodies go straight to
// that receiver, with the same client, nothing stored; and some of them the naive way: one
// transaction, one POST, one transaction. About what can be had, BenchmarkBridgeOfBare says.
func BenchmarkBridge(b *testing.B) {
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = startReceiver(b), concurrency
	opts := benchOptions(b, e)
	bridge := startBridge(b, opts)
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
	for done := 0; done < b.N; done += inARow {
		n := min(inARow, b.N-done)
		took, spent := bridge.take(1_000_000+done, n)
		ours, used = ours+took, used+spent
		b.StopTimer()
		theirs += postDirectly(b, direct, d[0].EventID, body, n)
		b.StartTimer()
	}
	b.StopTimer()
	naive := naiveLoop(b, direct, d[0].EventID, body)
	b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
	b.ReportMetric(float64(b.N)/theirs.Seconds(), "direct/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-direct")
	b.ReportMetric(used.Seconds()*1e6/float64(b.N), "CPU-µs/event")
	b.ReportMetric(naive.Seconds()*float64(b.N)/ours.Seconds(), "times-naive")
	b.ReportMetric(rssAnon(b), "RssAnon-MiB")
}

// BenchmarkBridgeOfBare lets the way of BenchmarkBridge and that of BenchmarkBare take turns, so
// that both meet the same weather, and says how fast the former is beside the latter.
func BenchmarkBridgeOfBare(b *testing.B) {
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = startReceiver(b), concurrency
	opts := benchOptions(b, e)
	bridge, bare := startBridge(b, opts), startBare(b, e, opts)
	b.ResetTimer()
	var ours, theirs, used, usedByBare time.Duration
	for done := 0; done < b.N; done += inARow {
		n := min(inARow, b.N-done)
		took, spent := bridge.take(1_000_000+done, n)
		ours, used = ours+took, used+spent
		b.StopTimer()
		before := processorTime(b)
		theirs += bare.take(b, 1_000_000+done, n)
		usedByBare += processorTime(b) - before
		b.StartTimer()
	}
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-bare")
	b.ReportMetric(used.Seconds()*1e6/float64(b.N), "CPU-µs/event")
	b.ReportMetric(usedByBare.Seconds()*1e6/float64(b.N), "bare-CPU-µs/event")
}

// Attempts at once, and events that come in a row before the reference has its turn.
const concurrency, inARow = 32, 4096

// postDirectly is how long it takes to POST one event n times, so many at once, and nothing else.
func postDirectly(b *testing.B, s *webhook.Sender, id string, body []byte, n int) time.Duration {
	b.Helper()
	return inParallel(b, concurrency, n, func(int) error {
		if o := s.Send(b.Context(), store.Job{EventID: id, Event: store.Event{Body: body}}); o.Verdict != store.Done {
			return errors.New(o.Text())
		}
		return nil
	})
}

// rssAnon is how much memory of its own the process has, in MiB: the mapped file is not in it.
func rssAnon(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip("only Linux says how much memory is a process's own: ", err)
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, "RssAnon:"); found {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	b.Fatal("no RssAnon in ", string(status))
	return 0
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
	const gap, most = 20 * time.Millisecond, 1000
	arrived := make(chan time.Time, most)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- time.Now()
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	defer receiver.Close()
	e := storetest.Endpoint("crm")
	e.URL = receiver.URL
	opts := benchOptions(b, e)
	opts.Endpoints = append(opts.Endpoints, others...)
	bridge := startBridge(b, opts)
	<-time.After(time.Second)
	for len(arrived) > 0 { // the events with which startBridge found out that it is connected
		<-arrived
	}
	bare := benchOutbox(b).Engine.(*Engine)
	ticks := time.NewTicker(gap)
	defer ticks.Stop()
	var ours, theirs []time.Duration
	b.ResetTimer()
	for i := range b.N {
		<-ticks.C
		began := time.Now()
		bridge.emit(1_000_000 + i)
		ours = append(ours, (<-arrived).Sub(began))
		<-time.After(gap / 2) // its outcome is recorded by now
		change := bareAppend(b, storetest.Event("call.incoming", fmt.Sprint(i)), uint64(i)+1)
		theirs = append(theirs, took(b, func() error { return bare.commit(change) }))
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	p50, p99, commit := ours[b.N/2], ours[b.N*99/100], theirs[b.N/2]
	b.ReportMetric(float64(commit.Microseconds()), "commit-µs")
	b.ReportMetric(p50.Seconds()/commit.Seconds(), "p50-commits")
	b.ReportMetric(p99.Seconds()/commit.Seconds(), "p99-commits")
}

// BenchmarkIdle takes the processor time of a bridge that is connected and has nothing to do, and
// of its simulated server, for five seconds at a time.
func BenchmarkIdle(b *testing.B) {
	const watched = 5 * time.Second
	e := storetest.Endpoint("crm")
	e.URL = startReceiver(b)
	startBridge(b, benchOptions(b, e))
	<-time.After(time.Second) // its start is over
	b.ResetTimer()
	var used time.Duration
	for range b.N {
		before := processorTime(b)
		<-time.After(watched)
		used += processorTime(b) - before
	}
	b.ReportMetric(used.Seconds()*1000/(float64(b.N)*watched.Minutes()), "CPU-ms/minute")
}

// processorTime is how much of it the process has used so far.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkBacklog starts with so many pending deliveries as its name says, takes the time from
// Open to the first that is recorded as delivered, and delivers b.N of them. Beside it b.N are
// delivered from an outbox that holds nothing else.
func BenchmarkBacklog(b *testing.B) {
	const pending = 1_000_000
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = startReceiver(b), 32
	e.RingingTTL = 24 * time.Hour
	b.Run(fmt.Sprintf("pending=%d", pending), func(b *testing.B) {
		if b.N > pending {
			b.Skip("there are only so many")
		}
		full, empty := benchOptions(b, e), benchOptions(b, e)
		fillOutbox(b, full, pending)
		fillOutbox(b, empty, b.N)
		debug.FreeOSMemory() // what filling has left
		b.ResetTimer()
		theirs, _ := drain(b, empty, b.N)
		ours, first := drain(b, full, b.N)
		b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
		b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-empty")
		b.ReportMetric(first.Seconds()*1000, "first-ms")
		b.ReportMetric(rssAnon(b), "RssAnon-MiB")
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
		delivered = deliveredBy(b, o)
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
	return inParallel(b, 1, many, func(int) error {
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
