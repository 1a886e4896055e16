package bolt

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// engineOf gives the engine that an outbox stands on.
func engineOf(b *storetest.Box) *Engine { return b.Engine.(*Engine) }

// laneOf gives a lane of its own to an endpoint's queue, in which nothing is claimed.
func laneOf(t testing.TB, s *Engine, endpoint string) *lane {
	t.Helper()
	l, err := s.Lane(t.Context(), endpoint, false)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*lane)
}

// dueNow gives what may be tried now at the endpoint "crm", and claims nothing.
func dueNow(t testing.TB, s *Engine, limit int) dueBatch {
	t.Helper()
	var f dueBatch
	l := laneOf(t, s, "crm")
	if err := s.view(func(tx *txn) error {
		f = l.dueAt(tx, time.Now(), limit, nil)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return f
}

// mustCommit changes the file past all rules.
func mustCommit(t testing.TB, s *Engine, apply func(tx *txn) error) {
	t.Helper()
	if err := s.commit(apply); err != nil {
		t.Fatal(err)
	}
}

// damageDelivery overwrites the record of a delivery to "crm".
func damageDelivery(t testing.TB, s *Engine, n uint64) {
	t.Helper()
	mustCommit(t, s, func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(n), []byte("x")) })
}

// callIn gives the call and the sequence of an event in the standard format.
func callIn(t testing.TB, body []byte) (call string, sequence int) {
	t.Helper()
	var e struct {
		Data struct {
			CallID   string `json:"call_id"`
			Sequence int
		}
	}
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatal(err)
	}
	return e.Data.CallID, e.Data.Sequence
}

// deliveriesOf gives the deliveries that a query matches, page by page.
func deliveriesOf(t testing.TB, b *storetest.Box, q store.DeliveryQuery) (all []store.DeliveryView) {
	t.Helper()
	for {
		page, cursor, err := b.Deliveries(q)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		if cursor == "" {
			return all
		}
		q.Cursor = cursor
	}
}

// mustOpen opens an outbox that the test closes itself. Without a logger it logs nothing.
func mustOpen(t *testing.T, opts storetest.Options) *storetest.Box {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := storetest.Open(harness{}, storetest.WithDefaults(t, harness{}, opts))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// openToDamage opens an outbox whose file is going to be damaged: it is closed when the test ends,
// and not checked.
func openToDamage(t *testing.T, opts storetest.Options) *storetest.Box {
	t.Helper()
	b := mustOpen(t, opts)
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// quietly gives options with all that a test leaves out, and without a log.
func quietly(t *testing.T, opts storetest.Options) storetest.Options {
	t.Helper()
	opts.Logger = slog.New(slog.DiscardHandler)
	return storetest.WithDefaults(t, harness{}, opts)
}

// silence is a router to which no question matters.
type silence struct{}

func (silence) Settle(context.Context, string, string, bool, []telephony.Reply) {}
func (silence) Answer(context.Context, string, string, string, string) error    { return nil }
func (silence) NoAnswer(context.Context, string, string, string, error)         {}

// completed gives an event that a call is over, of each of these calls.
func completed(calls ...string) (events []telephony.Event) {
	for _, call := range calls {
		events = append(events, storetest.Event(telephony.EventCompleted, call))
	}
	return events
}

// eventsOf gives events of one call.
func eventsOf(call string, types ...telephony.EventType) (events []telephony.Event) {
	for _, kind := range types {
		events = append(events, storetest.Event(kind, call))
	}
	return events
}
