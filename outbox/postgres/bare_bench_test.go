package postgres

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest/bench"
)

// bareRows are the rows of events, as an engine makes them, behind the last number. Calls has how
// many events each call has had.
func bareRows(events []telephony.Event, last int64, calls map[string]uint64) ([]newRow, error) {
	rows := make([]newRow, len(events))
	for i := range events {
		e, err := store.Encode(&events[i], time.Hour)
		if err != nil {
			return nil, err
		}
		calls[e.Call]++
		n, sequence := uint64(last+int64(i)+1), calls[e.Call]
		rows[i] = newRow{NewEvent: &e, n: n, sequence: sequence, body: e.AppendBody(nil, sequence, "")}
	}
	return rows, nil
}

// bareEngine is one of which only the arguments of statements are asked. Numbers are their own
// keys.
var bareEngine = &Engine{rules: store.Rules{NumberKey: func(number string) string { return number }}}

// bareSchema is a schema with the same tables as an engine's, beside it.
const bareSchema = "bare"

// connectBare connects to an engine's database, and makes that schema. It ends with the benchmark.
func connectBare(b *testing.B, s *Engine) *pgx.Conn {
	b.Helper()
	conn := connectTo(b, s, bareSchema)
	tables, err := schemaFiles.ReadFile("schema/001.sql")
	if err != nil {
		b.Fatal(err)
	}
	for _, sql := range []string{"CREATE SCHEMA " + bareSchema, string(tables)} {
		if _, err := conn.Exec(b.Context(), sql); err != nil {
			b.Fatal(err)
		}
	}
	return conn
}

// connectTo connects to an engine's database, to a schema in it. It ends with the benchmark.
func connectTo(b *testing.B, s *Engine, schema string) *pgx.Conn {
	b.Helper()
	c := s.pool.Config().ConnConfig.Copy()
	c.RuntimeParams["search_path"] = schema
	conn, err := pgx.ConnectConfig(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// bareWay keeps the events of a bare way in the tables of an engine, with one statement for each
// batch of events, and one for each batch of outcomes.
type bareWay struct {
	appends, records *pgx.Conn
	last             int64 // number of the last event that was stored
	calls            map[string]uint64
}

// startBare starts a bare way that is connected, in the database of a bridge. It ends with the
// benchmark.
func startBare(b *testing.B, s *Engine, e store.Endpoint) *bench.Bare {
	b.Helper()
	p := &bareWay{appends: connectBare(b, s), records: connectTo(b, s, bareSchema), calls: map[string]uint64{}}
	return bench.StartBare(b, p, e, s.logger)
}

const (
	bareAppend = `WITH stored AS (` + insertEvents + ` RETURNING n)
		INSERT INTO pending (n, endpoint, due, attempts, step, failed_at, next, redelivered, request, expires, put_off)
		SELECT n, 1, 0, 0, 0, 0, 0, 0, 0, 0, false FROM stored`
	bareRecord = `WITH made AS (DELETE FROM pending USING unnest($1::bigint[]) AS k(n)
			WHERE pending.n = k.n AND endpoint = 1 RETURNING pending.n)
		INSERT INTO ended (n, endpoint, state, due, attempts, step, failed_at, next, redelivered, request, expires)
		SELECT n, 1, 1, $2, 1, 0, 0, 0, 0, 0, 0 FROM made`
)

// Append stores events.
func (p *bareWay) Append(events []telephony.Event) (jobs []store.Job, err error) {
	rows, err := bareRows(events, p.last, p.calls)
	if err != nil {
		return nil, err
	}
	if _, err := p.appends.Exec(context.Background(), bareAppend, bareEngine.eventValues(rows)...); err != nil {
		return nil, err
	}
	p.last += int64(len(rows))
	for _, r := range rows {
		e := r.Event
		e.Sequence, e.Body = r.sequence, r.body
		jobs = append(jobs, store.Job{Number: r.n, Event: e, EventID: e.ID.String()})
	}
	return jobs, nil
}

// Record stores that events were sent.
func (p *bareWay) Record(numbers []uint64) error {
	keys := make([]int64, len(numbers))
	for i, n := range numbers {
		keys[i] = int64(n)
	}
	_, err := p.records.Exec(context.Background(), bareRecord, keys, time.Now().UnixNano())
	return err
}

// servedBy returns what says how much processor time the connections to the database have used so
// far that are open now.
func servedBy(b *testing.B, s *Engine) func() time.Duration {
	b.Helper()
	rows, err := s.pool.Query(b.Context(), `SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'`)
	if err != nil {
		b.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		b.Fatal(err)
	}
	return func() (used time.Duration) {
		for _, pid := range pids {
			// Nanoseconds on a processor, and others.
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/schedstat")
			if err != nil {
				b.Skip("only Linux says how much of the processor a process has used: ", err)
			}
			first, _, _ := strings.Cut(string(stat), " ")
			nano, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			used += time.Duration(nano)
		}
		return used
	}
}
