package postgres

import (
	"testing"

	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
)

// TestNumbersGoOnBeyondARestore checks a backup that is put back as the guide says, while no bridge
// runs: a reader that has read further than the backup misses nothing of what comes after it.
func TestNumbersGoOnBeyondARestore(t *testing.T) {
	t.Parallel()
	url := pgtest.Shared(t).Database(t)
	a := mustOpen(t, url)
	mustStore(t, a, "1", "2", "3")
	dump := pgtest.Dump(t, url, "pzbridge")
	mustStore(t, a, "4", "5", "6")
	page, err := a.Events(t.Context(), store.EventQuery{Limit: 10})
	if err != nil || len(page.Events) != 6 {
		t.Fatalf("%d events are read: %v", len(page.Events), err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}

	pgtest.SQL(t, url, "DROP SCHEMA pzbridge CASCADE")
	pgtest.Restore(t, url, dump)
	b := mustOpen(t, url)
	mustStore(t, b, "7", "8", "9", "10")
	after, err := b.Events(t.Context(), store.EventQuery{After: page.Cursor, Limit: 10})
	if err == nil && len(after.Events) != 4 {
		t.Errorf("behind the cursor of before there are %d events, want 4", len(after.Events))
	}
	mustClaim(t, b, 7)
	last, err := b.LastNumber(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := mustOpen(t, url)
	if n, err := c.LastNumber(t.Context()); err != nil || n != last {
		t.Errorf("another start makes the last number %d of %d: %v", n, last, err)
	}
}
