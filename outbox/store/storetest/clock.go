package storetest

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// machineClock is a clock in fake time that can be set.
type machineClock struct {
	began time.Time
	ahead atomic.Int64 // a time.Duration
}

func (m *machineClock) set(ahead time.Duration) { m.ahead.Store(int64(ahead)) }

func (m *machineClock) now() time.Time { return time.Now().Add(time.Duration(m.ahead.Load())) }

func (m *machineClock) clock(built time.Time) *clock.Clock {
	m.began = time.Now()
	return clock.Reading(built, built, func() (time.Time, time.Duration) {
		return m.now().Round(0), time.Since(m.began)
	})
}

// TestClockSetForwardGivesNothingUp checks that a clock which is set forward past the retention
// removes nothing that waits, neither for a CRM that has been failing for a minute nor for one that
// reads its events. After an hour it is believed; that an endpoint is failing is counted by the
// time that has passed.
func (s suite) TestClockSetForwardGivesNothingUp(t *testing.T) {
	c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }}
	Bubble(t, c, func(t *testing.T) {
		var machine machineClock
		crm, reader := Endpoint("crm"), Endpoint("reader")
		reader.URL, reader.Secrets = "", nil
		// What one waits for would keep the other's.
		crm.Events, reader.Events = store.Filter{"call.*"}, store.Filter{"sms.*"}
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{crm, reader},
			Retention:     168 * time.Hour,
			RetrySchedule: []time.Duration{time.Minute, time.Hour},
			Clock:         machine.clock(time.Time{}),
		})
		stop := RunBox(t, o)
		for i := range 100 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)), Event("sms.sent", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		machine.set(30 * 24 * time.Hour)
		fresh := Event("sms.sent", "new")
		fresh.Time = machine.now()
		MustAppend(t, o, fresh)
		time.Sleep(50 * time.Minute)
		page, err := o.Events(store.EventQuery{Endpoint: "reader", Limit: 1000})
		if got := States(t, o, "crm"); got[store.Pending] != 100 || len(page.Events) != 101 || err != nil {
			t.Errorf("after 50 minutes: %v, %d can be read, %v", got, len(page.Events), err)
		}
		time.Sleep(24 * time.Hour)
		if got := States(t, o, "crm"); got[store.Pending] != 100 {
			t.Errorf("after a day, of which it has been failing: %v", got)
		}
		stop()
	})
}

// TestFailingIsCountedThroughRestarts checks that the time for which an endpoint has been failing
// is kept through restarts, and begins again once it succeeds.
func (s suite) TestFailingIsCountedThroughRestarts(t *testing.T) {
	status := http.StatusServiceUnavailable
	c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(status) }}
	Bubble(t, c, func(t *testing.T) {
		opts := Options{
			Place:         s.Place(t),
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{Endpoint("crm")},
			Retention:     24 * time.Hour,
			RetrySchedule: []time.Duration{time.Minute},
		}
		failed := func() time.Duration {
			o, closeBox := s.openAgain(t, opts)
			stop := RunBox(t, o)
			var list []telephony.Event
			for i := range 100 {
				list = append(list, Event("call.completed", fmt.Sprint(i)))
			}
			MustAppend(t, o, list...)
			time.Sleep(10 * time.Hour)
			synctest.Wait()
			stop()
			total, _, err := o.Engine.Note(t.Context(), "crm", "failing", time.Now())
			closeBox()
			if err != nil || len(total) != 8 {
				t.Fatal(total, err)
			}
			return time.Duration(binary.BigEndian.Uint64(total))
		}
		if got := failed(); got < 9*time.Hour || got > 10*time.Hour {
			t.Errorf("after ten hours: %s", got)
		}
		if got := failed(); got < 19*time.Hour || got > 20*time.Hour {
			t.Errorf("after ten more: %s", got)
		}
		status = http.StatusOK
		if got := failed(); got != 0 {
			t.Errorf("after a success: %s", got)
		}
	})
}

// TestEventsOfAWrongClockAreAsOldAsTheNextOnes checks it for a clock that stood before the
// program's own day.
func (s suite) TestEventsOfAWrongClockAreAsOldAsTheNextOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var machine machineClock
		built := time.Now()
		machine.set(-30 * 365 * 24 * time.Hour)
		reader := Endpoint("reader")
		reader.URL, reader.Secrets = "", nil
		o := s.open(t, Options{
			Endpoints: []store.Endpoint{reader},
			Retention: 24 * time.Hour,
			Clock:     machine.clock(built),
		})
		if o.Writable() == nil {
			t.Error("a wrong clock is no reason to worry")
		}
		stop := RunBox(t, o)
		for i := range 10 {
			e := Event("call.completed", fmt.Sprint(i))
			e.Time = machine.now()
			MustAppend(t, o, e)
		}
		time.Sleep(time.Minute)
		machine.set(0)
		e := Event("call.completed", "dated")
		MustAppend(t, o, e)
		kept := func() int { return len(list(t, o, store.DeliveryQuery{Limit: 1000})) }
		time.Sleep(20 * time.Hour)
		if n := kept(); n != 11 || o.Writable() != nil {
			t.Errorf("%d are kept, %v", n, o.Writable())
		}
		time.Sleep(5 * time.Hour)
		if n := kept(); n != 0 {
			t.Errorf("%d are kept for longer than the retention", n)
		}
		stop()
	})
}

// TestStepOfTheClockIsDoubtedThroughARestart checks it also where something was stored after the
// step.
func (s suite) TestStepOfTheClockIsDoubtedThroughARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var machine machineClock
		reader := Endpoint("reader")
		reader.URL, reader.Secrets = "", nil
		opts := Options{
			Place:     s.Place(t),
			Endpoints: []store.Endpoint{reader},
			Retention: 168 * time.Hour,
			Clock:     machine.clock(time.Time{}),
		}
		o, closeBox := s.openAgain(t, opts)
		stop := RunBox(t, o)
		for i := range 90 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		machine.set(30 * 24 * time.Hour)
		e := Event("call.completed", "after")
		e.Time = machine.now()
		MustAppend(t, o, e)
		time.Sleep(time.Minute)
		stop()
		closeBox()
		opts.Clock = machine.clock(time.Time{}) // a restart, two minutes after the step
		o, _ = s.openAgain(t, opts)
		stop = RunBox(t, o)
		time.Sleep(3 * time.Minute)
		page, err := o.Events(store.EventQuery{Endpoint: "reader", Limit: 1000})
		if len(page.Events) != 91 || err != nil {
			t.Errorf("six minutes after the step %d of 91 can be read, %v", len(page.Events), err)
		}
		stop()
	})
}

// TestManyEventsOfAWrongClockGoWithTheNextOnes checks that what a wrong clock has dated is removed
// with what came after it, however much there is.
func (s suite) TestManyEventsOfAWrongClockGoWithTheNextOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var machine machineClock
		reader := Endpoint("reader")
		reader.URL, reader.Secrets = "", nil
		built := time.Now().Add(time.Hour)
		engine := s.openEngine(t, Options{Endpoints: []store.Endpoint{reader}, Clock: machine.clock(built)})
		var list []telephony.Event
		for i := range 8192 { // more than are looked at in one transaction
			list = append(list, Event("call.completed", fmt.Sprint(i)))
		}
		appendTo(t, engine, list...)
		kept := func() int {
			if _, err := engine.Prune(t.Context(), store.Retention{MaxAge: 24 * time.Hour}); err != nil {
				t.Error(err)
			}
			return storedEvents(t, engine)
		}
		time.Sleep(2 * time.Hour)
		appendTo(t, engine, Event("call.completed", "after"))
		time.Sleep(46 * time.Hour)
		appendTo(t, engine, Event("call.completed", "new")) // 48 hours after the first
		if n := kept(); n != 1 {
			t.Errorf("with a retention of a day, %d events are kept after two days, want 1", n)
		}
		time.Sleep(30 * 24 * time.Hour)
		appendTo(t, engine, Event("call.completed", "a month later"))
		if n := kept(); n != 1 {
			t.Errorf("after a month %d", n)
		}
	})
}
