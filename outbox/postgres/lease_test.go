package postgres

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"pzbridge/outbox/postgres/pgtest"
)

// TestALateReleaseTakesNothing checks that a release whose connection was given up, and which comes
// to the database once the process has the lease again, takes nothing from it.
func TestALateReleaseTakesNothing(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	s := mustOpen(t, url, quick)
	lease, err := s.Take(t.Context(), lanePrefix+"crm")
	if err != nil {
		t.Fatal(err)
	}
	late, err := s.presence.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Release(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Take(t.Context(), lease.Name); err != nil {
		t.Fatal(err)
	}
	if err := late.release(t.Context(), s.keeper, []string{lease.Name}, uuid.Nil); err != nil {
		t.Fatal(err)
	}
	if row, isKnown := late.leases[lease.Name]; isKnown {
		t.Errorf("what was released before counts as %+v", row)
	}
	if got := pgtest.SQL(t, url, `SELECT owner FROM pzbridge.lease`); got != s.id.String() {
		t.Errorf("the lease is owned by %q, want %s", got, s.id)
	}
}

// TestALeaseGoneFromTheDatabaseEndsTheProcess checks that a process whose lease the database gives
// to nobody any more, as after a fail-over that lost the last commits, does not work on.
func TestALeaseGoneFromTheDatabaseEndsTheProcess(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	s := mustOpen(t, url, quick)
	if _, err := s.Take(t.Context(), leasePrune); err != nil {
		t.Fatal(err)
	}
	held := s.Held()
	pgtest.SQL(t, url, `UPDATE pzbridge.lease SET owner = NULL, epoch = epoch - 1`)
	select {
	case <-s.presence.lost:
	case <-time.After(10 * time.Second):
		t.Fatal("it works on")
	}
	if held.Err() == nil {
		t.Error("the work is not suspended")
	}
}

// TestALeaseThatIsBeingGivenUpIsNotGranted checks that a wish waits until a lease that came too
// late was given up for certain: the statement that does it may come late.
func TestALeaseThatIsBeingGivenUpIsNotGranted(t *testing.T) {
	me := uuid.New()
	v := &view{me: me, processes: map[uuid.UUID]*sighting{me: {}}, leases: map[string]leaseRow{leasePrune: {&me, 7}}}
	l := &leases{held: map[string]*Lease{}, stray: map[string]bool{}}
	l.grant(v)
	if !l.stray[leasePrune] {
		t.Fatal("a lease that nobody wishes is kept")
	}
	w := &wish{names: []string{leasePrune}, granted: make(chan *Lease, 1)}
	l.wishes = []*wish{w}
	if l.grant(v); len(w.granted) > 0 {
		t.Error("it is granted while it is given up")
	}
	clear(l.stray) // it was, and it was taken again
	if l.grant(v); len(w.granted) == 0 {
		t.Error("it is not granted afterwards")
	}
}
