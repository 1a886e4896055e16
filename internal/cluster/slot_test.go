package cluster

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"pzbridge/outbox/postgres"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
)

func openEngine(t *testing.T, url string) *postgres.Engine {
	t.Helper()
	engine, err := postgres.Open(t.Context(), postgres.Options{
		URL: url, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	return engine
}

func newSlot(engine *postgres.Engine, listeners int) *Slot {
	return NewSlot(SlotOptions{
		Engine:     engine,
		ClientGUID: func(context.Context, int, string) (string, error) { return "guid", nil },
		Listeners:  listeners,
		Name:       "first",
		Logger:     slog.New(slog.DiscardHandler),
	})
}

// TestASlotIsLeftOnlyToABridgeThatWaits checks when a bridge that cannot connect leaves its slot.
func TestASlotIsLeftOnlyToABridgeThatWaits(t *testing.T) {
	engine := openEngine(t, pgtest.Shared(t).Database(t))
	s := newSlot(engine, 1)
	announce := func(name string, slot int) {
		t.Helper()
		b := store.Bridge{Name: name, Seen: time.Now(), Slot: slot}
		if err := engine.Announce(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	started := time.Now().Add(-time.Hour)
	leaves := func(why string, after time.Duration, want bool) {
		t.Helper()
		if _, ok := s.Take(t.Context()); !ok {
			t.Fatal("there is no slot")
		}
		since := started
		if s.takenAt = time.Now().Add(-after); why == "it was connected" {
			since = s.takenAt.Add(time.Nanosecond)
		}
		if left := s.Failed(t.Context(), since); left != want || left != (s.Number() == 0) {
			t.Errorf("%s, after %s: left %t, want %t; its slot is %d", why, after, left, want, s.Number())
		}
		s.notBefore = time.Time{} // nobody takes it
	}
	announce("first", 0) // itself, before it had the slot
	announce("other", 2)
	leaves("nobody waits", time.Hour, false)
	announce("other", 0)
	leaves("it has just begun", minPatience-time.Second, false)
	leaves("another one waits", minPatience, true)
	leaves("it comes back", 2*minPatience-time.Second, false)
	leaves("it comes back", 2*minPatience, true)
	leaves("it was connected", minPatience+time.Second, true)
	for range 10 {
		leaves("for long", maxPatience, true)
	}
}

// TestListenersChangeBridgeByBridge checks that a bridge that was told of another number of
// listeners than those that are connected waits until these are not.
func TestListenersChangeBridgeByBridge(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	a, b, c := openEngine(t, url), openEngine(t, url), openEngine(t, url)
	take := func(s *Slot, want int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if want == 0 {
			ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		}
		defer cancel()
		if _, ok := s.Take(ctx); ok != (want > 0) || s.Number() != want {
			t.Fatalf("its slot is %d, want %d", s.Number(), want)
		}
	}
	alone, second := newSlot(a, 1), newSlot(b, 2)
	take(alone, 1)
	take(second, 0)
	alone.Leave(t.Context())
	take(second, 1)
	first := newSlot(a, 2)
	take(first, 2)
	alone = newSlot(c, 1)
	take(alone, 0)
	second.Leave(t.Context())
	take(alone, 0)
	first.Leave(t.Context())
	take(alone, 1)
}

// TestNoConnectionWhileTheSlotMayBeAnothers checks that a bridge which does not reach the database
// is not to connect: another one may have its slot, and its connection would be taken from it.
func TestNoConnectionWhileTheSlotMayBeAnothers(t *testing.T) {
	if testing.Short() {
		t.Skip("a lease lasts for seconds")
	}
	database := pgtest.New(t)
	engine := openEngine(t, database.Database(t))
	s := newSlot(engine, 1)
	if _, ok := s.Take(t.Context()); !ok {
		t.Fatal("there is no slot")
	}
	held := engine.Held()
	database.Freeze(t)
	thaw := sync.OnceFunc(func() { database.Thaw(t) })
	defer thaw()
	<-held.Done()
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, ok := s.Take(short); ok {
		t.Error("it may connect while another one may have its slot")
	}
	thaw()
	if _, ok := s.Take(t.Context()); !ok {
		t.Error("it may not connect though nobody has taken its slot")
	}
}
