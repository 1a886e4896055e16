package storetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/logtest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// TestRedeliverAllChoosesByStateTypeAndTime checks it for a dry run and for a real one, also for an
// endpoint that was not configured when the events came.
func (s suite) TestRedeliverAllChoosesByStateTypeAndTime(t *testing.T) {
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "1" && r.Path == "/crm" {
			w.WriteHeader(http.StatusGone)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		one, late := Endpoint("crm"), Endpoint("late")
		one.URL, late.URL = "http://x/crm", "http://x/late"
		late.Events = store.Filter{"call.completed"}
		opts := Options{
			Place:          s.Place(t),
			DialContext:    c.Net.Dial,
			Endpoints:      []store.Endpoint{one},
			Retention:      time.Hour,
			MaxBytes:       1 << 30,
			RoutingTimeout: time.Second,
			OrderHold:      time.Hour,
			Grace:          time.Second,
			Logger:         slog.New(slog.DiscardHandler),
		}
		before, closeBefore := s.openAgain(t, opts)
		stop := RunBox(t, before)
		began := time.Now()
		for i := range 600 { // more than one transaction's
			MustAppend(t, before, Event("call.incoming", fmt.Sprint(i%2)), Event("call.completed", fmt.Sprint(i%2)))
			time.Sleep(time.Second)
		}
		stop()
		closeBefore()
		opts.Endpoints = append(opts.Endpoints, late)
		o := s.open(t, opts)
		stop = RunBox(t, o)
		synctest.Wait()
		came := len(c.Received())
		if n := len(list(t, o, store.DeliveryQuery{Endpoint: "late", Limit: 5})); n != 0 {
			t.Errorf("an endpoint that was added later has %d deliveries", n)
		}
		ended := []string{"dead", "delivered", "expired"}
		after := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
		for _, c := range []struct {
			r    store.Redelivery
			want int
		}{
			{store.Redelivery{Endpoint: "crm"}, 1200},
			{store.Redelivery{Endpoint: "crm", States: []string{"dead"}}, 600},
			{store.Redelivery{Endpoint: "crm", States: ended, Types: []telephony.EventType{"call.incoming"}}, 600},
			{store.Redelivery{Endpoint: "crm", States: []string{"expired"}}, 0},
			{store.Redelivery{Endpoint: "crm", Since: after(100), Until: after(200)}, 200},
			{store.Redelivery{Endpoint: "late"}, 600},
			{store.Redelivery{Endpoint: "late", States: ended}, 0},
			{store.Redelivery{Endpoint: "late", States: []string{store.Missing}, Since: after(590)}, 10},
		} {
			c.r.DryRun = true
			if n, err := o.RedeliverAll(t.Context(), c.r); n != c.want || err != nil {
				t.Errorf("%+v: %d, %v; want %d", c.r, n, err, c.want)
			}
		}
		count := store.Redelivery{Endpoint: "crm", DryRun: true}
		some, next, err := o.Engine.RedeliverSome(t.Context(), count, 0, 3, time.Now())
		if some != 3 || next != 4 || err != nil {
			t.Errorf("up to the third event there are %d, then %d: %v", some, next, err)
		}
		_, err = o.RedeliverAll(t.Context(), store.Redelivery{Endpoint: "nobody"})
		if !errors.Is(err, store.ErrNoEndpoint) {
			t.Error(err)
		}
		for _, state := range []string{"pending", "lost"} {
			r := store.Redelivery{Endpoint: "crm", States: []string{state}}
			if _, err := o.RedeliverAll(t.Context(), r); !errors.Is(err, store.ErrBadState) {
				t.Error(err)
			}
		}
		synctest.Wait()
		if n := len(c.Received()); n != came {
			t.Fatalf("counting sent %d webhooks", n-came)
		}
		for name, want := range map[string]int{"crm": 1200, "late": 600} {
			if n, err := o.RedeliverAll(t.Context(), store.Redelivery{Endpoint: name}); n != want || err != nil {
				t.Errorf("%s: %d, %v", name, n, err)
			}
		}
		synctest.Wait()
		stop()
		last := map[string]int{}
		for _, h := range c.Received()[came:] {
			call, n := callOf(t, h)
			if key := h.Path + call; n <= last[key] {
				t.Errorf("%s: %d after %d", key, n, last[key])
			} else {
				last[key] = n
			}
		}
		if got := States(t, o, "late"); got[store.Delivered] != 600 {
			t.Errorf("states of the one that was added: %v", got)
		}
		if got := States(t, o, "crm"); got[store.Delivered] != 600 || got[store.Dead] != 600 {
			t.Errorf("states: %v", got)
		}
	})
}

// TestWhatWaitsForAnUnknownEndpointIsLoggedAtTheStart checks that a name which is configured no
// longer is logged once, and that what waits for it is listed and cannot be redelivered.
func (s suite) TestWhatWaitsForAnUnknownEndpointIsLoggedAtTheStart(t *testing.T) {
	place := s.Place(t)
	before, closeBefore := s.openAgain(t, Options{
		Place:          place,
		Endpoints:      []store.Endpoint{Endpoint("crn")},
		Retention:      time.Hour,
		MaxBytes:       1 << 30,
		RoutingTimeout: time.Second,
		Logger:         slog.New(slog.DiscardHandler),
	})
	MustAppend(t, before, Event("call.incoming", "5"), Event("call.incoming", "6"))
	closeBefore()
	var log logtest.Buffer
	o := s.open(t, Options{Place: place, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "endpoint=crn deliveries=2") {
		t.Errorf("the log:\n%s", text)
	}
	if n := len(list(t, o, store.DeliveryQuery{Endpoint: "crn", Limit: 5})); n != 2 {
		t.Errorf("%d of the 2 are listed", n)
	}
	first := list(t, o, store.DeliveryQuery{Limit: 1})[0]
	if _, err := o.Redeliver(first.ID); !errors.Is(err, store.ErrNoEndpoint) {
		t.Errorf("delivered again to no endpoint: %v", err)
	}
}

// TestRedeliveryLeavesOutWhatIsTheWinners checks that the news that a call rings, which only its
// winner gets, is not missing at another endpoint. What rang before the call asked, or after it was
// over, is.
func (s suite) TestRedeliveryLeavesOutWhatIsTheWinners(t *testing.T) {
	place := s.Place(t)
	o, closeBox := s.openAgain(t, Options{Place: place, Endpoints: []store.Endpoint{Endpoint("a"), Endpoint("b")}})
	at := time.Now()
	happens := func(kind telephony.EventType) {
		t.Helper()
		e := Event(kind, "5")
		e.Time = at
		MustAppend(t, o, e)
		at = at.Add(time.Second)
	}
	missing := func(endpoint string) int {
		t.Helper()
		r := store.Redelivery{Endpoint: endpoint, States: []string{store.Missing}, DryRun: true}
		n, err := o.RedeliverAll(t.Context(), r)
		if err != nil {
			t.Error(err)
		}
		return n
	}
	happens("call.transfer_requested")
	result, err := o.Engine.ChangeRoute(t.Context(), "5", telephony.RouteChange{
		Kind:    telephony.RouteAnswer,
		Replies: []telephony.Reply{{By: "a", Kind: telephony.ReplyNumber, To: "101"}},
		Now:     at,
	})
	if err != nil || result.After.Outcome != telephony.RouteWon || result.After.Winner != "a" {
		t.Fatalf("%+v, %v", result, err)
	}
	happens("call.incoming")
	happens("call.incoming_answered")
	for over := range 2 {
		for name, want := range map[string]int{"a": 0, "b": 0} {
			if n := missing(name); n != want {
				t.Errorf("over %d times, %d are missing at %s", over, n, name)
			}
		}
		happens("call.completed")
	}
	if list := list(t, o, store.DeliveryQuery{Endpoint: "b", Limit: 10}); len(list) != 3 {
		t.Errorf("the other one has %d deliveries", len(list))
	}
	// One that is configured later misses that it asked, what came of it, and not that it rang.
	closeBox()
	o, _ = s.openAgain(t, Options{
		Place:     place,
		Endpoints: []store.Endpoint{Endpoint("a"), Endpoint("b"), Endpoint("c")},
	})
	n, err := o.RedeliverAll(t.Context(), store.Redelivery{Endpoint: "c", DryRun: true})
	if n != 3 || err != nil {
		t.Errorf("of one that was configured later %d are missing: %v", n, err)
	}
	happens("call.incoming") // with the same ID, after it was over
	n, err = o.RedeliverAll(t.Context(), store.Redelivery{
		Endpoint: "c",
		States:   []string{"delivered", "dead", "expired", store.Missing},
		Types:    []telephony.EventType{"call.incoming"},
		DryRun:   true,
	})
	if n != 0 || err != nil {
		t.Errorf("of a later call with that ID, which it got, %d are missing: %v", n, err)
	}
}

// TestRateLeavesRoomForLiveCalls checks that a redelivery at an endpoint with a rate leaves an
// event of a live call its place.
func (s suite) TestRateLeavesRoomForLiveCalls(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Rate, e.Concurrency = 2, 16
		o := s.open(t, Options{
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{e},
			Logger:      slog.New(slog.DiscardHandler),
		})
		stop := RunBox(t, o)
		for i := range 200 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i/2)))
		}
		time.Sleep(2 * time.Minute)
		if n, err := o.RedeliverAll(t.Context(), store.Redelivery{Endpoint: "crm"}); n != 200 || err != nil {
			t.Fatal(n, err)
		}
		for range 10 {
			time.Sleep(5 * time.Second)
			before := c.Count()
			live := Event("call.outgoing", "live")
			MustAppend(t, o, live)
			began := time.Now()
			for came := false; !came; {
				time.Sleep(100 * time.Millisecond)
				came = slices.ContainsFunc(c.Received()[before:], func(r Received) bool {
					return r.Header.Get("webhook-id") == live.ID
				})
			}
			if waited := time.Since(began); waited > 4*time.Second {
				t.Errorf("a live call waits %s", waited)
			}
		}
		time.Sleep(5 * time.Minute)
		stop()
		if got := States(t, o, "crm"); got[store.Delivered] != 210 {
			t.Errorf("states: %v", got)
		}
	})
}

// TestRedeliveryWakesTheLaneAsItGoes checks that what is redelivered is sent while the rest is
// still being chosen.
func (s suite) TestRedeliveryWakesTheLaneAsItGoes(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		const events = 1024
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{Endpoint("crm")}})
		stop := RunBox(t, o)
		var list []telephony.Event
		for i := range events {
			list = append(list, Event("call.completed", fmt.Sprint(i)))
		}
		MustAppend(t, o, list...)
		time.Sleep(time.Minute)
		synctest.Wait()
		came := c.Count()
		count := store.Redelivery{Endpoint: "crm", DryRun: true}
		batch, _, err := o.Engine.RedeliverSome(t.Context(), count, 0, events, time.Now())
		if err != nil || batch == 0 || batch > events/4 {
			t.Fatalf("%d are redelivered at once, %v", batch, err)
		}
		ctx := &stopsAfter{Context: t.Context(), left: 1} // the second batch is not begun
		n, err := o.RedeliverAll(ctx, store.Redelivery{Endpoint: "crm"})
		if n != batch || !errors.Is(err, errStopped) {
			t.Errorf("%d are marked, %v", n, err)
		}
		synctest.Wait()
		if sent := c.Count() - came; sent < batch {
			t.Errorf("%d are sent while the rest is chosen", sent)
		}
		stop()
	})
}

// TestOldestPendingIsByWhenItWasRead checks when the oldest event was read that waits, also one
// that waits for its next attempt. One that is redelivered has not waited.
func (s suite) TestOldestPendingIsByWhenItWasRead(t *testing.T) {
	engine := s.openEngine(t, Options{})
	var events []telephony.Event
	for i := range 3 {
		e := Event("call.completed", fmt.Sprint(i))
		e.Time = time.Now().Add(time.Duration(i-3) * time.Hour).UTC().Truncate(time.Millisecond)
		events = append(events, e)
	}
	appendTo(t, engine, events...)
	lane, err := engine.Lane(t.Context(), "crm", false)
	if err != nil {
		t.Fatal(err)
	}
	becomes := func(n uint64, d store.Delivery) {
		t.Helper()
		if err := lane.Record(t.Context(), []store.Result{{Job: store.Job{Number: n}, Now: d}}); err != nil {
			t.Fatal(err)
		}
	}
	oldest := func(when string, want time.Time) {
		t.Helper()
		if at, err := engine.OldestPending(t.Context(), "crm"); err != nil || !at.Equal(want) {
			t.Errorf("%s: %s, %v; want %s", when, at, err, want)
		}
	}
	oldest("at first", events[0].Time)
	becomes(1, store.Delivery{}.Ended(store.Delivered, time.Now()))
	oldest("the first is delivered", events[1].Time)
	if err := engine.Redeliver(t.Context(), events[0].ID, "crm", time.Now()); err != nil {
		t.Fatal(err)
	}
	oldest("it is delivered again", events[1].Time)
	failed := time.Now()
	becomes(2, store.Delivery{
		Attempts: 1,
		Step:     1,
		FailedAt: failed.UnixNano(),
		Due:      failed.Add(time.Hour).UnixNano(),
	})
	oldest("the second has failed", events[1].Time)
	becomes(2, store.Delivery{}.Ended(store.Dead, time.Now()))
	oldest("the second is dead", events[2].Time)
	becomes(3, store.Delivery{}.Ended(store.Delivered, time.Now()))
	oldest("only what is delivered again is left", time.Time{})
}

var errStopped = errors.New("stopped")

// stopsAfter is a context that has ended once it was looked at so many times.
type stopsAfter struct {
	context.Context
	left int
}

// Err counts how often it is called.
func (s *stopsAfter) Err() error {
	if s.left--; s.left < 0 {
		return errStopped
	}
	return nil
}

// TestOverruledAttemptIsCounted checks that an attempt which was under way when its delivery was
// asked for again counts as made.
func (s suite) TestOverruledAttemptIsCounted(t *testing.T) {
	c := &CRM{Answer: func(n int, _ Received, w http.ResponseWriter) {
		time.Sleep(10 * time.Second)
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{Endpoint("crm")}})
		stop := RunBox(t, o)
		e := Event("call.completed", "5")
		MustAppend(t, o, e)
		time.Sleep(5 * time.Second)
		if _, err := o.Redeliver(e.ID + ".crm"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		stop()
		d, attempts, err := o.Delivery(e.ID + ".crm")
		if err != nil || d.State != "delivered" || d.Attempts != 2 || len(attempts) != 2 {
			t.Errorf("%+v, %d attempts are kept, %v", d, len(attempts), err)
		}
	})
}

// TestARedeliveryOfManySaysWhatCameOfIt checks that a redelivery of many counts its deliveries as
// they end, across a restart, and those that are requested again meanwhile.
func (s suite) TestARedeliveryOfManySaysWhatCameOfIt(t *testing.T) {
	var refuses atomic.Bool
	c := &CRM{Answer: func(_ int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); refuses.Load() || call == "3" {
			w.WriteHeader(http.StatusGone)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		opts := Options{Place: s.Place(t), DialContext: c.Net.Dial, Logger: slog.New(slog.DiscardHandler)}
		refuses.Store(true)
		o, closeBox := s.openAgain(t, opts)
		stop := RunBox(t, o)
		for i := range 10 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Second)
		stop()
		refuses.Store(false)
		since := time.Now().Add(-time.Hour)
		again := func(types ...telephony.EventType) (uint32, int) {
			number, count, err := o.Outbox.RedeliverAll(t.Context(), store.Redelivery{
				Endpoint: "crm",
				Since:    since,
				States:   []string{"dead"},
				Types:    types,
			})
			if err != nil {
				t.Fatal(err)
			}
			return number, count
		}
		first, count := again()
		if count != 10 {
			t.Fatalf("%d are sent again", count)
		}
		check := func(number uint32, want string) {
			t.Helper()
			r, err := o.Outbox.Redelivery(t.Context(), number)
			got := fmt.Sprintf("%d: %d pending, %d delivered, %d dead, %d superseded, %v",
				r.Chosen, r.Pending(), r.Delivered, r.Dead, r.Superseded, r.Whole)
			if err != nil || got != want {
				t.Errorf("redelivery %d is %s, %v; want %s", number, got, err, want)
			}
		}
		check(first, "10: 10 pending, 0 delivered, 0 dead, 0 superseded, true")
		// One of them is requested once more, alone, before it has ended.
		page, _, err := o.Deliveries(store.DeliveryQuery{Endpoint: "crm", CallID: "5", Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Redeliver(page[0].ID); err != nil {
			t.Fatal(err)
		}
		check(first, "10: 9 pending, 0 delivered, 0 dead, 1 superseded, true")
		closeBox()
		o, closeBox = s.openAgain(t, opts)
		check(first, "10: 9 pending, 0 delivered, 0 dead, 1 superseded, true")
		stop = RunBox(t, o)
		time.Sleep(time.Second)
		check(first, "10: 0 pending, 8 delivered, 1 dead, 1 superseded, true")
		second, count := again()
		if count != 1 || second == first {
			t.Fatalf("%d are sent again by redelivery %d", count, second)
		}
		time.Sleep(time.Second)
		check(second, "1: 0 pending, 0 delivered, 1 dead, 0 superseded, true")
		check(first, "10: 0 pending, 8 delivered, 0 dead, 2 superseded, true")
		none, count := again("sms.sent")
		if count != 0 {
			t.Errorf("%d SMS are sent again", count)
		}
		check(none, "0: 0 pending, 0 delivered, 0 dead, 0 superseded, true")
		list, err := o.Outbox.Redeliveries(t.Context(), 2)
		if err != nil || len(list) != 2 || list[0].Number != none || list[1].Number != second {
			t.Errorf("the latest redeliveries are %+v, %v", list, err)
		}
		for _, number := range []uint32{0, none + 1} {
			if _, err := o.Outbox.Redelivery(t.Context(), number); !errors.Is(err, store.ErrNoRedelivery) {
				t.Errorf("redelivery %d: %v", number, err)
			}
		}
		stop()
		closeBox()
	})
}

// TestARedeliveryDuringAnAttemptIsNotForgotten checks that a delivery whose redelivery was
// requested while an attempt at it was under way says so after that attempt has succeeded, which
// counts.
func (s suite) TestARedeliveryDuringAnAttemptIsNotForgotten(t *testing.T) {
	c := &CRM{Answer: func(int, Received, http.ResponseWriter) { time.Sleep(5 * time.Second) }}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial})
		stop := RunBox(t, o)
		e := Event("call.completed", "1")
		MustAppend(t, o, e)
		time.Sleep(time.Second)
		if _, err := o.Redeliver(e.ID + ".crm"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		stop()
		d, _, err := o.Delivery(e.ID + ".crm")
		if err != nil || d.State != "delivered" || !d.Redelivered || c.Count() != 1 {
			t.Errorf("after %d webhooks the delivery is %+v, %v", c.Count(), d, err)
		}
	})
}
