package outbox

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/relay"
)

// receive is the receiver of BenchmarkBridge, in a process of its own: it takes everything and says its address.
func receive() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
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

// BenchmarkBridge takes events from a simulated server's socket through the outbox to a receiver in another process, 32 at once, until each is
// recorded. Beside it the same bodies go straight to that receiver, with the same client, nothing stored; and some of them the naive way: one
// transaction, one POST, one transaction.
func BenchmarkBridge(b *testing.B) {
	const concurrency, turn = 32, 4096
	e := endpoint("crm")
	e.URL, e.Concurrency = startReceiver(b), concurrency
	nowhere, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer nowhere.Close()
	logger := slog.New(slog.NewJSONHandler(nowhere, nil)) // lines are made and written, as they are by default
	opts := Options{
		Path: filepath.Join(b.TempDir(), "outbox.db"), Endpoints: []Endpoint{e}, RetrySchedule: []time.Duration{time.Second}, Retention: time.Hour,
		RoutingTimeout: time.Hour, MaxBytes: 1 << 40, Grace: time.Second, Logger: logger,
	}
	o, err := Open(opts)
	if err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	address, err := url.Parse(server.URL)
	if err != nil {
		b.Fatal(err)
	}
	session, err := relay.New(relay.Options{
		URL: address, Identity: pz.Identity{GUID: "g", EventsMask: 65535, Protocol: 2}, Grace: time.Second, Sink: o, Logger: logger,
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = session.Run(ctx) })
	running.Go(func() { _ = o.Run(ctx) })
	defer running.Wait()
	defer stop()
	delivered := func() uint64 {
		list, err := o.Endpoints()
		if err != nil {
			b.Fatal(err)
		}
		return list[0].Delivered
	}
	emit := func(call int) {
		fields := pz.Attrs{{Name: "Event", Value: "2"}, {Name: "CallID", Value: fmt.Sprint(call)}, {Name: "From", Value: "73430112233"}, {Name: "To", Value: "101"}}
		if err := server.Generate(fields); err != nil {
			b.Fatal(err)
		}
	}
	for n := 0; delivered() == 0; n++ { // until it is connected
		emit(n)
		<-time.After(10 * time.Millisecond)
	}
	d, _, err := o.Deliveries(DeliveryQuery{Limit: 1})
	if err != nil {
		b.Fatal(err)
	}
	var body []byte
	err = o.store.view(func(tx *txn) error {
		n, _ := tx.numberOf(d[0].EventID)
		e, err := decodeEvent(tx.events.Get(number(n)))
		body = e.body
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	direct := newSender(e, opts)
	b.ReportAllocs()
	var ours, theirs time.Duration
	for done := 0; done < b.N; done += turn {
		n := min(turn, b.N-done)
		from := delivered()
		began := time.Now()
		for i := range n {
			emit(1_000_000 + done + i)
		}
		for delivered() < from+uint64(n) {
			<-time.After(time.Millisecond)
		}
		ours += time.Since(began)
		b.StopTimer()
		theirs += inParallel(b, concurrency, n, func(int) error {
			got, err := direct.attempt(b.Context(), job{eventID: d[0].EventID, stored: stored{body: body}})
			if got.err != nil || err != nil {
				return fmt.Errorf("%w, %w", got.err, err)
			}
			return nil
		})
		b.StartTimer()
	}
	b.StopTimer()
	naive := naiveLoop(b, direct, d[0].EventID, body)
	b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
	b.ReportMetric(float64(b.N)/theirs.Seconds(), "direct/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-direct")
	b.ReportMetric(naive.Seconds()*float64(b.N)/ours.Seconds(), "times-naive")
}

// naiveLoop is how long one event takes that is stored, sent and recorded one after the other.
func naiveLoop(b *testing.B, s *sender, id string, body []byte) time.Duration {
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
		if _, err := s.attempt(b.Context(), job{eventID: id, stored: stored{body: body}}); err != nil {
			return err
		}
		return db.Update(put(key, []byte("delivered")))
	}) / many
}
