package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// What an endpoint's health becomes by how attempts end.
func TestHealth(t *testing.T) {
	now := time.Unix(1e9, 0)
	const middle = 0.5
	failed, taken := outcome{status: 503}, outcome{status: 200}
	after := func(h health, probe bool, list ...outcome) health {
		for _, o := range list {
			h = h.after(o, probe, now, middle)
		}
		return h
	}
	well := health{}
	shaky := after(well, false, slices.Repeat([]outcome{failed}, 19)...)
	failing := after(shaky, false, outcome{err: errors.New("refused")})
	for _, c := range []struct {
		name  string
		h     health
		state string
		slots int
		in    time.Duration // until it is tried, if it is not now
	}{
		{"well", well, stateOK, 16, 0},
		{"19 failures", shaky, stateOK, 16, 0},
		{"19 failures and a success", after(shaky, false, taken, failed), stateOK, 16, 0},
		{"20 failures", failing, stateFailing, 0, 5 * time.Second},
		{"one more that was under way", after(failing, false, failed), stateFailing, 0, 5 * time.Second},
		{"a probe failed", after(failing, true, failed), stateFailing, 0, 10 * time.Second},
		{"four probes failed", after(failing, true, failed, failed, failed, failed), stateFailing, 0, 80 * time.Second},
		{"many probes failed", after(failing, true, slices.Repeat([]outcome{failed}, 300)...), stateFailing, 0, 5 * time.Minute},
		{"a success that was under way", after(failing, false, taken), stateOK, 16, 0},
		{"a probe went well", after(failing, true, failed, taken), stateOK, 16, 0},
		{"429 without a time", after(well, false, outcome{status: 429}), stateOK, 16, 0},
		{"429 with a time", after(well, false, outcome{status: 429, retryAfter: time.Minute}), statePaused, 0, time.Minute},
		{"the longer pause counts", after(well, false, outcome{status: 429, retryAfter: time.Minute}, outcome{status: 429, retryAfter: time.Second}), statePaused, 0, time.Minute},
		{"a success does not end a pause", after(well, false, outcome{status: 429, retryAfter: time.Minute}, taken), statePaused, 0, time.Minute},
		{"429 without a time, again and again", after(well, false, slices.Repeat([]outcome{{status: 429}}, 20)...), stateFailing, 0, 5 * time.Second},
		{"no 429 with a time counts", after(well, false, slices.Repeat([]outcome{{status: 429, retryAfter: time.Second}}, 100)...), statePaused, 0, time.Second},
		{"503 with a time is none", after(well, false, outcome{status: 503, retryAfter: time.Minute}), stateOK, 16, 0},
	} {
		state, at := c.h.state(now)
		slots, _ := c.h.allows(now, 16)
		if state != c.state || slots != c.slots || c.in > 0 && at.Sub(now) != c.in {
			t.Errorf("%s: %s, %d attempts, in %s; want %s, %d, %s", c.name, state, slots, at.Sub(now), c.state, c.slots, c.in)
		}
		if slots, _ := c.h.allows(now.Add(time.Hour), 16); c.state == stateFailing && slots != 1 {
			t.Errorf("%s: an hour later %d attempts", c.name, slots)
		}
	}
}

// A probe that is answered 410 is about the endpoint, not about the event it was made with: that
// waits on, and is delivered once the endpoint is well.
func TestProbeAnsweredGone(t *testing.T) {
	var status atomic.Int64
	status.Store(http.StatusServiceUnavailable)
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(int(status.Load())) }}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{endpoint("crm")}})
		stop := run(t, o)
		for i := range 30 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		status.Store(http.StatusGone)
		time.Sleep(time.Hour)
		if got := states(t, o, "crm"); got[pending] != 30 {
			t.Errorf("after an hour of 410: %v", got)
		}
		status.Store(http.StatusOK)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		stop()
		if got := states(t, o, "crm"); got[delivered] != 30 {
			t.Errorf("once it is well: %v", got)
		}
	})
}

// gauge counts what is under way at once, and when each began.
type gauge struct {
	mu        sync.Mutex
	now, most int
	began     []time.Time
}

func (g *gauge) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now++
	g.most = max(g.most, g.now)
	g.began = append(g.began, time.Now())
}

func (g *gauge) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now--
}

// A CRM is down for a day with 100,000 events, then up. Meanwhile it is probed now and then; afterwards everything arrives, in order within each
// call, with no more requests at once than CONCURRENCY and within the rate, and no delivery has died of the day.
func TestDownForADay(t *testing.T) {
	skipBulk(t)
	t.Parallel()
	const (
		perAppend, perCall     = 200, 4
		concurrency, perSecond = 64, 20_000

		events = dayOfEvents
	)
	var up atomic.Bool
	var g gauge
	last, missed := map[string]int{}, 0
	var mu sync.Mutex
	c := &crm{forget: true}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		g.enter()
		defer g.leave()
		time.Sleep(3200 * time.Microsecond)
		if !up.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		call, n := callOf(t, r)
		if n != last[call]+1 {
			missed++
		}
		last[call] = n
	}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Concurrency, e.Rate = concurrency, perSecond
		var log lockedBuffer
		o := openOutbox(t, Options{
			DialContext: c.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: []time.Duration{time.Second, time.Minute},
			Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
		stop := run(t, o)
		var batch []telephony.Event
		for i := range events {
			batch = append(batch, event("call.completed", fmt.Sprint(i/perAppend*perAppend+i%(perAppend/perCall))))
			if len(batch) == perAppend {
				mustAppend(t, o, batch...)
				batch = nil
				time.Sleep(24 * time.Hour / time.Duration(events/perAppend))
			}
		}
		synctest.Wait()
		if n := c.count(); n < 24*60/5 || n > 24*60/4+100 {
			t.Errorf("%d attempts in a day, which is not a probe every five minutes", n)
		}
		status, err := o.Endpoints()
		if err != nil || status[0].State != stateFailing || status[0].Pending != uint64(events) || status[0].Dead != 0 || status[0].LastError != "HTTP 502" {
			t.Errorf("it stands as %+v, %v", status, err)
		}
		g.mu.Lock()
		g.most, g.began = 0, nil
		g.mu.Unlock()
		up.Store(true)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		stop()
		mu.Lock()
		defer mu.Unlock()
		g.mu.Lock()
		defer g.mu.Unlock()
		if got := states(t, o, "crm"); got[delivered] != events || len(last) != events/perCall || missed > 0 {
			t.Errorf("states: %v, %d calls, %d out of order", got, len(last), missed)
		}
		if g.most != concurrency {
			t.Errorf("%d requests at once, want %d", g.most, concurrency)
		}
		for i := perSecond + 1; i < len(g.began); i++ {
			if took := g.began[i].Sub(g.began[i-perSecond-1]); took < time.Second {
				t.Fatalf("%d requests in %s", perSecond+2, took)
			}
		}
		if n := strings.Count(log.String(), "endpoint is failing"); n != 1 {
			t.Errorf("that it is failing is said %d times", n)
		}
	})
}

// One event that a CRM cannot digest does not keep it failing: the next probe takes another.
func TestProbesTakeTurns(t *testing.T) {
	var up atomic.Bool
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); !up.Load() || call == "poison" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
	bubble(t, c, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "outbox.db")
		o := openOutbox(t, Options{Path: path, DialContext: c.net.Dial, RetrySchedule: slices.Repeat([]time.Duration{5 * time.Minute}, 100)})
		stop := run(t, o)
		mustAppend(t, o, event("call.incoming", "poison"), event("call.incoming", "A"), event("call.completed", "A"))
		time.Sleep(2 * time.Hour)
		if status, _ := o.Endpoints(); status[0].State != stateFailing {
			t.Errorf("it stands as %+v", status)
		}
		up.Store(true)
		time.Sleep(11 * time.Minute) // two probes
		if got := states(t, o, "crm"); got[delivered] != 2 {
			t.Errorf("states: %v", got)
		}
		if status, _ := o.Endpoints(); status[0].State != stateOK || status[0].Pending != 1 {
			t.Errorf("it stands as %+v", status)
		}
		stop()
	})
}

// A CRM that takes ten a second and answers 503 to all beyond that is failing again and again. Waits that are cut short by that use up no schedule.
func TestWaitsCutShortDoNotCount(t *testing.T) {
	var mu sync.Mutex
	var taken time.Time
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) {
		time.Sleep(time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		if time.Since(taken) < 100*time.Millisecond {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		taken = time.Now()
	}}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, RetrySchedule: []time.Duration{5 * time.Second, 5 * time.Minute, time.Hour, 2 * time.Hour, 5 * time.Hour}})
		stop := run(t, o)
		for i := range 300 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(2 * time.Minute)
		stop()
		if got := states(t, o, "crm"); got[dead] > 0 {
			t.Errorf("two minutes later: %v, %d requests", got, c.count())
		}
	})
}

// A pause keeps its reason when an attempt that was under way is answered well.
func TestAPauseKeepsItsReason(t *testing.T) {
	now := time.Now()
	h := health{}.after(outcome{status: http.StatusTooManyRequests, retryAfter: time.Minute}, false, now, 0).after(outcome{status: http.StatusOK}, false, now, 0)
	if state, _ := h.state(now); state != statePaused || h.lastError != "HTTP 429" {
		t.Errorf("%s: %q", state, h.lastError)
	}
}

// A 429 with a Retry-After stops everything for the endpoint, not only the event that it answered.
func TestPause(t *testing.T) {
	c := &crm{answer: func(n int, _ received, w http.ResponseWriter) {
		if n == 1 {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial})
		stop := run(t, o)
		began := time.Now()
		mustAppend(t, o, event("call.incoming", "A"))
		synctest.Wait()
		mustAppend(t, o, event("call.incoming", "B"))
		synctest.Wait()
		if status, _ := o.Endpoints(); status[0].State != statePaused || !status[0].NextAttempt.Equal(began.Add(30*time.Second)) {
			t.Errorf("it stands as %+v", status)
		}
		time.Sleep(time.Minute)
		stop()
		hooks := c.received()
		if len(hooks) != 3 {
			t.Fatalf("%d attempts", len(hooks))
		}
		for _, h := range hooks[1:] {
			if wait := h.at.Sub(began); wait < 30*time.Second {
				t.Errorf("an attempt after %s", wait)
			}
		}
	})
}

// What waits for its turn at an endpoint that is busy does not get it when it is no longer to be sent then: it waits in the outbox, or has expired.
func TestOvertaken(t *testing.T) {
	// Each first attempt takes so long that the second event waits for it.
	const busy = 2 * time.Second
	refuse := func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }
	for name, c := range map[string]struct {
		failures int // attempts that have failed before
		first    func(int, received, http.ResponseWriter)
		ringing  time.Duration
		stop     bool          // while it waits
		from     time.Duration // when it is sent at the earliest, after the beginning; 0 is never
		state    state
	}{
		"a pause": {first: func(_ int, _ received, w http.ResponseWriter) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(429)
		}, ringing: time.Hour, from: 32 * time.Second, state: delivered},
		"a failure": {failures: failingAfter - 1, first: refuse, ringing: time.Hour, from: 6 * time.Second, state: delivered},
		"too late":  {first: func(int, received, http.ResponseWriter) {}, ringing: time.Second, state: expired},
		"the end":   {first: func(int, received, http.ResponseWriter) {}, ringing: time.Hour, stop: true, state: pending},
		"nothing":   {first: refuse, ringing: time.Hour, from: busy, state: delivered},
	} {
		t.Run(name, func(t *testing.T) {
			receiver := &crm{}
			receiver.answer = func(n int, r received, w http.ResponseWriter) {
				switch call, _ := callOf(t, r); call {
				case "before":
					refuse(n, r, w)
				case "first":
					time.Sleep(busy)
					c.first(n, r, w)
				}
			}
			bubble(t, receiver, func(t *testing.T) {
				e := endpoint("crm")
				e.Concurrency, e.RingingTTL = 1, c.ringing
				o := openOutbox(t, Options{DialContext: receiver.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: []time.Duration{10 * time.Hour}, Grace: time.Minute})
				stop := run(t, o)
				for range c.failures {
					mustAppend(t, o, event("call.completed", "before"))
				}
				time.Sleep(time.Hour)
				began := time.Now()
				mustAppend(t, o, event("call.completed", "first"))
				synctest.Wait()
				mustAppend(t, o, event("call.incoming", "second"))
				synctest.Wait()
				if c.stop {
					stop()
				}
				time.Sleep(time.Minute)
				stop()
				sent := time.Duration(0)
				for _, r := range receiver.received() {
					if call, _ := callOf(t, r); call == "second" {
						sent = r.at.Sub(began)
					}
				}
				list, _, err := o.Deliveries(DeliveryQuery{CallID: "second", Limit: 10})
				if err != nil || len(list) != 1 || list[0].State != c.state.String() || sent < c.from || (sent > 0) != (c.from > 0) {
					t.Errorf("it was sent after %s, want %s or more; %+v, want %s (%v)", sent, c.from, list, c.state, err)
				}
			})
		})
	}
}

// Without a limit everything goes at once; with one, a request after the other.
func TestRate(t *testing.T) {
	for rate, want := range map[float64]time.Duration{0: 0, 2: 9500 * time.Millisecond, 0.5: 38 * time.Second} {
		c := &crm{}
		bubble(t, c, func(t *testing.T) {
			e := endpoint("crm")
			e.Rate = rate
			o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
			stop := run(t, o)
			began := time.Now()
			for i := range 20 {
				mustAppend(t, o, event("call.incoming", fmt.Sprint(i)))
			}
			time.Sleep(time.Minute)
			stop()
			hooks := c.received()
			if took := hooks[len(hooks)-1].at.Sub(began); len(hooks) != 20 || took.Round(50*time.Millisecond) != want {
				t.Errorf("rate %v: %d requests in %s, want %s", rate, len(hooks), took, want)
			}
		})
	}
}

// A request that comes late does not take the next one's time: those behind it keep their distance.
func TestRateBehindSlowRequests(t *testing.T) {
	c := &crm{answer: func(n int, _ received, _ http.ResponseWriter) {
		if n <= 2 {
			time.Sleep(5 * time.Second)
		}
	}}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Rate, e.Concurrency = 2, 2
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
		stop := run(t, o)
		for i := range 10 {
			mustAppend(t, o, event("call.incoming", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		stop()
		hooks := c.received()
		for i := range hooks[1:] {
			if gap := hooks[i+1].at.Sub(hooks[i].at); gap < 490*time.Millisecond {
				t.Errorf("request %d came %s after the one before it", i+2, gap)
			}
		}
		if len(hooks) != 10 {
			t.Errorf("%d requests", len(hooks))
		}
	})
}

// givenUp counts what is given up.
type givenUp struct {
	unobserved
	n atomic.Int64
}

func (g *givenUp) GivenUp(_ string, n int) { g.n.Add(int64(n)) }

// An endpoint that never returns does not fill the disk for ever: what has waited longer than the retention and the schedule together goes.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }}
	bubble(t, c, func(t *testing.T) {
		var log lockedBuffer
		gone := &givenUp{}
		o := openOutbox(t, Options{
			DialContext: c.net.Dial, RetrySchedule: []time.Duration{24 * time.Hour}, Retention: 48 * time.Hour, OrderHold: 1000 * time.Hour,
			Logger: slog.New(slog.NewTextHandler(&log, nil)), Observer: gone,
		})
		stop := run(t, o)
		for i := range 30 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)), event("pz.event", fmt.Sprint(i)))
		}
		time.Sleep(71 * time.Hour)
		if got := states(t, o, "crm"); got[pending] != 60 {
			t.Errorf("before its time: %v", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := keys(t, o); n != 0 || strings.Count(log.String(), "events were given up") != 1 {
			t.Errorf("afterwards %d keys are left", n)
		}
		stop()
		if gone.n.Load() != 60 {
			t.Errorf("%d were counted as given up", gone.n.Load())
		}
	})
}

// An endpoint that only asks to wait is not abandoned.
func TestPausedIsNotAbandoned(t *testing.T) {
	o := openOutbox(t, Options{})
	now := time.Now()
	for want, h := range map[int]health{0: {pausedUntil: now.Add(time.Hour)}, 1: {failing: true, since: now, probeAt: now.Add(time.Hour)}} {
		o.lanes[0].health = h
		if got := o.abandoned(100_000 * time.Hour); got["crm"] != (want == 1) {
			t.Errorf("%+v: abandoned are %v", h, got)
		}
	}
}

// A Retry-After that is a date, by a clock that goes wrong, pauses an endpoint no longer than one in seconds.
func TestRetryAfterDateIsBounded(t *testing.T) {
	c := &crm{answer: func(n int, _ received, w http.ResponseWriter) {
		if n == 1 {
			w.Header().Set("Retry-After", time.Now().Add(48*time.Hour).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial})
		defer run(t, o)()
		mustAppend(t, o, event("call.completed", "5"))
		time.Sleep(2 * time.Hour) // maxRetryAfter is 1h
		synctest.Wait()
		if n := c.count(); n != 2 {
			list, _ := o.Endpoints()
			t.Errorf("after two hours %d attempts; the endpoint is %s until %s (now %s)", n, list[0].State, list[0].NextAttempt, time.Now())
		}
	})
}

// What is told of an endpoint is told in the order in which it came to be, whoever's attempt has brought it.
func TestTurnsAreToldInOrder(t *testing.T) {
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		switch call, _ := callOf(t, r); call {
		case "hangs":
			time.Sleep(10 * time.Second)
		case "question":
			time.Sleep(101 * time.Millisecond)
		case "last":
			time.Sleep(100 * time.Millisecond)
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	bubble(t, c, func(t *testing.T) {
		var log lockedBuffer
		o := openOutbox(t, Options{DialContext: c.net.Dial, RetrySchedule: []time.Duration{10 * time.Hour}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := run(t, o)
		for i := range failingAfter - 1 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Second)
		mustAppend(t, o, event("call.completed", "hangs"), event("call.completed", "last"), event("call.transfer_requested", "question"))
		time.Sleep(time.Second)
		_, after, fails := strings.Cut(log.String(), "endpoint is failing")
		if !fails || !strings.Contains(after, "endpoint has recovered") {
			t.Error(log.String())
		}
		time.Sleep(10 * time.Second)
		stop()
	})
}

// An endpoint that has begun to fail gets one attempt at a time, whatever was ordered before and had to wait for a worker.
func TestFailingWhileOrdersWait(t *testing.T) {
	var g gauge
	c := &crm{}
	c.answer = func(n int, r received, w http.ResponseWriter) {
		if n <= 8 {
			time.Sleep(time.Minute)
		} else if call, _ := callOf(t, r); call[0] == 'w' {
			g.enter()
			defer g.leave()
			time.Sleep(time.Second)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Concurrency, e.Timeout = 8, time.Hour
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: []time.Duration{10 * time.Hour}})
		stop := run(t, o)
		for _, kind := range []string{"hangs", "waits"} {
			for i := range e.Concurrency {
				mustAppend(t, o, event("call.completed", fmt.Sprint(kind, i)))
			}
		}
		synctest.Wait()
		for i := range failingAfter / (1 + len(askAgain)) {
			mustAppend(t, o, event("call.transfer_requested", fmt.Sprint("q", i)))
		}
		time.Sleep(2 * time.Hour) // probes take turns
		stop()
		if g.most != 1 {
			t.Errorf("%d at once", g.most)
		}
	})
}

// fuse counts lines, and calls blow at the hundredth.
type fuse struct {
	lines atomic.Int64
	blow  func()
}

func (f *fuse) Write(p []byte) (int, error) {
	if f.lines.Add(1) == 100 {
		f.blow()
	}
	return len(p), nil
}

// When the shutdown's time is up and Run has not been told to end, nothing is sent any more, and the lane does not turn round and round.
func TestGraceIsOverBeforeRunEnds(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		log := &fuse{blow: cancel}
		stopping, stopped := context.WithCancel(t.Context())
		o := openOutbox(t, Options{DialContext: c.net.Dial, Stopping: stopping, Logger: slog.New(slog.NewTextHandler(log, nil))})
		var running sync.WaitGroup
		running.Go(func() { _ = o.Run(ctx, nobody{}) })
		stopped()
		time.Sleep(6 * time.Second) // the grace is five
		mustAppend(t, o, event("call.completed", "A"))
		time.Sleep(time.Second)
		cancel()
		running.Wait()
		if n := log.lines.Load(); n > 2 || c.count() != 0 {
			t.Errorf("%d lines, %d webhooks", n, c.count())
		}
	})
}
