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
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// list gives the deliveries that a query is for, page by page.
func list(t *testing.T, o engine, q DeliveryQuery) (all []Delivery) {
	t.Helper()
	for {
		page, cursor, err := o.Deliveries(q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 && q.Cursor != "" {
			t.Error("nothing follows the cursor that the page before has given")
		}
		if all = append(all, page...); cursor == "" {
			return all
		}
		if len(page) != q.Limit {
			t.Fatalf("a page of %d with a cursor, the limit is %d", len(page), q.Limit)
		}
		q.Cursor = cursor
	}
}

// What is listed, in which order, and what one delivery tells of its attempts.
func TestDeliveries(t *testing.T) {
	c := &crm{answer: func(n int, r received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "1" {
			w.WriteHeader(http.StatusGone)
			_, _ = fmt.Fprint(w, "no POST /hook?token=t0psecret; token t0psecret; "+strings.Repeat("ж", 3000))
		}
	}}
	bubble(t, c, func(t *testing.T) {
		other := endpoint("other")
		other.Events = Filter{"call.completed"}
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{endpoint("crm"), other}})
		stop := run(t, o)
		for i := range 5 {
			mustAppend(t, o, event("call.incoming", fmt.Sprint(i)), event("call.completed", fmt.Sprint(i)))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		stop()
		mustAppend(t, o, event("call.completed", "9")) // waits
		for limit := range 17 {
			if got := list(t, o, DeliveryQuery{Limit: limit + 1}); len(got) != 17 {
				t.Errorf("by %d at once: %d deliveries", limit+1, len(got))
			} else if got[0].CallID != "9" || got[0].Endpoint != "crm" || got[1].Endpoint != "other" || got[16].CallID != "0" || got[16].Type != "call.incoming" {
				t.Errorf("by %d at once the order is %v", limit+1, got)
			}
		}
		for want, q := range map[int]DeliveryQuery{
			2:  {State: "pending"},
			3:  {State: "dead"},
			12: {State: "delivered"},
			0:  {State: "expired"},
			11: {Endpoint: "crm"},
			6:  {Endpoint: "other", CallID: ""},
			1:  {Endpoint: "other", CallID: "4"},
		} {
			q.Limit = 3
			if got := list(t, o, q); len(got) != want {
				t.Errorf("%+v: %d deliveries, want %d", q, len(got), want)
			}
		}
		dead := list(t, o, DeliveryQuery{State: "dead", CallID: "1", Endpoint: "crm", Limit: 1})[1]
		d, attempts, err := o.Delivery(dead.ID)
		if err != nil || d != dead || len(attempts) != 1 {
			t.Fatalf("%+v, %v, %v", d, attempts, err)
		}
		if d.ID != d.EventID+".crm" || d.Sequence != 1 || d.Attempts != 1 || d.LastStatus != 410 || d.Ended.IsZero() || !d.NextAttempt.IsZero() {
			t.Errorf("it stands as %+v", d)
		}
		a := attempts[0]
		if a.Status != 410 || len(a.Response) != keptResponse || strings.Contains(a.Response, "t0psecret") || !strings.HasPrefix(a.Response, "no POST (hidden); token (hidden); ж") {
			t.Errorf("the attempt: %+v", a)
		}
		for _, id := range []string{"", "x", ".crm", d.EventID, d.EventID + ".nobody", "019376aa-0000-7000-8000-000000000001.crm"} {
			if _, _, err := o.Delivery(id); !errors.Is(err, ErrNotFound) {
				t.Errorf("%q: %v", id, err)
			}
		}
		for _, cursor := range []string{"x", "5", "-1.crm"} {
			if _, _, err := o.Deliveries(DeliveryQuery{Cursor: cursor, Limit: 1}); !errors.Is(err, ErrBadCursor) {
				t.Errorf("cursor %q: %v", cursor, err)
			}
		}
		if _, _, err := o.Deliveries(DeliveryQuery{State: "lost", Limit: 1}); !errors.Is(err, ErrBadState) {
			t.Errorf("a state that there is not: %v", err)
		}
	})
}

// Of a delivery's attempts the last ten are kept.
func TestLastAttempts(t *testing.T) {
	c := &crm{answer: func(n int, _ received, w http.ResponseWriter) {
		w.WriteHeader(500 + n)
		_, _ = fmt.Fprintf(w, "answer %d", n)
		time.Sleep(20 * time.Millisecond)
	}}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, RetrySchedule: slices.Repeat([]time.Duration{time.Second}, 14)})
		stop := run(t, o)
		e := event("call.completed", "5")
		mustAppend(t, o, e)
		time.Sleep(time.Minute)
		stop()
		d, attempts, err := o.Delivery(e.ID + ".crm")
		if err != nil || d.Attempts != 15 || len(attempts) != keptAttempts {
			t.Fatalf("%+v, %d attempts, %v", d, len(attempts), err)
		}
		for i, a := range attempts {
			if n := 6 + i; a.Status != 500+n || a.Response != fmt.Sprintf("answer %d", n) || a.Took != 20*time.Millisecond || a.Error != "" {
				t.Errorf("attempt %d: %+v", n, a)
			}
		}
	})
}

// Many at once: by state, type and time, only counted or for real; also for an endpoint that was not there when the events came.
func TestRedeliverAll(t *testing.T) {
	t.Parallel()
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "1" && r.path == "/crm" {
			w.WriteHeader(http.StatusGone)
		}
	}
	bubble(t, c, func(t *testing.T) {
		one, late := endpoint("crm"), endpoint("late")
		one.URL, late.URL = "http://x/crm", "http://x/late"
		late.Events = Filter{"call.completed"}
		opts := Options{Path: filepath.Join(t.TempDir(), "outbox.db"), DialContext: c.net.Dial, Endpoints: []Endpoint{one}, Retention: time.Hour, MaxBytes: 1 << 30, RoutingTimeout: time.Second, OrderHold: time.Hour, Grace: time.Second, Logger: slog.New(slog.DiscardHandler)}
		before, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, before)
		began := time.Now()
		for i := range 600 { // more than one transaction's
			mustAppend(t, before, event("call.incoming", fmt.Sprint(i%2)), event("call.completed", fmt.Sprint(i%2)))
			time.Sleep(time.Second)
		}
		stop()
		if err := before.Close(); err != nil {
			t.Fatal(err)
		}
		opts.Endpoints = append(opts.Endpoints, late)
		o := openOutbox(t, opts)
		stop = run(t, o)
		synctest.Wait()
		came := len(c.received())
		if n := len(list(t, o, DeliveryQuery{Endpoint: "late", Limit: 5})); n != 0 {
			t.Errorf("an endpoint that was added later has %d deliveries", n)
		}
		for _, c := range []struct {
			r    Redelivery
			want int
		}{
			{Redelivery{Endpoint: "crm"}, 1200},
			{Redelivery{Endpoint: "crm", States: []string{"dead"}}, 600},
			{Redelivery{Endpoint: "crm", States: []string{"dead", "delivered", "expired"}, Types: []telephony.EventType{"call.incoming"}}, 600},
			{Redelivery{Endpoint: "crm", States: []string{"expired"}}, 0},
			{Redelivery{Endpoint: "crm", Since: began.Add(100 * time.Second), Until: began.Add(200 * time.Second)}, 200},
			{Redelivery{Endpoint: "late"}, 600},
			{Redelivery{Endpoint: "late", States: []string{"dead", "expired", "delivered"}}, 0},
			{Redelivery{Endpoint: "late", States: []string{Missing}, Since: began.Add(590 * time.Second)}, 10},
		} {
			c.r.DryRun = true
			if n, err := o.RedeliverAll(t.Context(), c.r); n != c.want || err != nil {
				t.Errorf("%+v: %d, %v; want %d", c.r, n, err, c.want)
			}
		}
		if some, next, err := o.store.redeliverSome(Redelivery{Endpoint: "crm", DryRun: true}, 0, 3); some != 3 || next != 4 || err != nil {
			t.Errorf("up to the third event there are %d, then %d: %v", some, next, err)
		}
		if _, err := o.RedeliverAll(t.Context(), Redelivery{Endpoint: "nobody"}); !errors.Is(err, ErrNoEndpoint) {
			t.Error(err)
		}
		for _, s := range []string{"pending", "lost"} {
			if _, err := o.RedeliverAll(t.Context(), Redelivery{Endpoint: "crm", States: []string{s}}); !errors.Is(err, ErrBadState) {
				t.Error(err)
			}
		}
		synctest.Wait()
		if n := len(c.received()); n != came {
			t.Fatalf("counting sent %d webhooks", n-came)
		}
		for name, want := range map[string]int{"crm": 1200, "late": 600} {
			if n, err := o.RedeliverAll(t.Context(), Redelivery{Endpoint: name}); n != want || err != nil {
				t.Errorf("%s: %d, %v", name, n, err)
			}
		}
		synctest.Wait()
		stop()
		last := map[string]int{}
		for _, h := range c.received()[came:] {
			call, n := callOf(t, h)
			if key := h.path + call; n <= last[key] {
				t.Errorf("%s: %d after %d", key, n, last[key])
			} else {
				last[key] = n
			}
		}
		if got := states(t, o, "late"); got[delivered] != 600 {
			t.Errorf("states of the one that was added: %v", got)
		}
		if got := states(t, o, "crm"); got[delivered] != 600 || got[dead] != 600 {
			t.Errorf("states: %v", got)
		}
	})
}

// What waits for a name that is configured no longer is told once at the start.
func TestOrphans(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	before, err := Open(Options{Path: path, Endpoints: []Endpoint{endpoint("crn")}, Retention: time.Hour, MaxBytes: 1 << 30, RoutingTimeout: time.Second, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, before, event("call.incoming", "5"), event("call.incoming", "6"))
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	o := openOutbox(t, Options{Path: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "endpoint=crn deliveries=2") {
		t.Errorf("the log:\n%s", text)
	}
	if n := len(list(t, o, DeliveryQuery{Endpoint: "crn", Limit: 5})); n != 2 {
		t.Errorf("%d of the 2 are listed", n)
	}
	if _, err := o.Redeliver(list(t, o, DeliveryQuery{Limit: 1})[0].ID); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("delivered again to nobody: %v", err)
	}
}

// A delivery that cannot be made, since a record is damaged, is dead and holds nothing of its call.
func TestDamagedRecordHoldsNothing(t *testing.T) {
	for name, damage := range map[string]func(tx *txn) error{
		"the event's":    func(tx *txn) error { return tx.events.Put(number(1), []byte("x")) },
		"the delivery's": func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(1), []byte("x")) },
	} {
		t.Run(name, func(t *testing.T) {
			c := &crm{}
			bubble(t, c, func(t *testing.T) {
				opts := withDefaults(t, Options{DialContext: c.net.Dial, Logger: slog.New(slog.DiscardHandler)})
				o, err := Open(opts)
				if err != nil {
					t.Fatal(err)
				}
				mustAppend(t, o, event("call.incoming", "5"), event("call.completed", "5"))
				if err := errors.Join(o.store.commit(damage), o.Close()); err != nil {
					t.Fatal(err)
				}
				if o, err = Open(opts); err != nil { // nothing new comes that would wake the lane
					t.Fatal(err)
				}
				stop := run(t, o)
				time.Sleep(2 * storeAgain)
				stop()
				if got := states(t, o, "crm"); got[pending] != 0 || got[delivered] != 1 || got[dead] != 1 {
					t.Errorf("states: %v", got)
				}
				if n := dueKeys(t, o); n != 0 {
					t.Errorf("%d are left in the due index", n)
				}
				if err := o.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A delivery whose record is damaged while it waits for its next attempt can be delivered again, once.
func TestRedeliverWhatIsDamaged(t *testing.T) {
	c := &crm{answer: func(n int, _ received, w http.ResponseWriter) {
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}}
	bubble(t, c, func(t *testing.T) {
		opts := withDefaults(t, Options{DialContext: c.net.Dial, Logger: slog.New(slog.DiscardHandler), RetrySchedule: []time.Duration{time.Minute}})
		o, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		e := event("call.completed", "5")
		mustAppend(t, o, e)
		stop := run(t, o)
		time.Sleep(time.Second)
		stop()
		damage := func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(1), []byte("x")) }
		if err := errors.Join(o.store.commit(damage), o.Close()); err != nil {
			t.Fatal(err)
		}
		o = openOutbox(t, opts)
		if _, err := o.Redeliver(e.ID + ".crm"); err != nil {
			t.Fatal(err)
		}
		stop = run(t, o)
		time.Sleep(30 * time.Second)
		if got := states(t, o, "crm"); got[delivered] != 1 || got[pending] != 0 || got[dead] != 0 {
			t.Errorf("states: %v", got)
		}
		if n := dueKeys(t, o); n != 0 {
			t.Errorf("%d are left in the due index", n)
		}
		stop()
	})
}

// Nor does it go wrong when it had ended before, or when the lane has found the damage and gives it up after that.
func TestRedeliverWhatIsDamagedAndWas(t *testing.T) {
	o, err := Open(withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	e := event("call.completed", "5")
	mustAppend(t, o, e, event("call.completed", "6"))
	f, err := o.store.due("crm", 1, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ended := result{job: f.jobs[0], now: f.jobs[0].delivery.ended(delivered, time.Now())}
	damage := func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(1), []byte("x")) }
	if err := errors.Join(o.store.record("crm", []result{ended}), o.store.commit(damage)); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Redeliver(e.ID + ".crm"); err != nil {
		t.Fatal(err)
	}
	if err := o.store.giveUp("crm", []uint64{1}); err != nil {
		t.Fatal(err)
	}
	if got := states(t, o, "crm"); got[pending] != 2 || got[dead] != 0 || dueKeys(t, o) != 2 {
		t.Errorf("states: %v, %d in the due index", got, dueKeys(t, o))
	}
}

// Nor when it was held.
func TestRedeliverWhatIsDamagedAndHeld(t *testing.T) {
	o := openOutbox(t, Options{})
	first, second := event("call.incoming", "5"), event("call.completed", "5")
	mustAppend(t, o, first, second)
	if err := o.store.commit(func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(2), []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Redeliver(second.ID + ".crm"); err != nil {
		t.Fatal(err)
	}
	if got := states(t, o, "crm"); got[pending] != 2 || dueKeys(t, o) != 1 {
		t.Errorf("states: %v, %d in the due index", got, dueKeys(t, o))
	}
}

// dueKeys is how many keys the due index has.
func dueKeys(t *testing.T, o *Outbox) (n int) {
	t.Helper()
	err := o.store.view(func(tx *txn) error {
		n = tx.queue("crm").due.Stats().KeyN
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// That a call rings is the winner's to know: to another it is not missing. What rang before it asked, or after it was over, is.
func TestRedeliverTellsNoLoser(t *testing.T) {
	a, b := endpoint("a"), endpoint("b")
	o := openOutbox(t, Options{Endpoints: []Endpoint{a, b}})
	at := time.Now()
	happens := func(kind telephony.EventType) {
		t.Helper()
		e := event(kind, "5")
		e.Time = at
		mustAppend(t, o, e)
		at = at.Add(time.Second)
	}
	happens("call.transfer_requested")
	if err := o.ChangeRoute("5", func(r *telephony.Route) { r.Outcome, r.Winner = telephony.RouteWon, "a" }); err != nil {
		t.Fatal(err)
	}
	happens("call.incoming")
	happens("call.incoming_answered")
	for over := range 2 {
		for name, want := range map[string]int{"a": 0, "b": 0} {
			if n, err := o.RedeliverAll(t.Context(), Redelivery{Endpoint: name, States: []string{Missing}, DryRun: true}); n != want || err != nil {
				t.Errorf("over %d times, %d are missing at %s: %v", over, n, name, err)
			}
		}
		happens("call.completed")
	}
	if list := list(t, o, DeliveryQuery{Endpoint: "b", Limit: 10}); len(list) != 3 {
		t.Errorf("the other one has %d deliveries", len(list))
	}
	// One that is configured later misses that it asked, what came of it, and not that it rang.
	o.store.endpoints = append(o.store.endpoints, endpoint("c"))
	if err := o.store.db.Update(o.store.prepare); err != nil {
		t.Fatal(err)
	}
	if n, err := o.RedeliverAll(t.Context(), Redelivery{Endpoint: "c", DryRun: true}); n != 3 || err != nil {
		t.Errorf("of one that was configured later %d are missing: %v", n, err)
	}
	happens("call.incoming") // with the same ID, after it was over
	if n, err := o.RedeliverAll(t.Context(), Redelivery{Endpoint: "c", States: []string{"delivered", "dead", "expired", Missing}, Types: []telephony.EventType{"call.incoming"}, DryRun: true}); n != 0 || err != nil {
		t.Errorf("of a later call with that ID, which it got, %d are missing: %v", n, err)
	}
}

// What is delivered again at an endpoint with a rate leaves a live call its place.
func TestRateLeavesRoomForLiveCalls(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Rate, e.Concurrency = 2, 16
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, Logger: slog.New(slog.DiscardHandler)})
		stop := run(t, o)
		for i := range 200 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i/2)))
		}
		time.Sleep(2 * time.Minute)
		if n, err := o.RedeliverAll(t.Context(), Redelivery{Endpoint: "crm"}); n != 200 || err != nil {
			t.Fatal(n, err)
		}
		for range 10 {
			time.Sleep(5 * time.Second)
			before := c.count()
			live := event("call.outgoing", "live")
			mustAppend(t, o, live)
			began := time.Now()
			for came := false; !came; {
				time.Sleep(100 * time.Millisecond)
				came = slices.ContainsFunc(c.received()[before:], func(r received) bool { return r.header.Get("webhook-id") == live.ID })
			}
			if waited := time.Since(began); waited > 4*time.Second {
				t.Errorf("a live call waits %s", waited)
			}
		}
		time.Sleep(5 * time.Minute)
		stop()
		if got := states(t, o, "crm"); got[delivered] != 210 {
			t.Errorf("states: %v", got)
		}
	})
}

// What waits longest is told by when it was read, also while it waits for its next try. What is delivered again has not waited.
func TestOldestPending(t *testing.T) {
	o := openOutbox(t, Options{})
	var events []telephony.Event
	for i := range 3 {
		e := event("call.completed", fmt.Sprint(i))
		e.Time = time.Now().Add(time.Duration(i-3) * time.Hour).UTC().Truncate(time.Millisecond)
		events = append(events, e)
	}
	mustAppend(t, o, events...)
	becomes := func(n uint64, d delivery) {
		t.Helper()
		if err := o.store.record("crm", []result{{job: job{number: n}, now: d}}); err != nil {
			t.Fatal(err)
		}
	}
	oldest := func(when string, want time.Time) {
		t.Helper()
		if at, err := o.OldestPending("crm"); err != nil || !at.Equal(want) {
			t.Errorf("%s: %s, %v; want %s", when, at, err, want)
		}
	}
	oldest("at first", events[0].Time)
	becomes(1, delivery{}.ended(delivered, time.Now()))
	oldest("the first is delivered", events[1].Time)
	if _, err := o.Redeliver(events[0].ID + ".crm"); err != nil {
		t.Fatal(err)
	}
	oldest("it is delivered again", events[1].Time)
	becomes(2, delivery{}.tried(outcome{status: 500}, []time.Duration{time.Hour}, time.Now(), 0.5))
	oldest("the second has failed", events[1].Time)
	becomes(2, delivery{}.ended(dead, time.Now()))
	oldest("the second is dead", events[2].Time)
	becomes(3, delivery{}.ended(delivered, time.Now()))
	oldest("only what is delivered again is left", time.Time{})
}

// What is delivered again goes out while the rest is still being chosen.
func TestRedeliveryWakesTheLaneAsItGoes(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{endpoint("crm")}})
		stop := run(t, o)
		var list []telephony.Event
		for i := range 4 * redeliverBatch {
			list = append(list, event("call.completed", fmt.Sprint(i)))
		}
		mustAppend(t, o, list...)
		time.Sleep(time.Minute)
		synctest.Wait()
		came := c.count()
		ctx := &stopsAfter{Context: t.Context(), left: 1} // the second batch is not begun
		if n, err := o.RedeliverAll(ctx, Redelivery{Endpoint: "crm"}); n != redeliverBatch || !errors.Is(err, errStopped) {
			t.Errorf("%d are marked, %v", n, err)
		}
		synctest.Wait()
		if sent := c.count() - came; sent < redeliverBatch {
			t.Errorf("%d are sent while the rest is chosen", sent)
		}
		stop()
	})
}

var errStopped = errors.New("stopped")

// stopsAfter is a context that has ended once it was looked at so many times.
type stopsAfter struct {
	context.Context
	left int
}

func (s *stopsAfter) Err() error {
	if s.left--; s.left < 0 {
		return errStopped
	}
	return nil
}

// An attempt that was under way when its delivery was asked for again counts as one that was made.
func TestOverruledAttemptIsCounted(t *testing.T) {
	c := &crm{answer: func(n int, _ received, w http.ResponseWriter) {
		time.Sleep(10 * time.Second)
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{endpoint("crm")}})
		stop := run(t, o)
		e := event("call.completed", "5")
		mustAppend(t, o, e)
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
