package outbox

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/internal/telephony"
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
	return clock.Reading(built, built, func() (time.Time, time.Duration) { return m.now().Round(0), time.Since(m.began) })
}

// A clock that is set forward past the retention gives up nothing that waits, neither for a CRM that
// has been failing for a minute nor for one that reads its events. After an hour it is believed; that
// an endpoint is failing is counted by the time that has passed.
func TestClockSetForward(t *testing.T) {
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }}
	bubble(t, c, func(t *testing.T) {
		var machine machineClock
		crm, reader := endpoint("crm"), endpoint("reader")
		reader.URL, reader.Secrets = "", nil
		crm.Events, reader.Events = Filter{"call.*"}, Filter{"sms.*"} // what one waits for would keep the other's
		o := openOutbox(t, Options{
			DialContext: c.net.Dial, Endpoints: []Endpoint{crm, reader}, Retention: 168 * time.Hour,
			RetrySchedule: []time.Duration{time.Minute, time.Hour}, Clock: machine.clock(time.Time{}),
		})
		stop := run(t, o)
		for i := range 100 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)), event("sms.sent", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		machine.set(30 * 24 * time.Hour)
		fresh := event("sms.sent", "new")
		fresh.Time = machine.now()
		mustAppend(t, o, fresh)
		time.Sleep(50 * time.Minute)
		page, err := o.Events(EventQuery{Endpoint: "reader", Limit: 1000})
		if got := states(t, o, "crm"); got[pending] != 100 || len(page.Events) != 101 || err != nil {
			t.Errorf("after 50 minutes: %v, %d can be read, %v", got, len(page.Events), err)
		}
		time.Sleep(24 * time.Hour)
		if got := states(t, o, "crm"); got[pending] != 100 {
			t.Errorf("after a day, of which it has been failing: %v", got)
		}
		stop()
	})
}

// How long an endpoint has been failing is kept through restarts, and begins anew once it succeeds.
func TestFailingIsCountedThroughRestarts(t *testing.T) {
	status := http.StatusServiceUnavailable
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(status) }}
	bubble(t, c, func(t *testing.T) {
		opts := withDefaults(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{endpoint("crm")}, Retention: 24 * time.Hour, RetrySchedule: []time.Duration{time.Minute}})
		failed := func() time.Duration {
			o, err := Open(opts)
			if err != nil {
				t.Fatal(err)
			}
			stop := run(t, o)
			var list []telephony.Event
			for i := range 100 {
				list = append(list, event("call.completed", fmt.Sprint(i)))
			}
			mustAppend(t, o, list...)
			time.Sleep(10 * time.Hour)
			synctest.Wait()
			stop()
			total, err := o.store.failingFor("crm", false, false, 0)
			if err := o.Close(); err != nil {
				t.Error(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			return total
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

// What came while the clock stood before the program's own day is as old as what came after it.
func TestEventsOfAWrongClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var machine machineClock
		built := time.Now()
		machine.set(-30 * 365 * 24 * time.Hour)
		reader := endpoint("reader")
		reader.URL, reader.Secrets = "", nil
		o := openOutbox(t, Options{Endpoints: []Endpoint{reader}, Retention: 24 * time.Hour, Clock: machine.clock(built)})
		if o.Writable() == nil {
			t.Error("a wrong clock is no reason to worry")
		}
		stop := run(t, o)
		for i := range 10 {
			e := event("call.completed", fmt.Sprint(i))
			e.Time = machine.now()
			mustAppend(t, o, e)
		}
		time.Sleep(time.Minute)
		machine.set(0)
		e := event("call.completed", "dated")
		mustAppend(t, o, e)
		kept := func() int { return len(list(t, o, DeliveryQuery{Limit: 1000})) }
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

// A step of the clock is doubted through a restart, also where something was stored after it.
func TestClockSetForwardAndRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var machine machineClock
		reader := endpoint("reader")
		reader.URL, reader.Secrets = "", nil
		opts := withDefaults(t, Options{Endpoints: []Endpoint{reader}, Retention: 168 * time.Hour, Clock: machine.clock(time.Time{})})
		o, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, o)
		for i := range 90 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		machine.set(30 * 24 * time.Hour)
		e := event("call.completed", "after")
		e.Time = machine.now()
		mustAppend(t, o, e)
		time.Sleep(time.Minute)
		stop()
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		opts.Clock = machine.clock(time.Time{}) // a restart, two minutes after the step
		if o, err = Open(opts); err != nil {
			t.Fatal(err)
		}
		stop = run(t, o)
		time.Sleep(3 * time.Minute)
		page, err := o.Events(EventQuery{Endpoint: "reader", Limit: 1000})
		if len(page.Events) != 91 || err != nil {
			t.Errorf("six minutes after the step %d of 91 can be read, %v", len(page.Events), err)
		}
		stop()
		_ = o.Close()
	})
}

// What a wrong clock has dated goes with what came after it, however much there is.
func TestManyEventsOfAWrongClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var machine machineClock
		reader := endpoint("reader")
		reader.URL, reader.Secrets = "", nil
		built := time.Now().Add(time.Hour)
		o := openOutbox(t, Options{Endpoints: []Endpoint{reader}, Retention: 24 * time.Hour, Clock: machine.clock(built)})
		var list []telephony.Event
		for i := range 2 * readAtOnce {
			list = append(list, event("call.completed", fmt.Sprint(i)))
		}
		mustAppend(t, o, list...)
		kept := func() (n int) {
			p := pruning{store: o.store, clock: o.opts.Clock, maxAge: o.opts.Retention}
			if err := p.run(context.Background()); err != nil {
				t.Error(err)
			}
			_ = o.store.view(func(tx *txn) error { n = tx.events.Stats().KeyN; return nil })
			return n
		}
		time.Sleep(2 * time.Hour)
		mustAppend(t, o, event("call.completed", "after"))
		time.Sleep(46 * time.Hour)
		mustAppend(t, o, event("call.completed", "new")) // 48 hours after the first
		if n := kept(); n != 1 {
			t.Errorf("with a retention of a day, %d events are kept after two days, want 1", n)
		}
		time.Sleep(365 * 24 * time.Hour)
		mustAppend(t, o, event("call.completed", "a year later"))
		if n := kept(); n != 1 {
			t.Errorf("after a year %d", n)
		}
	})
}
