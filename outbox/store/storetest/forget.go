package storetest

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// TestForgettingANumberRemovesAllOfItsCalls checks that nothing of a person's calls is left,
// delivered or not, and that what belongs to others stays and goes on.
func (s suite) TestForgettingANumberRemovesAllOfItsCalls(t *testing.T) {
	const many = 700 // events, more than go in one transaction
	c := &CRM{Answer: func(_ int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "pending" || call == "other" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		opts := Options{Place: s.Place(t), DialContext: c.Net.Dial, Logger: slog.New(slog.DiscardHandler)}
		o, closeBox := s.openAgain(t, opts)
		stop := RunBox(t, o)
		MustAppend(t, o,
			callEvent("call.transfer_requested", "asks", "83430112233", ""),
			callEvent("call.incoming", "asks", "83430112233", "101"),
			completed("asks", "83430112233", "101", telephony.Incoming, 5),
			completed("out", "101", "+7 (343) 011-22-33", telephony.Outgoing, 5),
			completed("pending", "+73430112233", "102", telephony.Incoming, 0),
			completed("other", "+79101234567", "101", telephony.Incoming, 5))
		var long []telephony.Event
		for range many {
			long = append(long, callEvent("pz.event", "long", "+73430112233", "101"))
		}
		MustAppend(t, o, long...)
		time.Sleep(time.Minute)
		stop()
		want := store.Forgotten{Calls: 4, Events: 5 + many, Deliveries: 5 + many, Routes: 1, Pending: 1}
		for _, dryRun := range []bool{true, true, false} {
			got, err := o.Outbox.Forget(t.Context(), "8 343 011-22-33", dryRun)
			if err != nil || got != want {
				t.Errorf("dry run %v: %+v, %v; want %+v", dryRun, got, err, want)
			}
		}
		check := func() {
			t.Helper()
			checkFound(t, o, outbox.CallFilter{Number: "+73430112233"})
			checkFound(t, o, outbox.CallFilter{Number: "2233"})
			checkFound(t, o, outbox.CallFilter{}, "other")
			for _, call := range []string{"asks", "out", "pending", "long"} {
				if _, err := o.Call(call, 0); !errors.Is(err, store.ErrNoCall) {
					t.Errorf("call %s: %v", call, err)
				}
			}
			if route, err := o.Route("asks"); route != nil || err != nil {
				t.Errorf("the route is %+v, %v", route, err)
			}
			if got := States(t, o, "crm"); got[store.Pending] != 1 || got[store.Delivered] != 0 {
				t.Errorf("the states are %v", got)
			}
		}
		check()
		closeBox()
		o, closeBox = s.openAgain(t, opts)
		check()
		c.Answer = nil
		stop = RunBox(t, o)
		MustAppend(t, o, callEvent("call.incoming", "new", "+73430112233", "101"))
		time.Sleep(10 * time.Minute)
		stop()
		checkFound(t, o, outbox.CallFilter{Number: "+73430112233"}, "new")
		if got := States(t, o, "crm"); got[store.Pending] != 0 || got[store.Delivered] != 2 {
			t.Errorf("in the end the states are %v", got)
		}
		if got, err := o.Outbox.Forget(t.Context(), "+79990000000", false); err != nil || got != (store.Forgotten{}) {
			t.Errorf("a number without calls: %+v, %v", got, err)
		}
		for _, number := range []string{"", "101", "Anonymous", "+12"} {
			if _, err := o.Outbox.Forget(t.Context(), number, true); !errors.Is(err, outbox.ErrNoPerson) {
				t.Errorf("%q: %v", number, err)
			}
		}
		closeBox()
	})
}

// TestForgettingANumberThatJoinedACallLater checks that a call is removed whole also if its first
// events do not have the number, wherever a transaction ends.
func (s suite) TestForgettingANumberThatJoinedACallLater(t *testing.T) {
	for _, many := range []int{253, 254, 255, 600} { // events, about as many as go in one transaction
		o := s.open(t, Options{})
		MustAppend(t, o,
			callEvent("call.incoming", "joined", "+79101234567", "101"),
			callEvent("call.incoming_answered", "joined", "+79101234567", "+73430112233"),
			callEvent("call.completed", "joined", "+79101234567", "101"))
		var events []telephony.Event
		for i := range many {
			to := "101"
			if i == many/2 {
				to = "+73430112233"
			}
			events = append(events, callEvent("pz.event", "long", "+79101234567", to))
		}
		MustAppend(t, o, events...)
		want := store.Forgotten{Calls: 2, Events: 3 + many, Deliveries: 3 + many, Pending: 3 + many}
		got, err := o.Outbox.Forget(t.Context(), "+73430112233", false)
		if err != nil || got != want {
			t.Errorf("%d events: %+v, %v; want %+v", many, got, err, want)
		}
		checkFound(t, o, outbox.CallFilter{})
	}
}

// TestForgettingWhileEventsAreUnderWay checks that a call that is forgotten while an attempt of it
// is under way leaves nothing behind.
func (s suite) TestForgettingWhileEventsAreUnderWay(t *testing.T) {
	c := &CRM{Answer: func(int, Received, http.ResponseWriter) { time.Sleep(5 * time.Second) }}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial})
		stop := RunBox(t, o)
		for i := range 3 {
			MustAppend(t, o, callEvent("call.incoming", fmt.Sprint(i), "+73430112233", "101"),
				callEvent("call.incoming_answered", fmt.Sprint(i), "+73430112233", "101"))
		}
		time.Sleep(time.Second)
		if got, err := o.Outbox.Forget(t.Context(), "+73430112233", false); err != nil || got.Events != 6 {
			t.Errorf("%+v, %v", got, err)
		}
		time.Sleep(time.Minute)
		stop()
		if got := States(t, o, "crm"); got[store.Pending]+got[store.Delivered]+got[store.Dead] != 0 {
			t.Errorf("the states are %v", got)
		}
		if n := c.Count(); n != 3 {
			t.Errorf("%d webhooks came, not the 3 that were under way", n)
		}
	})
}

// TestNothingIsKeptForAForgottenCall checks that what a sender keeps for a call goes with it, also
// if an attempt that was under way then brings it afterwards.
func (s suite) TestNothingIsKeptForAForgottenCall(t *testing.T) {
	ctx := t.Context()
	o := s.open(t, Options{})
	lane, err := o.Engine.Lane(ctx, "crm", true)
	if err != nil {
		t.Fatal(err)
	}
	claim := func() store.Job {
		t.Helper()
		MustAppend(t, o, callEvent("call.incoming", "1", "+73430112233", "101"))
		c, err := lane.Claim(ctx, time.Now(), 1, nil)
		if err != nil || len(c.Jobs) != 1 {
			t.Fatal(c, err)
		}
		return c.Jobs[0]
	}
	for range 2 {
		j := claim()
		if j.Kept != nil || j.KeptVersion != 0 {
			t.Errorf("%q is kept, version %d", j.Kept, j.KeptVersion)
		}
		if f, err := o.Outbox.Forget(ctx, "+73430112233", false); err != nil || f.Calls != 1 {
			t.Fatal(f, err)
		}
		now := j.Delivery.Ended(store.Delivered, time.Now())
		now.Attempts++
		attempt := &store.Attempt{At: time.Now()}
		results := []store.Result{{Job: j, Now: now, Keep: []byte("+73430112233"), Attempt: attempt}}
		if err := lane.Record(ctx, results); err != nil {
			t.Fatal(err)
		}
	}
}
