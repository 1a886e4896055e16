package postgres

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// benchBox opens an outbox on a server that syncs its disk, as a real one does.
func benchBox(b *testing.B) (*storetest.Box, *Engine) {
	b.Helper()
	place := pgtest.New(b, "fsync=on", "full_page_writes=on", "shared_buffers=256MB").Database(b)
	o, err := storetest.Open(harness{}, storetest.WithDefaults(b, harness{}, storetest.Options{
		Place:    place,
		MaxBytes: 1 << 40,
		Logger:   slog.New(slog.DiscardHandler),
	}))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = o.Close() })
	return o, engineOf(o)
}

// BenchmarkAppend appends events one by one, so many at once, of which each begins a call that asks
// no route, and in turns with it stores as many rows of the same bytes together in bare statements:
// the head, the events and their deliveries.
func BenchmarkAppend(b *testing.B) {
	for _, waiting := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("waiting=%d", waiting), func(b *testing.B) {
			o, s := benchBox(b)
			bare := newBare(b, s)
			var ours, theirs time.Duration
			const turn = 2048
			for done := 0; done < b.N; done += turn {
				events := make([]telephony.Event, min(turn, b.N-done))
				for i := range events {
					events[i] = storetest.Event("call.outgoing", fmt.Sprint(done+i))
					events[i].From, events[i].To = "101", "73430112233"
				}
				b.StopTimer()
				began := time.Now()
				for first := 0; first < len(events); first += waiting {
					bare.store(events[first:min(first+waiting, len(events))])
				}
				theirs += time.Since(began)
				b.StartTimer()
				began = time.Now()
				appendAtOnce(b, o, events, waiting)
				ours += time.Since(began)
			}
			b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
			b.ReportMetric(float64(b.N)/theirs.Seconds(), "bare/s")
			b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-bare")
		})
	}
}

// appendAtOnce appends events, each by itself, so many at once.
func appendAtOnce(b *testing.B, o *storetest.Box, events []telephony.Event, waiting int) {
	b.Helper()
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
}

// bare stores rows of the same bytes as an append, with nothing looked up before. They are those of
// an endpoint and of calls of its own.
type bare struct {
	b    *testing.B
	conn *pgx.Conn
	last int64
}

func newBare(b *testing.B, s *Engine) *bare {
	b.Helper()
	const schema = `CREATE SCHEMA bare; SET search_path = bare`
	tables, err := schemaFiles.ReadFile("schema/001.sql")
	if err != nil {
		b.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(b.Context(), s.pool.Config().ConnConfig.Copy())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close(b.Context()) })
	for _, sql := range []string{schema, string(tables)} {
		if _, err := conn.Exec(b.Context(), sql); err != nil {
			b.Fatal(err)
		}
	}
	return &bare{b: b, conn: conn}
}

func (p *bare) store(events []telephony.Event) {
	key := func(number string) string { return number }
	tx := &txn{engine: &Engine{rules: store.Rules{NumberKey: key}}, incoming: &incoming{}}
	tx.hasHead, tx.appended = true, p.last
	var deliveries columns
	for i := range events {
		e, err := store.Encode(&events[i], time.Hour)
		if err != nil {
			p.b.Fatal(err)
		}
		e.ID = uuid.Must(uuid.NewV7())
		tx.appended++
		n := uint64(tx.appended)
		row := newRow{NewEvent: &e, n: n, sequence: 1, body: e.AppendBody(nil, 1, "")}
		tx.incoming.rows = append(tx.incoming.rows, row)
		deliveries.add(deliveryKey{n, 1}, &record{})
	}
	p.last = tx.appended
	batch := &pgx.Batch{}
	batch.Queue("begin")
	tx.flushAppend()
	c := &deliveries
	tx.write(insertPending, c.n, c.endpoint, c.due, c.attempts, c.step, c.failedAt, c.next, c.redelivered,
		c.request, c.expires, c.history, c.putOff)
	for _, q := range tx.writes.QueuedQueries {
		batch.Queue(q.SQL, q.Arguments...)
	}
	batch.Queue("commit")
	if err := p.conn.SendBatch(p.b.Context(), batch).Close(); err != nil {
		p.b.Fatal(err)
	}
}
