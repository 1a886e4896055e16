package bolt

import (
	"errors"
	"fmt"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// reader is an endpoint that reads its events.
func reader(name string) store.Endpoint {
	e := storetest.Endpoint(name)
	e.URL, e.Secrets = "", nil
	return e
}

// TestReadsSurviveACrash checks that what is written down soon is all that a crash leaves: how far
// an endpoint has read is in the file soon after it has.
func TestReadsSurviveACrash(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		b := storetest.OpenBox(t, harness{}, storetest.Options{
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{reader("poller")},
		})
		s := b.Engine.(*Engine)
		defer storetest.RunBox(t, b)()
		began := time.Now()
		for range 6 {
			storetest.MustAppend(t, b, storetest.Event("call.completed", "5"))
			time.Sleep(time.Minute)
		}
		if _, err := b.Events(store.EventQuery{Endpoint: "poller", Limit: 2}); err != nil {
			t.Fatal(err)
		}
		want := storetest.ReadState{
			Unread:       4,
			Read:         2,
			LastRead:     time.Now(),
			OldestUnread: began.Add(2 * time.Minute),
		}
		time.Sleep(2 * store.ReadsWait)
		s.readers = store.NewReaders() // as after a crash
		storetest.CheckReadState(t, b, "as the file has it", want)
	})
}

// TestDamagedCountsOfAReaderStayPlausible checks that counts that are damaged never show more than
// there can be.
func TestDamagedCountsOfAReaderStayPlausible(t *testing.T) {
	b, err := storetest.Open(harness{}, storetest.WithDefaults(t, harness{}, storetest.Options{
		Endpoints: []store.Endpoint{reader("reader")},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	storetest.MustAppend(t, b, storetest.Event("call.completed", "1"), storetest.Event("call.completed", "2"))
	if err := b.Engine.(*Engine).commit(func(tx *txn) error {
		return tx.queue("reader").root.Put(keyCounts, counts{}.encode())
	}); err != nil {
		t.Fatal(err)
	}
	list, err := b.Endpoints()
	if err != nil || list[0].Delivered > 100 {
		t.Errorf("delivered %d, %v", list[0].Delivered, err)
	}
}

// TestCursorThatWasNeverGivenLeadsToWhatIsLeft checks this for a file that was restored, in which
// numbers go on from higher ones: nothing is known of what had numbers between, and what is left
// before was read.
func TestCursorThatWasNeverGivenLeadsToWhatIsLeft(t *testing.T) {
	hook := storetest.Endpoint("hook")
	hook.Events = store.Filter{"sms.*"}
	b := storetest.OpenBox(t, harness{}, storetest.Options{Endpoints: []store.Endpoint{hook, reader("reader")}})
	for _, e := range []struct{ kind, call string }{
		{"call.incoming", "1"},
		{"call.completed", "1"},
		{"sms.sent", "2"},
		{"call.incoming", "3"},
		{"call.completed", "3"},
		{"sms.sent", "4"},
	} {
		storetest.MustAppend(t, b, storetest.Event(telephony.EventType(e.kind), e.call))
	}
	pruned, err := b.Engine.Prune(t.Context(), store.Retention{MaxAge: -time.Hour})
	if err != nil || pruned.Events != 4 {
		t.Fatalf("%d removed, %v", pruned.Events, err)
	}
	if err := b.Engine.(*Engine).db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketEvents).SetSequence(1000)
	}); err != nil {
		t.Fatal(err)
	}
	_, err = b.Events(store.EventQuery{Endpoint: "reader", After: "500", Limit: 1})
	if gone, ok := errors.AsType[*store.PrunedError](err); !ok || gone.Oldest != "6" {
		t.Errorf("after what was never given: %v", err)
	}
}

// TestRequestsLookAtABoundedNumberOfRecords checks this however few events a query is for, and that
// what it is for is found page by page.
func TestRequestsLookAtABoundedNumberOfRecords(t *testing.T) {
	b := storetest.OpenBox(t, harness{}, storetest.Options{Endpoints: []store.Endpoint{reader("reader")}})
	const events = 2*store.MaxLooked + 10
	batch := []telephony.Event{storetest.Event("sms.sent", "5")}
	for range events - 2 {
		batch = append(batch, storetest.Event("call.completed", "5"))
	}
	storetest.MustAppend(t, b, append(batch, storetest.Event("sms.sent", "5"))...)
	all := func(what string, pages int, read func(cursor string) (n int, next string, more bool)) {
		t.Helper()
		found := 0
		for cursor, more := "", true; more; {
			var n int
			n, cursor, more = read(cursor)
			found += n
			pages--
		}
		if found != 2 || pages != 0 {
			t.Errorf("%s: %d found, and %d pages fewer than there must be", what, found, pages)
		}
	}
	for _, name := range []string{"reader", ""} {
		for _, backwards := range []bool{false, true} {
			q := store.EventQuery{
				Endpoint:  name,
				Backwards: backwards,
				Types:     []telephony.EventType{"sms.sent"},
				Limit:     500,
			}
			what := fmt.Sprintf("events of %q, backwards: %v", name, backwards)
			all(what, 3, func(cursor string) (int, string, bool) {
				q.After = cursor
				page, err := b.Events(q)
				if err != nil {
					t.Fatal(err)
				}
				return len(page.Events), page.Cursor, page.More
			})
		}
	}
	if err := b.Engine.(*Engine).commit(func(tx *txn) error { // the first and the last are dead
		q := tx.queue("reader")
		for _, n := range []uint64{1, events} {
			d, history, _ := q.get(n)
			if err := q.put(n, d.Ended(store.Dead, time.Now()), history); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"", "5"} {
		all("deliveries of call "+call, 3, func(cursor string) (int, string, bool) {
			list, next, err := b.Deliveries(store.DeliveryQuery{State: "dead", CallID: call, Cursor: cursor, Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			return len(list), next, next != ""
		})
	}
}
