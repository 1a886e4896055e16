package postgres

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
)

// TestPoolerTakesTransactions checks that events are stored and delivered through poolers that give
// each transaction another connection, whether they refuse parameters or drop them, and that the
// connections are left as they were; and that leases pass from one process to the other.
func TestPoolerTakesTransactions(t *testing.T) {
	t.Parallel()
	server := pgtest.Shared(t)
	names := slices.Collect(maps.Keys(parameters("")))
	addresses := map[string]string{
		"it refuses parameters": server.Pooler(t).Database(t),
		"it drops parameters":   server.Pooler(t, "ignore_startup_parameters = "+strings.Join(names, ",")).Database(t),
		"there are two":         server.Pooler(t).DatabaseWith(t, server.Pooler(t)),
	}
	for name, address := range addresses {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			schema := func(o *Options) { o.Schema = "outbox" } // which is not found without the parameters
			s, other := mustOpen(t, address, schema), mustOpen(t, address, schema)
			for range 5 {
				mustStore(t, s, "5", "6")
				l, jobs := mustClaim(t, other, 2)
				for _, j := range jobs {
					if err := l.Record(t.Context(), []store.Result{deliveredNow(j)}); err != nil {
						t.Fatal(err)
					}
				}
			}
			for range 3 { // one has what the other gives up
				lease, err := s.Take(t.Context(), "work")
				if err == nil {
					err = s.Release(t.Context(), lease)
				}
				if err != nil {
					t.Fatal(err)
				}
				s, other = other, s
			}
			checkTables(t, s)
			for range 10 {
				var path string
				row := s.pool.QueryRow(context.Background(), `SHOW search_path`)
				if err := row.Scan(&path); err != nil || path != `"$user", public` {
					t.Errorf("a connection has the search_path %s (%v)", path, err)
				}
			}
		})
	}
}
