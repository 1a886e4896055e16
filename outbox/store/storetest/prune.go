package storetest

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// TestOldEventsGoUnlessAnEndpointWaits checks that what is older than the retention and done with
// goes, whole, and that what a configured endpoint waits for stays.
func (s suite) TestOldEventsGoUnlessAnEndpointWaits(t *testing.T) {
	fails := map[string]bool{"9": true}
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); fails[call] {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		const many = 768 // more than go in one transaction
		opts := Options{
			Place:          s.Place(t),
			Endpoints:      []store.Endpoint{Endpoint("crm"), Endpoint("gone")},
			DialContext:    c.Net.Dial,
			RetrySchedule:  slices.Repeat([]time.Duration{time.Hour}, 1000),
			MaxBytes:       1 << 30,
			Retention:      16 * time.Hour,
			RoutingTimeout: time.Hour,
			Grace:          time.Second,
			OrderHold:      time.Minute,
			Logger:         slog.New(slog.DiscardHandler),
		}
		first, closeFirst := s.openAgain(t, opts) // appends for both, delivers nothing
		for i := range many {
			MustAppend(t, first, Event("call.incoming", fmt.Sprint(10+i)))
		}
		MustAppend(t, first, Event("call.incoming", "9"), Event("call.completed", "9"))
		closeFirst()
		opts.Endpoints = opts.Endpoints[:1]
		o := s.open(t, opts)
		stop := RunBox(t, o)
		time.Sleep(15 * time.Hour)
		synctest.Wait()
		if got := States(t, o, "crm"); got[store.Delivered] != many || got[store.Pending] != 2 {
			t.Errorf("before the retention is over: %v", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := States(t, o, "crm"); got[store.Delivered] != 0 || got[store.Pending] != 2 {
			t.Errorf("after it: %v", got)
		}
		left := list(t, o, store.DeliveryQuery{Endpoint: "gone", Limit: 10})
		if len(left) != 2 || left[0].State != "pending" {
			t.Errorf("of the endpoint that is gone: %v", left)
		}
		stop()
	})
}

// TestNotesArePruned checks that a note is removed a while after its end, and no other.
func (s suite) TestNotesArePruned(t *testing.T) {
	c := &CRM{Forget: true}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial})
		stop := RunBox(t, o)
		began := time.Now()
		for name, end := range map[string]time.Time{
			"over": began.Add(time.Hour), "just over": began.Add(20 * time.Hour), "for ever": {},
		} {
			if err := o.Engine.SetNote(t.Context(), "crm", name, 0, []byte("value"), end); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(store.NoteGrace + 2*time.Hour)
		for name, want := range map[string]string{"over": "/0", "just over": "/1", "for ever": "value/1"} {
			value, version, err := o.Engine.Note(t.Context(), "crm", name, time.Now())
			if got := fmt.Sprintf("%s/%d", value, version); err != nil || got != want {
				t.Errorf("the note that is %s is %s, want %s (%v)", name, got, want, err)
			}
		}
		stop()
	})
}

// TestFullEndsByItself checks that readiness has the outbox full for no longer than it is, also if
// nothing is appended after that.
func (s suite) TestFullEndsByItself(t *testing.T) {
	SkipBulk(t)
	c := &CRM{Forget: true}
	Bubble(t, c, func(t *testing.T) {
		const limit = 1 << 20
		o := s.open(t, Options{
			DialContext: c.Net.Dial,
			MaxBytes:    limit,
			Logger:      slog.New(slog.DiscardHandler),
			Retention:   1000 * time.Hour,
		})
		var err error
		for i := 0; err == nil; i++ {
			err = o.Append(t.Context(), []telephony.Event{Event("call.completed", fmt.Sprint(i))})
		}
		if !errors.Is(err, store.ErrFull) || !errors.Is(o.Writable(), store.ErrFull) {
			t.Fatal(err, o.Writable())
		}
		defer RunBox(t, o)()
		time.Sleep(2 * time.Hour)
		if err := o.Writable(); err != nil {
			t.Errorf("two hours later %d of %d bytes are in use, and readiness says: %v", o.InUse(), limit, err)
		}
	})
}

// TestSequenceOutlivesEarlyPruning checks that a call which goes on keeps counting its events,
// though those that are delivered have made room.
func (s suite) TestSequenceOutlivesEarlyPruning(t *testing.T) {
	c := &CRM{Forget: true}
	Bubble(t, c, func(t *testing.T) {
		const limit = 1 << 20
		o := s.open(t, Options{DialContext: c.Net.Dial, MaxBytes: limit, Logger: slog.New(slog.DiscardHandler)})
		defer RunBox(t, o)()
		MustAppend(t, o, Event("call.incoming", "live"), Event("call.incoming_answered", "live"))
		time.Sleep(time.Second)
		for i := range 60 { // a busy quarter of an hour
			var list []telephony.Event
			for j := range 64 {
				list = append(list, Event("call.completed", fmt.Sprintf("%d-%d", i, j)))
			}
			MustAppend(t, o, list...)
			time.Sleep(15 * time.Second)
		}
		last := Event("call.completed", "live")
		MustAppend(t, o, last)
		synctest.Wait()
		d, _, err := o.Delivery(last.ID + ".crm")
		if err != nil || d.Sequence != 3 {
			t.Errorf("the third event of a call that is a quarter of an hour old has the sequence %d (%v)",
				d.Sequence, err)
		}
	})
}

// TestNeverFullOfWhatIsDelivered checks it for calls of which no event says that they are over.
func (s suite) TestNeverFullOfWhatIsDelivered(t *testing.T) {
	SkipBulk(t)
	c := &CRM{Forget: true}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial, MaxBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
		stop := RunBox(t, o)
		full := false
		for n := 0; n < 5000 && !full; n++ {
			full = o.Append(t.Context(), []telephony.Event{Event("call.outgoing", fmt.Sprint(n))}) != nil
		}
		time.Sleep(2 * time.Minute) // old events are removed every minute
		if err := o.Append(t.Context(), []telephony.Event{Event("call.completed", "1")}); err != nil || !full {
			t.Errorf("two minutes later (it was full: %v): %v, %v", full, err, States(t, o, "crm"))
		}
		synctest.Wait()
		stop()
	})
}

// TestWhatWaitsForAnUnknownEndpointDoesNotGoEarly checks that what waits for an endpoint which is
// configured no longer waits as long as the retention, also while the outbox is nearly full.
func (s suite) TestWhatWaitsForAnUnknownEndpointDoesNotGoEarly(t *testing.T) {
	SkipBulk(t)
	c := &CRM{Forget: true}
	Bubble(t, c, func(t *testing.T) {
		opts := Options{
			Place:       s.Place(t),
			DialContext: c.Net.Dial,
			MaxBytes:    1 << 20,
			Endpoints:   []store.Endpoint{Endpoint("crm"), Endpoint("other")},
			Logger:      slog.New(slog.DiscardHandler),
		}
		o, closeBox := s.openAgain(t, opts)
		const many = 50
		for i := range many {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		closeBox()
		opts.Endpoints = opts.Endpoints[:1]
		o = s.open(t, opts)
		stop := RunBox(t, o)
		for i := range 3000 { // more than there is room for
			_ = o.Append(t.Context(), []telephony.Event{Event("call.completed", fmt.Sprint("later ", i))})
			if i%100 == 0 {
				time.Sleep(11 * time.Second) // until it is looked again for what can go early
			}
		}
		stop()
		if n := len(list(t, o, store.DeliveryQuery{Endpoint: "other", Limit: 500})); n != many {
			t.Errorf("%d of %d are left", n, many)
		}
	})
}

// TestGivenUpEventHoldsNothing checks that what was held by a delivery which is given up is due.
func (s suite) TestGivenUpEventHoldsNothing(t *testing.T) {
	engine := s.openEngine(t, Options{})
	first, second := Event("call.incoming", "5"), Event("call.completed", "5")
	first.Time = time.Now().Add(-time.Hour)
	appendTo(t, engine, first, second)
	pruned, err := engine.Prune(t.Context(), store.Retention{
		MaxAge:       -time.Hour,
		Abandoned:    map[string]bool{"crm": true},
		AbandonedAge: time.Minute,
	})
	if err != nil || pruned.GivenUp["crm"] != 1 {
		t.Errorf("given up: %v, %v", pruned.GivenUp, err)
	}
	lane, err := engine.Lane(t.Context(), "crm", false)
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := lane.Claim(t.Context(), time.Now(), 10, nil)
	if len(claimed.Jobs) != 1 || err != nil {
		t.Errorf("%d are due, %v", len(claimed.Jobs), err)
	}
}
