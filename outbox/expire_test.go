package outbox

import (
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// pause answers that nothing is to be sent for an hour.
func pause(_ int, _ received, w http.ResponseWriter) {
	w.Header().Set("Retry-After", "3600")
	w.WriteHeader(http.StatusTooManyRequests)
}

// What has become too late expires on time, whatever it waits for; and what it has held goes the same way.
func TestTooLateWhileItWaits(t *testing.T) {
	const slow = 20 * time.Minute
	for name, c := range map[string]struct {
		first  int // events before it, of other calls
		answer func(int, received, http.ResponseWriter)
		rate   float64
		as     string // how the endpoint stands meanwhile
	}{
		"a pause":        {first: 1, answer: pause, as: statePaused},
		"the next probe": {first: failingAfter, answer: func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }, as: stateFailing},
		"its turn":       {first: 100, answer: func(int, received, http.ResponseWriter) {}, rate: 0.01, as: stateOK},
		"a slow CRM":     {first: 100, answer: func(int, received, http.ResponseWriter) { time.Sleep(slow) }, as: stateOK},
	} {
		t.Run(name, func(t *testing.T) {
			receiver := &crm{answer: c.answer}
			bubble(t, receiver, func(t *testing.T) {
				e := endpoint("crm")
				e.RingingTTL, e.Rate, e.Timeout = 5*time.Minute, c.rate, time.Hour
				var told expirations
				o := openOutbox(t, Options{DialContext: receiver.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: slices.Repeat([]time.Duration{time.Hour}, 9), Observer: &told})
				stop := run(t, o)
				defer time.Sleep(slow) // until the CRM has answered the last one, which the stop cuts off
				defer stop()
				for i := range c.first {
					mustAppend(t, o, event("call.completed", fmt.Sprint("before ", i)))
				}
				time.Sleep(11 * time.Minute) // the waits between probes are long by now
				mustAppend(t, o, event("call.incoming", "A"), event("call.incoming_answered", "A"), event("call.completed", "A"))
				time.Sleep(3 * time.Minute)
				mustAppend(t, o, event("call.outgoing", "B"))
				for _, want := range []struct {
					in      time.Duration
					expired int
				}{{2*time.Minute - time.Second, 0}, {5 * time.Second, 2}, {3*time.Minute - 6*time.Second, 2}, {5 * time.Second, 3}} {
					time.Sleep(want.in)
					status, err := o.Endpoints()
					if err != nil {
						t.Fatal(err)
					}
					if got := states(t, o, "crm"); got[expired] != want.expired || told.n.Load() != int64(want.expired) || got[dead] != 0 || status[0].State != c.as {
						t.Errorf("%s later: %v, the endpoint is %s; want %d expired, and %s", want.in, got, status[0].State, want.expired, c.as)
					}
				}
			})
		})
	}
}

// expirations counts them.
type expirations struct {
	unobserved
	n atomic.Int64
}

// Expired counts one.
func (e *expirations) Expired(string) { e.n.Add(1) }

// What has become too late is found also among what was read to be sent next, where it was tried before its endpoint began to fail, and behind a delivery
// that died meanwhile.
func TestTooLateWhereverItIs(t *testing.T) {
	const ttl, soon = 5 * time.Minute, 15 * time.Second
	for name, c := range map[string]struct {
		rate  float64
		given []string // what comes, as type and call
		dies  bool     // call.completed of the call "late" does, and until then what is too late is held by it
	}{
		"to be sent next":      {rate: 0.001, given: []string{"call.completed busy", "call.completed busy", "call.incoming late"}},
		"tried before":         {given: append([]string{"call.incoming late"}, slices.Repeat([]string{"call.completed busy"}, failingAfter+5)...)},
		"behind one that died": {rate: 0.001, given: []string{"call.completed busy", "call.completed late", "call.incoming late"}, dies: true},
	} {
		t.Run(name, func(t *testing.T) {
			receiver := &crm{answer: func(_ int, r received, w http.ResponseWriter) {
				time.Sleep(time.Second)
				switch call, _ := callOf(t, r); {
				case strings.HasPrefix(call, "busy") || !c.dies:
					w.WriteHeader(http.StatusBadGateway)
				case call == "late":
					w.WriteHeader(http.StatusGone)
				}
			}}
			bubble(t, receiver, func(t *testing.T) {
				e := endpoint("crm")
				e.RingingTTL, e.Rate, e.Concurrency = ttl, c.rate, 1
				var told expirations
				o := openOutbox(t, Options{
					DialContext: receiver.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: slices.Repeat([]time.Duration{24 * time.Hour}, 9), OrderHold: 48 * time.Hour, Observer: &told,
				})
				stop := run(t, o)
				defer time.Sleep(time.Second)
				defer stop()
				var events []telephony.Event
				for n, given := range c.given {
					kind, call, _ := strings.Cut(given, " ")
					if call == "busy" {
						call = fmt.Sprint("busy", n)
					}
					events = append(events, event(typeOf(kind), call))
				}
				mustAppend(t, o, events[0])
				time.Sleep(2 * time.Second) // nothing is under way when the others come
				mustAppend(t, o, events[1:]...)
				time.Sleep(ttl)
				for c.dies && states(t, o, "crm")[dead] == 0 {
					time.Sleep(time.Second)
				}
				time.Sleep(soon)
				if got := states(t, o, "crm"); got[expired] != 1 || told.n.Load() != 1 {
					t.Errorf("%v, told %d times", got, told.n.Load())
				}
			})
		})
	}
}

// News that was answered with a 429 expires on time too, and not when the pause ends that the 429 has asked for. The log says so from the start.
func TestTooLateAfterItWasTried(t *testing.T) {
	c := &crm{answer: pause}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.RingingTTL = 15 * time.Second
		var log lockedBuffer
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := run(t, o)
		defer stop()
		mustAppend(t, o, event("call.incoming", "A"))
		synctest.Wait()
		if got := log.String(); !strings.Contains(got, "expires_in=15s") || strings.Contains(got, "retry_in") {
			t.Error(got)
		}
		time.Sleep(e.RingingTTL + 2*time.Second)
		if got, _, err := o.Deliveries(DeliveryQuery{Limit: 10}); err != nil || len(got) != 1 || got[0].State != "expired" || got[0].Attempts != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// A question takes no part in the pause of its endpoint. What waits behind it has its time too once it has ended.
func TestTooLateBehindAQuestion(t *testing.T) {
	c := &crm{answer: func(n int, r received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "A" {
			time.Sleep(2 * time.Minute)
			return
		}
		pause(n, r, w)
	}}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.RingingTTL = 5 * time.Minute
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, RoutingTimeout: time.Minute})
		stop := run(t, o)
		defer stop()
		mustAppend(t, o, event("call.completed", "before"))
		time.Sleep(30 * time.Second) // what has been tried so far is looked through before the question ends
		mustAppend(t, o, event("call.transfer_requested", "A"), event("call.incoming", "A"), event("call.completed", "B"))
		time.Sleep(5*time.Minute + 5*time.Second)
		if got, _, err := o.Deliveries(DeliveryQuery{CallID: "A", Limit: 10}); err != nil || len(got) != 2 || got[0].State != "expired" || got[1].State != "expired" {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// stateOf is how the delivery of a call's only event stands.
func stateOf(t *testing.T, o *Outbox, call string) string {
	t.Helper()
	list, _, err := o.Deliveries(DeliveryQuery{CallID: call, Limit: 10})
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	return list[0].State
}

// What was tried before its endpoint began to fail is due anew then, and expires on time all the same.
func TestTooLateInLine(t *testing.T) {
	c := &crm{}
	c.answer = func(n int, r received, w http.ResponseWriter) {
		switch call, _ := callOf(t, r); call {
		case "slow":
			time.Sleep(time.Minute)
			pause(n, r, w)
			return
		case "late":
		default:
			time.Sleep(time.Second)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Concurrency, e.Timeout, e.RingingTTL = 2, time.Hour, 5*time.Minute
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: []time.Duration{10 * time.Hour, 10 * time.Hour}})
		stop := run(t, o)
		defer stop()
		mustAppend(t, o, event("call.incoming", "late"))
		synctest.Wait()
		mustAppend(t, o, event("call.completed", "slow"))
		time.Sleep(30 * time.Second)
		for i := range failingAfter {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(4*time.Minute + 40*time.Second)
		if got := stateOf(t, o, "late"); got != "expired" {
			t.Error(got)
		}
	})
}

// What is let go by the one before it in its call while its endpoint is paused expires on time, though sweeps have looked behind it already.
func TestTooLateOnceItIsLetGo(t *testing.T) {
	c := &crm{}
	c.answer = func(n int, r received, w http.ResponseWriter) {
		switch call, _ := callOf(t, r); call {
		case "A":
			time.Sleep(time.Minute)
		case "pauses":
			pause(n, r, w)
		}
	}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Timeout, e.RingingTTL = time.Hour, 5*time.Minute
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
		stop := run(t, o)
		defer stop()
		mustAppend(t, o, event("pz.event", "A"))
		synctest.Wait() // its attempt is under way before the pause begins
		mustAppend(t, o, event("call.completed", "pauses"))
		synctest.Wait()
		mustAppend(t, o, event("call.incoming", "A"))
		time.Sleep(10 * time.Second)
		mustAppend(t, o, event("call.completed", "B"))
		time.Sleep(e.RingingTTL)
		list, _, err := o.Deliveries(DeliveryQuery{CallID: "A", Limit: 10})
		if err != nil || len(list) != 2 || list[0].State != "expired" || list[1].State != "delivered" {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// A rate lets a long backlog of what never expires pass slowly. What stands behind it expires on time.
func TestTooLateBehindABacklog(t *testing.T) {
	skipBulk(t)
	t.Parallel()
	c := &crm{forget: true}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.RingingTTL, e.Rate = 5*time.Minute, 1
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, Logger: slog.New(slog.DiscardHandler)})
		stop := run(t, o)
		defer stop()
		for done := 0; done < sweepMost+1000; {
			var list []telephony.Event
			for range 1024 {
				list = append(list, event("call.completed", fmt.Sprint(done)))
				done++
			}
			mustAppend(t, o, list...)
		}
		mustAppend(t, o, event("call.incoming", "A"))
		time.Sleep(e.RingingTTL + time.Minute)
		if got := stateOf(t, o, "A"); got != "expired" {
			t.Error(got)
		}
	})
}

// An event from before the clock was set back is dated ahead. What comes after it expires on time.
func TestTooLateBehindTheFuture(t *testing.T) {
	c := &crm{answer: pause}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.RingingTTL = 15 * time.Second
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
		stop := run(t, o)
		defer stop()
		mustAppend(t, o, event("pz.event", "A"))
		synctest.Wait()
		ahead := event("call.incoming", "F")
		ahead.Time = time.Now().Add(30 * time.Minute)
		mustAppend(t, o, ahead, event("call.incoming", "B"))
		time.Sleep(30 * time.Second)
		if got := stateOf(t, o, "B"); got != "expired" {
			t.Error(got)
		}
	})
}

// The next sweep comes by the monotonic clock: it does not wait for a wall clock that was set back. The clock of a bubble has only one.
func TestSweepsGoOnWhenTheClockIsSetBack(t *testing.T) {
	o := openOutbox(t, Options{})
	e := event("call.incoming", "A")
	e.Time = time.Now().Add(-2 * time.Second)
	mustAppend(t, o, e)
	if at := o.lanes[0].sweep(time.Now()); !strings.Contains(at.String(), " m=") {
		t.Errorf("the next sweep is at %s, by the wall clock", at)
	}
}

// A delivery that somebody asks for again while it waits to be sent does not expire, and is not told to have done so.
func TestAskedForWhileItWaits(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.RingingTTL, e.Rate = 5*time.Minute, 0.001
		var told expirations
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, Observer: &told})
		stop := run(t, o)
		defer stop()
		mustAppend(t, o, event("call.completed", "x"))
		synctest.Wait()
		late := event("call.incoming", "A")
		mustAppend(t, o, late)
		time.Sleep(4 * time.Minute)
		if _, err := o.Redeliver(late.ID + ".crm"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		if got := states(t, o, "crm"); got[delivered] != 2 || told.n.Load() != 0 {
			t.Errorf("%v, told to have expired: %d", got, told.n.Load())
		}
	})
}
