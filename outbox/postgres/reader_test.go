package postgres

import (
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// TestTheLatestReadCountsWhicheverBridgeItCameTo checks that an endpoint which reads from two
// bridges has read as far as its latest read has gone, for both, and that one which is recorded
// late changes nothing.
func TestTheLatestReadCountsWhicheverBridgeItCameTo(t *testing.T) {
	h := newHarness(t)
	synctest.Test(t, func(t *testing.T) {
		poller := storetest.Endpoint("poller")
		poller.URL, poller.Secrets = "", nil
		opts := storetest.Options{Place: h.Place(t), Endpoints: []store.Endpoint{poller}}
		one, other := storetest.OpenBox(t, h, opts), storetest.OpenBox(t, h, opts)
		defer storetest.RunBox(t, one)()
		defer storetest.RunBox(t, other)()
		began := time.Now()
		for range 6 {
			storetest.MustAppend(t, one, storetest.Event("call.completed", "5"))
			time.Sleep(time.Minute)
		}
		read := func(b *storetest.Box, limit int) {
			t.Helper()
			if _, err := b.Events(store.EventQuery{Endpoint: "poller", Limit: limit}); err != nil {
				t.Fatal(err)
			}
		}
		check := func(when string, count int) {
			t.Helper()
			want := storetest.ReadState{
				Unread:       uint64(6 - count),
				Read:         uint64(count),
				LastRead:     time.Now(),
				OldestUnread: began.Add(time.Duration(count) * time.Minute),
			}
			time.Sleep(2 * store.ReadsWait)
			storetest.CheckReadState(t, one, when, want)
			storetest.CheckReadState(t, other, when+", at the other", want)
		}
		read(one, 2)
		early := map[string]store.Reading{"poller": {UpTo: 2, At: time.Now()}}
		check("after a read", 2)
		read(other, 4)
		check("after one at the other", 4)
		if err := one.Engine.(*Engine).writeReads(t.Context(), early); err != nil {
			t.Fatal(err)
		}
		lastRead := time.Now().Add(-2 * store.ReadsWait)
		for _, b := range []*storetest.Box{one, other} {
			storetest.CheckReadState(t, b, "after a late record", storetest.ReadState{
				Unread:       2,
				Read:         4,
				LastRead:     lastRead,
				OldestUnread: began.Add(4 * time.Minute),
			})
		}
		read(one, 3)
		check("after one that goes back", 3)
	})
}
