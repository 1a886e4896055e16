package postgres

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store/storetest"
)

// benchServer starts a server that syncs what it writes, as a real one does. In memory, where
// pgtest makes its folder, that takes no time; with PGTEST_FOLDER it is on a disk.
func benchServer(b *testing.B) *pgtest.Server {
	b.Helper()
	return pgtest.New(b, "fsync=on", "full_page_writes=on", "shared_buffers=256MB")
}

// benchBox opens an outbox on a server.
func benchBox(b *testing.B, server *pgtest.Server) (*storetest.Box, *Engine) {
	b.Helper()
	o, err := storetest.Open(harness{}, storetest.WithDefaults(b, harness{}, storetest.Options{
		Place:    server.Database(b),
		MaxBytes: 1 << 40,
		Logger:   slog.New(slog.DiscardHandler),
	}))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = o.Close() })
	return o, engineOf(o)
}

// BenchmarkAppend appends events one by one, so many at once, and in turns with it stores as many
// rows of the same bytes together in bare statements: the head, the events and their deliveries.
// Each event begins a call that asks no route; or they are mixed: five of each call, of which the
// first asks.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct {
		name    string
		waiting int
		events  func(first, n int) []telephony.Event
	}{
		{"waiting=1", 1, newCalls},
		{"waiting=64", 64, newCalls},
		{"waiting=256", 256, newCalls},
		{"mixed/waiting=64", 64, mixedCalls},
		{"mixed/waiting=256", 256, mixedCalls},
	} {
		waiting := c.waiting
		b.Run(c.name, func(b *testing.B) {
			o, s := benchBox(b, benchServer(b))
			bare := newBare(b, s)
			var ours, theirs time.Duration
			b.ResetTimer()
			for done := 0; done < b.N; done += turn {
				events := c.events(done, min(turn, b.N-done))
				b.StopTimer()
				began := time.Now()
				for first := 0; first < len(events); first += waiting {
					bare.store(events[first:min(first+waiting, len(events))])
				}
				theirs += time.Since(began)
				b.StartTimer()
				ours += appendAtOnce(b, o, events, waiting)
			}
			b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
			b.ReportMetric(float64(b.N)/theirs.Seconds(), "bare/s")
			b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-bare")
		})
	}
}

// turn is how many events are appended before the other side has its turn.
const turn = 2048

// newCalls are n events, of which each begins a call that asks no route.
func newCalls(first, n int) []telephony.Event {
	events := make([]telephony.Event, n)
	for i := range events {
		events[i] = storetest.Event("call.outgoing", fmt.Sprint(first+i))
		events[i].From, events[i].To = "101", "73430112233"
	}
	return events
}

// mixedCalls are n events of calls that come to the office, of which each asks where it goes, rings
// at two and is answered.
func mixedCalls(first, n int) []telephony.Event {
	kinds := []telephony.EventType{
		"call.transfer_requested", "call.incoming", "call.incoming", "call.incoming_answered", "call.completed",
	}
	events := make([]telephony.Event, n)
	for i := range events {
		at := first + i
		// A hundred calls go on at a time.
		block, within := at/(100*len(kinds)), at%(100*len(kinds))
		events[i] = storetest.Event(kinds[within/100], fmt.Sprint(block, "-", within%100))
		events[i].From, events[i].To = "73430112233", "101"
	}
	return events
}

// BenchmarkStandby appends events as BenchmarkAppend, 64 at once, to a server with a synchronous
// standby, and in turns with it to one without.
func BenchmarkStandby(b *testing.B) {
	const waiting = 64
	safe := benchServer(b)
	safe.Standby(b, "standby")
	o, _ := benchBox(b, safe)
	alone, _ := benchBox(b, benchServer(b))
	var ours, theirs time.Duration
	b.ResetTimer()
	for done := 0; done < b.N; done += turn {
		events := newCalls(done, min(turn, b.N-done))
		ours += appendAtOnce(b, o, events, waiting)
		b.StopTimer()
		theirs += appendAtOnce(b, alone, events, waiting)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
	b.ReportMetric(float64(b.N)/theirs.Seconds(), "alone/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-alone")
}

// appendAtOnce appends events, each by itself, so many at once.
func appendAtOnce(b *testing.B, o *storetest.Box, events []telephony.Event, waiting int) time.Duration {
	b.Helper()
	began := time.Now()
	next := make(chan int)
	var appending sync.WaitGroup
	for range waiting {
		appending.Go(func() {
			for i := range next {
				if err := o.Append(b.Context(), events[i:i+1]); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range events {
		next <- i
	}
	close(next)
	appending.Wait()
	return time.Since(began)
}

// bare stores rows of the same bytes as an append, with nothing looked up before. They are those of
// an endpoint and of calls of its own.
type bare struct {
	b     *testing.B
	conn  *pgx.Conn
	last  int64
	calls map[string]uint64
}

func newBare(b *testing.B, s *Engine) *bare {
	b.Helper()
	return &bare{b: b, conn: connectBare(b, s), calls: map[string]uint64{}}
}

func (p *bare) store(events []telephony.Event) {
	rows, err := bareRows(events, p.last, p.calls)
	if err != nil {
		p.b.Fatal(err)
	}
	p.last += int64(len(rows))
	tx := &txn{engine: bareEngine, incoming: &incoming{rows: rows}, hasHead: true, appended: p.last}
	var deliveries columns
	for _, r := range rows {
		deliveries.add(deliveryKey{r.n, 1}, &record{})
	}
	batch := &pgx.Batch{}
	batch.Queue("begin")
	tx.flushAppend()
	tx.writeColumns(insertPending, &deliveries, deliveries.putOff)
	for _, q := range tx.writes.QueuedQueries {
		batch.Queue(q.SQL, q.Arguments...)
	}
	batch.Queue("commit")
	if err := p.conn.SendBatch(p.b.Context(), batch).Close(); err != nil {
		p.b.Fatal(err)
	}
}
