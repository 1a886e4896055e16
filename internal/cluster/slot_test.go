package cluster

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"pzbridge/outbox/postgres"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
)

// TestASlotIsLeftOnlyToABridgeThatWaits checks when a bridge that cannot connect leaves its slot.
func TestASlotIsLeftOnlyToABridgeThatWaits(t *testing.T) {
	engine, err := postgres.Open(t.Context(), postgres.Options{
		URL: pgtest.Shared(t).Database(t), MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = engine.Close() }()
	s := NewSlot(SlotOptions{
		Engine:     engine,
		ClientGUID: func(context.Context, int, string) (string, error) { return "guid", nil },
		Listeners:  1,
		Name:       "first",
		Logger:     slog.New(slog.DiscardHandler),
	})
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
