package postgres

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/store/storetest/bench"
)

// BenchmarkBacklog is about a million pending deliveries, of which 100,000 are of one call and come
// first, while another connection has an old snapshot open: since then as many deliveries have been
// made as the name says, of which the tables must keep what the snapshot sees. It takes the time
// from the start of a bridge, which takes the queue, to the first POST, and the time of a claim, in
// turns with a claim of as many deliveries in a database that holds nothing else.
func BenchmarkBacklog(b *testing.B) {
	for _, made := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("made=%d", made), func(b *testing.B) {
			const claims = 20 // in a turn
			arrived := make(chan struct{}, 1)
			receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				select {
				case arrived <- struct{}{}:
				default: // one that is not the first
				}
			}))
			defer receiver.Close()
			h, e := newLive(b), storetest.Endpoint("crm")
			e.URL, e.Concurrency = receiver.URL, bench.Concurrency
			full, small := bench.Options(b, h, e), bench.Options(b, h, e)
			fillOutbox(b, h, full, backlog{made: made, long: 100_000, pending: 1_000_000})
			fillOutbox(b, h, small, backlog{pending: 5 * claimed}) // one of a call can be claimed
			b.ResetTimer()
			var first, ours, theirs time.Duration
			for range b.N {
				first += untilFirst(b, h, full, arrived)
				b.StopTimer()
				one, closeOne := openLane(b, h, full)
				other, closeOther := openLane(b, h, small)
				for range claims {
					ours += claim(b, one)
					theirs += claim(b, other)
				}
				closeOne()
				closeOther()
				b.StartTimer()
			}
			b.ReportMetric(first.Seconds()*1000/float64(b.N), "first-ms")
			b.ReportMetric(ours.Seconds()*1000/float64(b.N*claims), "claim-ms")
			b.ReportMetric(ours.Seconds()/theirs.Seconds(), "claim-of-empty")
		})
	}
}

// claimed is how many deliveries a claim takes: four for each attempt that is under way at a time,
// as the outbox does.
const claimed = 4 * bench.Concurrency

// untilFirst is how long a bridge takes from its start until the first delivery arrives.
func untilFirst(b *testing.B, h storetest.Harness, opts storetest.Options, arrived chan struct{}) time.Duration {
	b.Helper()
	o, err := storetest.Open(h, opts)
	if err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	began := time.Now()
	stop := storetest.RunBox(b, o)
	<-arrived
	took := time.Since(began)
	stop()
	select {
	case <-arrived: // another one, meanwhile
	default:
	}
	return took
}

// openLane opens an outbox and takes the queue of its endpoint.
func openLane(b *testing.B, h storetest.Harness, opts storetest.Options) (l store.Lane, closeBox func()) {
	b.Helper()
	o, err := storetest.Open(h, opts)
	if err != nil {
		b.Fatal(err)
	}
	if l, err = o.Engine.Lane(b.Context(), opts.Endpoints[0].Name, false); err != nil {
		b.Fatal(err)
	}
	return l, func() { _ = o.Close() }
}

// claim claims deliveries, gives them back, and returns how long the claim took.
func claim(b *testing.B, l store.Lane) (took time.Duration) {
	b.Helper()
	began := time.Now()
	c, err := l.Claim(b.Context(), began, claimed, nil)
	took = time.Since(began)
	if err != nil || len(c.Jobs) != claimed {
		b.Fatalf("%d deliveries were claimed: %v", len(c.Jobs), err)
	}
	for i := range c.Jobs {
		l.Release([]uint64{c.Jobs[i].Number})
	}
	return took
}

// backlog says what an endpoint's deliveries are: so many that have been made since an old snapshot
// was taken, so many pending ones of one call behind them, and others, five of a call each.
type backlog struct{ made, long, pending int }

// The statements that fill the tables. Of a call only the first delivery is due, and the others are
// held by it.
const (
	backlogEvents = `INSERT INTO event (n, id, at, type, call, sequence, print, from_key, to_key, size, body)
		SELECT n, gen_random_uuid(), $4, 'call.incoming', call, row_number() OVER (PARTITION BY call ORDER BY n),
			gen_random_uuid(), 'f' || n % 999, 't' || n % 99, 1000, $5
		FROM (SELECT n, CASE WHEN n <= $1 THEN 'made' || n WHEN n <= $2 THEN 'long' ELSE 'call' || n / 5 END AS call
			FROM generate_series(1, $3::bigint) n) e ORDER BY n`
	backlogDeliveries = `INSERT INTO pending
			(n, endpoint, due, attempts, step, failed_at, next, redelivered, request, expires, put_off)
		SELECT n, 1, CASE WHEN lag(n) OVER w IS NULL THEN 0 ELSE -1 END, 0, 0, 0, lead(n, 1, 0) OVER w, 0, 0, $1, false
		FROM event WINDOW w AS (PARTITION BY call ORDER BY n) ORDER BY n`
	backlogMade = `WITH made AS (DELETE FROM pending WHERE n <= $1 RETURNING n)
		INSERT INTO ended (n, endpoint, state, due, attempts, step, failed_at, next, redelivered, request, expires)
		SELECT n, 1, 1, $2, 1, 0, 0, 0, 0, 0, 0 FROM made`
	backlogCounts = `INSERT INTO tally SELECT 1, 0, count(*) FROM pending UNION ALL SELECT 1, 1, count(*) FROM ended`
	backlogHead   = `UPDATE head SET last = e.last, used = e.used
		FROM (SELECT max(n) AS last, sum(size) AS used FROM event) e`
)

// fillOutbox stores a backlog. The old snapshot stays open until the benchmark ends.
func fillOutbox(b *testing.B, h storetest.Harness, opts storetest.Options, l backlog) {
	b.Helper()
	o, err := storetest.Open(h, opts)
	if err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	s := engineOf(o)
	body, err := bareRows([]telephony.Event{storetest.Event("call.incoming", "73430112233")}, 0, map[string]uint64{})
	if err != nil {
		b.Fatal(err)
	}
	old, filling := connectTo(b, s, s.schema), connectTo(b, s, s.schema)
	exec := func(conn *pgx.Conn, sql string, args ...any) {
		b.Helper()
		if _, err := conn.Exec(b.Context(), sql, args...); err != nil {
			b.Fatal(err, sql)
		}
	}
	for _, option := range []string{"hashjoin", "mergejoin", "seqscan", "bitmapscan"} {
		exec(filling, "SET enable_"+option+" = on")
	}
	now, inOneCall := time.Now(), l.made+l.long
	exec(filling, backlogEvents, l.made, inOneCall, l.made+l.pending, now.UnixMilli(), body[0].body)
	exec(filling, backlogDeliveries, now.Add(time.Hour).UnixNano())
	exec(filling, "VACUUM ANALYZE")
	exec(old, "BEGIN ISOLATION LEVEL REPEATABLE READ")
	exec(old, "SELECT FROM head")
	exec(filling, backlogMade, l.made, now.UnixNano())
	exec(filling, backlogCounts)
	exec(filling, backlogHead)
	exec(filling, "ANALYZE")
	checkTables(b, s)
}
