package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// bridges opens outboxes on one database, as bridges beside each other do.
func bridges(t *testing.T, number int) (list []*storetest.Box) {
	t.Helper()
	h := newHarness(t)
	opts := storetest.Options{
		Place:     h.Place(t),
		Endpoints: []store.Endpoint{storetest.Endpoint("crm"), storetest.Endpoint("other")},
		Logger:    slog.New(slog.DiscardHandler),
	}
	for range number {
		list = append(list, storetest.OpenBox(t, h, opts))
	}
	return list
}

// atOnce calls f for each of the outboxes at the same time.
func atOnce(list []*storetest.Box, f func(b *storetest.Box)) {
	var parts sync.WaitGroup
	for _, b := range list {
		parts.Go(func() { f(b) })
	}
	parts.Wait()
}

// appendMixed stores events of calls with three events each, and among them some of no call.
func appendMixed(t *testing.T, b *storetest.Box, number int) {
	t.Helper()
	var events []telephony.Event
	for i := range number {
		call := fmt.Sprint(i / 4)
		if i%4 == 3 {
			call = ""
		}
		e := storetest.Event("pz.event", call)
		e.From, e.To = "+73430112233", "101"
		events = append(events, e)
	}
	storetest.MustAppend(t, b, events...)
}

// deliverAll brings all that waits for an endpoint, until nothing is left.
func deliverAll(t *testing.T, b *storetest.Box, endpoint string) {
	t.Helper()
	ctx := context.Background()
	lane, err := b.Engine.Lane(ctx, endpoint, false)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = lane.Close(ctx) }()
	for {
		c, err := lane.Claim(ctx, time.Now(), 16, nil)
		if err != nil || len(c.Jobs) == 0 {
			if err != nil {
				t.Error(err)
			}
			return
		}
		results := make([]store.Result, len(c.Jobs))
		for i, j := range c.Jobs {
			now := j.Delivery.Ended(store.Delivered, time.Now())
			now.Attempts++
			results[i] = store.Result{Job: j, Now: now, Attempt: &store.Attempt{At: time.Now()}}
		}
		if err := lane.Record(ctx, results); err != nil {
			t.Error(err)
			return
		}
	}
}

// TestBridgesRemoveTheSameEventsAtOnce checks that each event is removed and counted once, also
// while its deliveries are being made.
func TestBridgesRemoveTheSameEventsAtOnce(t *testing.T) {
	const many = 1600
	list := bridges(t, 3)
	appendMixed(t, list[0], many)
	var removed atomic.Int64
	atOnce(list, func(b *storetest.Box) {
		if b == list[2] {
			deliverAll(t, b, "crm")
			return
		}
		pruned, err := b.Engine.Prune(t.Context(), store.Retention{
			MaxAge:       -time.Hour,
			Abandoned:    map[string]bool{"crm": true, "other": true},
			AbandonedAge: -time.Hour,
		})
		if err != nil {
			t.Error(err)
		}
		removed.Add(int64(pruned.Events))
	})
	if n := removed.Load(); n != many {
		t.Errorf("%d events are removed, want %d", n, many)
	}
	if n := list[0].InUse(); n != 0 {
		t.Errorf("%d bytes are in use in the end", n)
	}
}

// TestBridgesForgetTheSameCallsAtOnce checks that each call is removed and counted once.
func TestBridgesForgetTheSameCallsAtOnce(t *testing.T) {
	const many = 1600
	list := bridges(t, 2)
	appendMixed(t, list[0], many)
	var calls, events atomic.Int64
	atOnce(list, func(b *storetest.Box) {
		f, err := b.Outbox.Forget(t.Context(), "+73430112233", false)
		if err != nil {
			t.Error(err)
		}
		calls.Add(int64(f.Calls))
		events.Add(int64(f.Events))
	})
	if calls.Load() != many/4 || events.Load() != many*3/4 {
		t.Errorf("%d calls with %d events are removed, want %d with %d", calls.Load(), events.Load(), many/4, many*3/4)
	}
	if n := storetest.States(t, list[0], "crm")[store.Pending]; n != many/4 {
		t.Errorf("%d deliveries of no call are left, want %d", n, many/4)
	}
}

// TestBridgesRedeliverTheSameEventsAtOnce checks that each delivery is made pending once.
func TestBridgesRedeliverTheSameEventsAtOnce(t *testing.T) {
	const many = 1600
	list := bridges(t, 2)
	appendMixed(t, list[0], many)
	deliverAll(t, list[0], "crm")
	var redelivered atomic.Int64
	atOnce(list, func(b *storetest.Box) {
		n, err := b.RedeliverAll(t.Context(), store.Redelivery{Endpoint: "crm"})
		if err != nil {
			t.Error(err)
		}
		redelivered.Add(int64(n))
	})
	if n := redelivered.Load(); n != many {
		t.Errorf("%d deliveries are made again, want %d", n, many)
	}
	if n := storetest.States(t, list[0], "crm")[store.Pending]; n != many {
		t.Errorf("%d deliveries are pending, want %d", n, many)
	}
}

func engineOf(b *storetest.Box) *Engine { return b.Engine.(*Engine) }
