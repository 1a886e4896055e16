package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// statements collects the statements that engines send, each with the arguments of one time.
type statements struct {
	mu   sync.Mutex
	args map[string][]any
}

func (s *statements) add(sql string, args []any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.args[sql]; !known {
		s.args[sql] = args
	}
}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	s.add(d.SQL, d.Args)
	return ctx
}

func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (*statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (s *statements) TraceBatchQuery(_ context.Context, _ *pgx.Conn, d pgx.TraceBatchQueryData) {
	s.add(d.SQL, d.Args)
}

func (*statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// tracing is a harness whose engines tell their statements.
type tracing struct {
	harness
	seen *statements
}

func (h tracing) Open(o storetest.EngineOptions) (store.Engine, error) {
	options := h.options(o)
	options.tracer = h.seen
	return openStore(options)
}

// small are the tables of which a scan costs nothing.
var small = []string{
	"head", "setting", "endpoint", "lease", "process", "subscription", "bridge", "tally", "redelivery", "audit", "note",
}

// fill makes a database of so many events with a delivery each, a tenth of them pending.
const fill = `
	INSERT INTO endpoint (name) VALUES ('crm') ON CONFLICT DO NOTHING;
	INSERT INTO event SELECT n, gen_random_uuid(), n, 'call.incoming', 'c' || n / 3, n, gen_random_uuid(),
		'k' || n %% 999, 't' || n %% 7, 100, 0, '' FROM generate_series(1, %[1]d) n;
	INSERT INTO pending SELECT n, 1, 0, 0, 0, 0, 0, 0, 0, n, false, NULL FROM generate_series(1, %[1]d, 10) n;
	INSERT INTO ended SELECT 1, n, 1, n, 1, 0, 0, 0, 0, 0, 0, NULL FROM generate_series(2, %[1]d, 10) n;
	INSERT INTO route SELECT 'c' || n, '', 0 FROM generate_series(1, %[1]d, 10) n;
	INSERT INTO kept SELECT 'c' || n, 1, 1, '' FROM generate_series(1, %[1]d, 10) n;
	INSERT INTO claim SELECT decode(md5(n::text), 'hex'), 'b', gen_random_uuid(), '', 0, '', n, 1
		FROM generate_series(1, %[1]d, 10) n;
	UPDATE head SET last = %[1]d; ANALYZE`

// check checks that every statement that was sent uses an index of each table that may be large,
// also if it is planned while the table is empty, as PostgreSQL may keep such a plan.
func (s *statements) check(t *testing.T) {
	if len(s.args) < 50 {
		t.Fatalf("only %d statements were sent", len(s.args))
	}
	for _, events := range []int{0, 20_000} {
		t.Run(fmt.Sprintf("%d events", events), func(t *testing.T) {
			place := pgtest.Shared(t).Database(t)
			b, err := storetest.Open(harness{}, storetest.WithDefaults(t, harness{}, storetest.Options{Place: place}))
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			pool := engineOf(b).pool
			if _, err := pool.Exec(t.Context(), fmt.Sprintf(fill, events)); err != nil {
				t.Fatal(err)
			}
			for sql, args := range s.args {
				if slices.Contains(contradictions, sql) {
					continue // it may read all
				}
				if plan := explain(t, pool, sql, args); isScan(plan) {
					t.Errorf("%s\nis planned so:\n%s", sql, plan)
				}
			}
		})
	}
}

func explain(t *testing.T, db interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, sql string, args []any,
) string {
	t.Helper()
	word, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(sql)), " ")
	if !slices.Contains([]string{"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}, word) || strings.Contains(sql, ";") {
		return ""
	}
	rows, err := db.Query(t.Context(), "EXPLAIN "+sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Errorf("%s\ncannot be explained: %v", sql, err)
	}
	return strings.Join(lines, "\n")
}

// isScan reports whether a plan reads the whole of a table that may be large.
func isScan(plan string) bool {
	for line := range strings.Lines(plan) {
		_, table, found := strings.Cut(line, "Seq Scan on ")
		name, _, _ := strings.Cut(table, " ")
		if found && !slices.Contains(small, strings.TrimSpace(name)) && !strings.HasPrefix(name, "pg_") {
			return true
		}
	}
	return false
}
