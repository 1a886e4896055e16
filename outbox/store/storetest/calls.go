package storetest

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// overlaps is an answer of a CRM that fails the test where two webhooks of one call are under way.
type overlaps struct {
	t     *testing.T
	takes func(call string, sequence, try int) (time.Duration, int) // how long an answer takes, and its status

	mu       sync.Mutex
	underWay map[string]int // sequences by call
	tries    map[string]int // by call and sequence
}

func newOverlaps(t *testing.T, takes func(call string, sequence, try int) (time.Duration, int)) *overlaps {
	return &overlaps{
		t:        t,
		takes:    takes,
		underWay: map[string]int{},
		tries:    map[string]int{},
	}
}

func (o *overlaps) answer(_ int, r Received, w http.ResponseWriter) {
	call, n := callOf(o.t, r)
	o.mu.Lock()
	if other := o.underWay[call]; other != 0 && call != "" {
		o.t.Errorf("event %d of call %s came while %d was under way", n, call, other)
	}
	o.underWay[call] = n
	key := fmt.Sprint(call, n)
	o.tries[key]++
	takes, status := o.takes(call, n, o.tries[key])
	o.mu.Unlock()
	time.Sleep(takes)
	o.mu.Lock()
	delete(o.underWay, call)
	o.mu.Unlock()
	w.WriteHeader(status)
}

// arrivals gives when the webhooks of a call came, by event, in their order: "2 after 10s". An
// outcome is committed, and a question tried again, some milliseconds later, which are left out.
func arrivals(t *testing.T, c *CRM, call string, began time.Time) (list []string) {
	t.Helper()
	for _, h := range c.Received() {
		if of, n := callOf(t, h); of == call {
			list = append(list, fmt.Sprintf("%d after %s", n, h.At.Sub(began).Truncate(100*time.Millisecond)))
		}
	}
	return list
}

func checkArrivals(t *testing.T, c *CRM, call string, began time.Time, want ...string) {
	t.Helper()
	if got := arrivals(t, c, call, began); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("call %s: %q came, want %q", call, got, want)
	}
}

// TestARetryWaitsForTheAttemptUnderWay checks that a retry of an event that no longer holds its
// call does not go while an attempt at a later event of the call is under way, but as soon as that
// has ended; and that other calls go on meanwhile, as do events of no call.
func (s suite) TestARetryWaitsForTheAttemptUnderWay(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		c.Answer = newOverlaps(t, func(call string, sequence, try int) (time.Duration, int) {
			switch {
			case call == "A" && sequence == 1 && try == 1:
				return 0, http.StatusServiceUnavailable
			case call == "A" && sequence == 2:
				return 30 * time.Second, http.StatusOK
			}
			return 0, http.StatusOK
		}).answer
		e := Endpoint("crm")
		e.Timeout, e.Concurrency = time.Minute, 2
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{e},
			OrderHold:     10 * time.Second,
			RetrySchedule: []time.Duration{20 * time.Second, time.Hour}, // a fifth more or less
		})
		defer RunBox(t, o)()
		began := time.Now()
		MustAppend(t, o, Event("call.incoming", "A"), Event("call.incoming_answered", "A"),
			Event("call.completed", "A"))
		time.Sleep(25 * time.Second) // the second event went after 10 s, and the retry is due
		const others = 100
		for i := range others {
			MustAppend(t, o, Event("call.completed", fmt.Sprint("other ", i)), Event("pz.event", ""))
		}
		synctest.Wait()
		if n := c.Count(); n != 2+2*others || time.Since(began) != 25*time.Second {
			t.Errorf("%d webhooks had come after %s, want %d", n, time.Since(began), 2+2*others)
		}
		time.Sleep(time.Minute)
		checkArrivals(t, c, "A", began, "1 after 0s", "2 after 10s", "1 after 40s", "3 after 40s")
		if got := States(t, o, "crm"); got[store.Delivered] != 3+2*others {
			t.Errorf("states: %v", got)
		}
	})
}

// TestARedeliveryWaitsForTheAttemptUnderWay checks the same of an event that is asked for again
// while an attempt at a later event of its call is under way, be that answered or refused; and that
// other calls go on meanwhile.
func (s suite) TestARedeliveryWaitsForTheAttemptUnderWay(t *testing.T) {
	for name, status := range map[string]int{"which succeeds": http.StatusOK, "which is refused": http.StatusGone} {
		t.Run(name, func(t *testing.T) {
			c := &CRM{}
			Bubble(t, c, func(t *testing.T) {
				c.Answer = newOverlaps(t, func(call string, sequence, _ int) (time.Duration, int) {
					if call == "A" && sequence == 2 {
						return 30 * time.Second, status
					}
					return 0, http.StatusOK
				}).answer
				e := Endpoint("crm")
				e.Timeout, e.Concurrency = time.Minute, 2
				o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
				defer RunBox(t, o)()
				began := time.Now()
				first := Event("call.incoming", "A")
				MustAppend(t, o, first, Event("call.completed", "A"))
				time.Sleep(10 * time.Second)
				if _, err := o.Redeliver(first.ID + ".crm"); err != nil {
					t.Fatal(err)
				}
				MustAppend(t, o, Event("call.completed", "B"))
				time.Sleep(time.Minute)
				checkArrivals(t, c, "A", began, "1 after 0s", "2 after 0s", "1 after 30s")
				checkArrivals(t, c, "B", began, "1 after 10s")
			})
		})
	}
}

// TestAQuestionWaitsForTheAttemptUnderWay checks that a question where a call should go, which
// waits for nothing else, does not go while an attempt at an event of its call is under way, nor a
// redelivery while the question is; and that other calls go on meanwhile.
func (s suite) TestAQuestionWaitsForTheAttemptUnderWay(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		c.Answer = newOverlaps(t, func(call string, sequence, try int) (time.Duration, int) {
			if call == "A" && try == 1 {
				return 3 * time.Second, http.StatusOK
			}
			return 0, http.StatusOK
		}).answer
		o := s.open(t, Options{DialContext: c.Net.Dial})
		defer RunBox(t, o)()
		began := time.Now()
		first := Event("call.incoming", "A")
		MustAppend(t, o, first)
		time.Sleep(time.Second)
		MustAppend(t, o, Event(telephony.EventTransferRequested, "A"), Event(telephony.EventTransferRequested, "B"))
		time.Sleep(3 * time.Second) // the event has been answered, and the question is under way
		if _, err := o.Redeliver(first.ID + ".crm"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		checkArrivals(t, c, "A", began, "1 after 0s", "2 after 3s", "1 after 6s")
		checkArrivals(t, c, "B", began, "1 after 1s")
	})
}

// TestQuestionsThatWaitForTheirCallTakeNoPlace checks that, however often a call asks while another
// of its webhooks is under way, the question of another call is asked at once.
func (s suite) TestQuestionsThatWaitForTheirCallTakeNoPlace(t *testing.T) {
	const asks = 600 // more than there are places
	c := &CRM{}
	c.Answer = func(_ int, r Received, _ http.ResponseWriter) {
		if call, n := callOf(t, r); call == "5" && n == 1 {
			time.Sleep(8 * time.Second)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		b := s.open(t, Options{DialContext: c.Net.Dial})
		stop := RunBox(t, b)
		MustAppend(t, b, Event("call.completed", "5"))
		synctest.Wait()
		events := make([]telephony.Event, asks)
		for i := range events {
			events[i] = Event("call.transfer_requested", "5")
		}
		MustAppend(t, b, events...)
		time.Sleep(time.Second)
		began := time.Now()
		MustAppend(t, b, Event("call.transfer_requested", "6"))
		time.Sleep(time.Second)
		if got := arrivals(t, c, "6", began); len(got) != 1 || got[0] != "1 after 0s" {
			t.Errorf("the question of the other call came %v", got)
		}
		time.Sleep(time.Minute)
		stop()
	})
}

// TestAQuestionWaitsForNoEventThatHasNotBegun checks that a question does not wait for an event of
// its call which itself waits until the only worker has done with another call: the time for
// answers would be over by then.
func (s suite) TestAQuestionWaitsForNoEventThatHasNotBegun(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		c.Answer = newOverlaps(t, func(call string, sequence, _ int) (time.Duration, int) {
			if call == "A" && sequence == 2 {
				return 0, http.StatusOK
			}
			return 8 * time.Second, http.StatusOK
		}).answer
		e := Endpoint("crm")
		e.Concurrency = 1
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		defer RunBox(t, o)()
		began := time.Now()
		MustAppend(t, o, Event("call.completed", "B"))
		time.Sleep(100 * time.Millisecond)
		MustAppend(t, o, Event("call.incoming", "A"))
		time.Sleep(100 * time.Millisecond)
		MustAppend(t, o, Event("call.transfer_requested", "A"))
		time.Sleep(time.Minute)
		checkArrivals(t, c, "B", began, "1 after 0s")
		checkArrivals(t, c, "A", began, "2 after 200ms", "1 after 8s")
		if got := States(t, o, "crm"); got[store.Delivered] != 3 {
			t.Errorf("states: %v", got)
		}
	})
}

// TestAQuestionGoesBeforeItsCallsBacklog checks that a question goes as soon as the attempt of its
// call that is under way has ended, before all that waits of the call, which then goes on in order.
func (s suite) TestAQuestionGoesBeforeItsCallsBacklog(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		const backlog = 5
		c.Answer = newOverlaps(t, func(_ string, sequence, _ int) (time.Duration, int) {
			if sequence > backlog {
				return 0, http.StatusOK
			}
			return 2 * time.Second, http.StatusOK
		}).answer
		o := s.open(t, Options{DialContext: c.Net.Dial})
		defer RunBox(t, o)()
		began := time.Now()
		for range backlog {
			MustAppend(t, o, Event("call.outgoing", "A"))
		}
		time.Sleep(100 * time.Millisecond)
		MustAppend(t, o, Event("call.transfer_requested", "A"))
		time.Sleep(time.Minute)
		checkArrivals(t, c, "A", began,
			"1 after 0s", "6 after 2s", "2 after 2s", "3 after 4s", "4 after 6s", "5 after 8s")
	})
}

// TestAQuestionIsNotAskedOnceItIsDecided checks that a question is not asked if the caller has hung
// up while it waited for the attempt of its call that was under way.
func (s suite) TestAQuestionIsNotAskedOnceItIsDecided(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		c.Answer = newOverlaps(t, func(_ string, sequence, _ int) (time.Duration, int) {
			if sequence == 1 {
				return 5 * time.Second, http.StatusOK
			}
			return 0, http.StatusOK
		}).answer
		o := s.open(t, Options{DialContext: c.Net.Dial})
		defer RunBox(t, o)()
		began := time.Now()
		MustAppend(t, o, Event("call.incoming", "A"))
		time.Sleep(100 * time.Millisecond)
		question := Event("call.transfer_requested", "A")
		MustAppend(t, o, question)
		time.Sleep(time.Second)
		MustAppend(t, o, Event("call.completed", "A"))
		time.Sleep(time.Minute)
		checkArrivals(t, c, "A", began, "1 after 0s", "3 after 5s")
		d, attempts, err := o.Delivery(question.ID + ".crm")
		if err != nil || d.State != "expired" || d.Attempts != 0 || len(attempts) != 0 {
			t.Errorf("the question: %+v, %+v, %v", d, attempts, err)
		}
		if r, err := o.Route("A"); err != nil || r.Outcome != telephony.RouteOver {
			t.Errorf("its route: %+v, %v", r, err)
		}
	})
}
