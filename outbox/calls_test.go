package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
)

// An endpoint without an address reads its events; nothing is sent to it, and the cursor survives a restart. What retention has taken is told.
func TestReadingEndpoint(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		reader := endpoint("reader")
		reader.URL, reader.Secrets, reader.Format = "", nil, FormatFlat
		opts := Options{Path: filepath.Join(t.TempDir(), "outbox.db"), Endpoints: []Endpoint{endpoint("crm"), reader}, DialContext: c.net.Dial, Retention: time.Hour}
		o, closeEngine := openEngine(t, opts)
		stop := run(t, o)
		for i := range 3 {
			mustAppend(t, o, event("call.incoming", fmt.Sprint(i)))
		}
		mustAppend(t, o, event("call.transfer_requested", "q"))
		synctest.Wait()
		if got := states(t, o, "reader"); got[pending] != 4 || len(c.received()) != 4 {
			t.Errorf("states of the reader: %v, %d webhooks", got, len(c.received()))
		}
		stop()
		bodies, cursor, err := readEvents(o.(*Outbox), EventQuery{Endpoint: "reader", Limit: 2})
		if err != nil || len(bodies) != 2 || cursor != "2" {
			t.Fatalf("%d events, %s, %v", len(bodies), cursor, err)
		}
		closeEngine()
		box := openOutbox(t, opts)
		stop = run(t, box)
		defer stop()
		if bodies, cursor, err = readEvents(box, EventQuery{Endpoint: "reader", After: cursor, Limit: 9}); err != nil || len(bodies) != 2 || cursor != "4" {
			t.Fatalf("after a restart: %d events, %s, %v", len(bodies), cursor, err)
		}
		if _, err := box.Redeliver("019376aa-0000-7000-8000-000000000001.reader"); !errors.Is(err, ErrNoURL) {
			t.Errorf("redelivering to it: %v", err)
		}
		time.Sleep(30 * time.Minute)
		mustAppend(t, box, event("call.incoming", "9"))
		time.Sleep(45 * time.Minute)
		synctest.Wait()
		var pruned *PrunedError
		if _, _, err = readEvents(box, EventQuery{Endpoint: "reader", After: "2", Limit: 9}); !errors.As(err, &pruned) || pruned.Oldest != "3" {
			t.Fatalf("after the retention: %v", err)
		}
		if bodies, cursor, err = readEvents(box, EventQuery{Endpoint: "reader", After: pruned.Oldest, Limit: 9}); err != nil || cursor != "5" || len(bodies) != 2 { // the question of a call that goes on is kept
			t.Errorf("from the oldest on: %d events, %s, %v", len(bodies), cursor, err)
		}
		if bodies, _, err = readEvents(box, EventQuery{Endpoint: "reader", Limit: 9}); err != nil || len(bodies) == 0 {
			t.Errorf("from the beginning: %d events, %v", len(bodies), err)
		}
	})
}

// readEvents reads one page.
func readEvents(o *Outbox, q EventQuery) (bodies [][]byte, cursor string, err error) {
	page, err := o.Events(q)
	return page.Events, page.Cursor, err
}

// A route goes with the event that has asked, but not while the call goes on.
func TestRoutesArePruned(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Retention: time.Hour})
		defer run(t, o)()
		mustAppend(t, o, event("call.transfer_requested", "1"), event("call.transfer_requested", "2"))
		time.Sleep(time.Minute)
		mustAppend(t, o, event("call.completed", "2"))
		known := func(call string) bool {
			err := o.ChangeRoute(call, func(*telephony.Route) {})
			if err != nil && !errors.Is(err, telephony.ErrNeverAsked) {
				t.Error(err)
			}
			return err == nil
		}
		time.Sleep(2 * time.Hour)
		if !known("1") || known("2") {
			t.Errorf("after the retention: of a call that goes on %v, of one that is over %v", known("1"), known("2"))
		}
		time.Sleep(24 * time.Hour)
		if known("1") {
			t.Error("a day later the first is still known")
		}
	})
}

// Idempotency keys go after a day.
func TestKeysArePruned(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{})
		defer run(t, o)()
		for i := range byte(3) {
			if taken, err := o.ClaimKey("crm", [32]byte{i}, [32]byte{}); taken != nil || err != nil {
				t.Fatal(taken, err)
			}
			time.Sleep(10 * time.Hour)
		}
		left := 0
		if err := o.store.view(func(tx *txn) error { left = tx.keys.Stats().KeyN; return nil }); err != nil || left != 2 {
			t.Errorf("%d keys are left, %v", left, err)
		}
	})
}

// asked is a router that remembers what it was told.
type asked struct {
	nobody
	mu      sync.Mutex
	settled []string
	answers []string
}

func (a *asked) Settle(_ context.Context, call, _ string, timeUp bool, _ []telephony.Reply) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settled = append(a.settled, fmt.Sprint(call, timeUp))
}

func (a *asked) Answer(_ context.Context, call, _, endpoint, to string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers = append(a.answers, call+endpoint+to)
	return nil
}

// A question is asked once, also when it is stored by a commit that was told of as one that failed; one that is damaged holds nothing up.
func TestQuestionsAreAskedOnce(t *testing.T) {
	c := &crm{answer: func(_ int, r received, w http.ResponseWriter) { _, _ = io.WriteString(w, `{"transfer_to":"1"}`) }}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial})
		router := &asked{}
		stop := runWith(t, o, router)
		synctest.Wait()
		question := event("call.transfer_requested", "5")
		r, err := newRecord(&question, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := o.store.append([]record{r}); err != nil { // the asker hears nothing of it
			t.Fatal(err)
		}
		synctest.Wait()
		if n := c.count(); n != 0 {
			t.Fatalf("%d webhooks", n)
		}
		for range 3 {
			mustAppend(t, o, question)
			synctest.Wait()
		}
		if n := c.count(); n != 1 || !slices.Equal(router.answers, []string{"5crm1"}) {
			t.Errorf("asked %d times: %v", n, router.answers)
		}
		damaged := event("call.transfer_requested", "6")
		if r, err = newRecord(&damaged, time.Second); err != nil {
			t.Fatal(err)
		}
		if _, _, err := o.store.append([]record{r}); err != nil {
			t.Fatal(err)
		}
		if err := o.store.commit(func(tx *txn) error { return tx.events.Put(number(2), []byte("x")) }); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, o, damaged, event("call.incoming", "6"))
		synctest.Wait()
		if n := c.count(); n != 2 {
			t.Errorf("what comes behind a damaged question: %d webhooks", n)
		}
		time.Sleep(time.Minute)
		stop()
		if list, err := o.store.questions(); len(list) != 0 || err != nil {
			t.Errorf("questions are left: %v, %v", list, err)
		}
		// The checks of the file do not know a record that was damaged on purpose.
		if err := o.store.commit(func(tx *txn) error {
			q := tx.queue("crm")
			return errors.Join(q.remove(2), tx.events.Delete(number(2)), tx.ids.Delete(r.id[:]), tx.calls.Delete(append(callKey("6"), number(1)...)))
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// The cursor of a first read is good for the next one, whatever has been removed before.
func TestFirstCursor(t *testing.T) {
	for _, first := range []string{"", Now} {
		t.Run("after="+first, func(t *testing.T) {
			c := &crm{forget: true}
			bubble(t, c, func(t *testing.T) {
				o := openOutbox(t, Options{DialContext: c.net.Dial, Retention: time.Hour})
				defer run(t, o)()
				mustAppend(t, o, event("call.completed", "1"))
				time.Sleep(3 * time.Hour)
				_, cursor, err := readEvents(o, EventQuery{Endpoint: "crm", After: first, Limit: 10})
				if err != nil {
					t.Fatal(err)
				}
				if _, _, err = readEvents(o, EventQuery{Endpoint: "crm", After: cursor, Limit: 10}); err != nil {
					t.Errorf("the cursor %q that it has just been given: %v", cursor, err)
				}
			})
		})
	}
}

// A reader that asks now and then, and never has an event, has missed nothing.
func TestCursorOfQuietReader(t *testing.T) {
	c := &crm{forget: true}
	bubble(t, c, func(t *testing.T) {
		reader := endpoint("reader")
		reader.URL, reader.Secrets, reader.Events = "", nil, Filter{"sms.*"}
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{endpoint("crm"), reader}, Retention: time.Hour})
		defer run(t, o)()
		mustAppend(t, o, event("sms.sent", "1"))
		_, cursor, err := readEvents(o, EventQuery{Endpoint: "reader", Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 { // it reads every half hour, and there is never anything for it
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
			time.Sleep(30 * time.Minute)
			var err error
			if _, cursor, err = readEvents(o, EventQuery{Endpoint: "reader", After: cursor, Limit: 10}); err != nil {
				t.Errorf("it has missed nothing, and after %d half hours it is told: %v", i+1, err)
				return
			}
		}
	})
}

// What was pending for an endpoint that reads its events from now on is there to be read, and is sent nowhere.
func TestURLTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		path := filepath.Join(t.TempDir(), "outbox.db")
		o, err := Open(withDefaults(t, Options{Path: path}))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 30 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		reader := endpoint("crm")
		reader.URL, reader.Secrets = "", nil
		o = openOutbox(t, Options{Path: path, Endpoints: []Endpoint{reader}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := run(t, o)
		time.Sleep(time.Hour)
		stop()
		list, _ := o.Endpoints()
		if list[0].State != "reads" || list[0].Pending != 30 || list[0].Dead != 0 { // it has not read them yet
			t.Errorf("an endpoint that only reads is %s (%s): pending %d, dead %d", list[0].State, list[0].LastError, list[0].Pending, list[0].Dead)
		}
	})
}

// A reader that has missed something misses nothing of what is left, and is told once; events stay for whoever waits for them, between those that have gone.
func TestReadingWhatIsLeft(t *testing.T) {
	hook, reader := endpoint("hook"), endpoint("reader")
	hook.Events = Filter{"sms.*"}
	reader.URL, reader.Secrets = "", nil
	o := openOutbox(t, Options{Endpoints: []Endpoint{hook, reader}})
	mustAppend(t, o, event("call.incoming", "1"), event("call.completed", "1"), event("sms.sent", "2"), event("call.incoming", "3"), event("call.completed", "3"), event("sms.sent", "4"))
	old := pruning{store: o.store, clock: o.opts.Clock, maxAge: -time.Hour}
	if err := old.run(t.Context()); err != nil || old.removed != 4 {
		t.Fatalf("%d removed, %v", old.removed, err)
	}
	for after, want := range map[string]int{"": 2, "0": 2, "2": 2, "3": 1, "4": 1, "5": 1, "0.1": 2, "99": 2} {
		read, gone := 0, 0
		for cursor, more := after, true; more; {
			bodies, next, err := readEvents(o, EventQuery{Endpoint: "reader", After: cursor, Limit: 1})
			if pruned, ok := errors.AsType[*PrunedError](err); ok {
				gone++
				bodies, next, err = readEvents(o, EventQuery{Endpoint: "reader", After: pruned.Oldest, Limit: 1})
			}
			if err != nil {
				t.Fatalf("after %q: %v", after, err)
			}
			read, cursor, more = read+len(bodies), next, len(bodies) > 0
		}
		told := 1
		if after == "" || after == "5" {
			told = 0
		}
		if read != want || gone != told {
			t.Errorf("after %q it reads %d and is told %d times that something is missing; want %d, %d", after, read, gone, want, told)
		}
	}
	// As after a restore: numbers go on from higher ones. Of what had numbers between, nothing is known, and what is left before was read.
	if err := o.store.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketEvents).SetSequence(1000) }); err != nil {
		t.Fatal(err)
	}
	_, _, err := readEvents(o, EventQuery{Endpoint: "reader", After: "500", Limit: 1})
	if pruned, ok := errors.AsType[*PrunedError](err); !ok || pruned.Oldest != "6" {
		t.Errorf("after what was never given: %v", err)
	}
	for _, cursor := range []string{"x", "1.", "1.x", ".", "-1", "1.1.1"} {
		if _, _, err := readEvents(o, EventQuery{Endpoint: "reader", After: cursor, Limit: 1}); !errors.Is(err, ErrBadCursor) {
			t.Errorf("the cursor %q: %v", cursor, err)
		}
	}
}

// Backwards the newest come first, page by page and each once, to the end; the cursor is good in the other direction too, and what was removed is the end.
func TestReadBackwards(t *testing.T) {
	reader := endpoint("reader")
	reader.URL, reader.Secrets, reader.Events = "", nil, Filter{"call.*"}
	o := openOutbox(t, Options{Endpoints: []Endpoint{endpoint("crm"), reader}})
	for i := range 12 {
		mustAppend(t, o, event([]telephony.EventType{"call.completed", "sms.sent"}[i%2], fmt.Sprint(i)))
	}
	callsOf := func(bodies [][]byte) (calls []string) {
		for _, b := range bodies {
			call, _ := callOf(t, received{body: b})
			calls = append(calls, call)
		}
		return calls
	}
	for name, want := range map[string]string{"reader": "10 8 6 4 2 0", "": "11 10 9 8 7 6 5 4 3 2 1 0"} {
		for limit := 1; limit < 14; limit++ {
			var all []string
			for cursor, pages := "", 0; ; pages++ {
				page, err := o.Events(EventQuery{Endpoint: name, Backwards: true, After: cursor, Limit: limit})
				if err != nil || pages > 12 || page.More != (page.Cursor != "") {
					t.Fatalf("%q by %d: %+v, %v", name, limit, page, err)
				}
				all = append(all, callsOf(page.Events)...)
				if cursor = page.Cursor; cursor == "" {
					break
				}
			}
			if got := strings.Join(all, " "); got != want {
				t.Errorf("%q by %d: %s", name, limit, got)
			}
		}
	}
	page, err := o.Events(EventQuery{Backwards: true, Types: []telephony.EventType{"sms.sent"}, After: Now, Limit: 2})
	if got := callsOf(page.Events); err != nil || !slices.Equal(got, []string{"11", "9"}) {
		t.Errorf("by type: %v, %v", got, err)
	}
	ahead, cursor, err := readEvents(o, EventQuery{After: page.Cursor, Limit: 100})
	if got := callsOf(ahead); err != nil || !slices.Equal(got, []string{"9", "10", "11"}) && !slices.Equal(got, []string{"8", "9", "10", "11"}) || cursor != "12" {
		t.Errorf("forwards from the cursor %q: %v, %s, %v", page.Cursor, got, cursor, err)
	}
	old := pruning{store: o.store, clock: o.opts.Clock, maxAge: -time.Hour}
	for _, n := range []uint64{1, 2, 3, 4} { // the CRM has taken them
		if err := o.store.record("crm", []result{{job: job{number: n}, now: delivery{}.ended(delivered, time.Now())}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := old.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if page, err := o.Events(EventQuery{Backwards: true, After: "3", Limit: 9}); err != nil || len(page.Events) != 0 || page.Cursor != "" {
		t.Errorf("where all was removed: %+v, %v", page, err)
	}
	if _, err := o.Events(EventQuery{Backwards: true, After: "x", Limit: 9}); !errors.Is(err, ErrBadCursor) {
		t.Errorf("a cursor that is none: %v", err)
	}
}

// However few events a query is for, one request looks at a bounded number of records, and what it is for is found page by page.
func TestRequestsLookAtABoundedNumberOfRecords(t *testing.T) {
	reader := endpoint("reader")
	reader.URL, reader.Secrets = "", nil
	o := openOutbox(t, Options{Endpoints: []Endpoint{reader}})
	const events = 2*maxLooked + 10
	batch := []telephony.Event{event("sms.sent", "5")}
	for range events - 2 {
		batch = append(batch, event("call.completed", "5"))
	}
	mustAppend(t, o, append(batch, event("sms.sent", "5"))...)
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
			all(fmt.Sprintf("events of %q, backwards: %v", name, backwards), 3, func(cursor string) (int, string, bool) {
				page, err := o.Events(EventQuery{Endpoint: name, Backwards: backwards, After: cursor, Types: []telephony.EventType{"sms.sent"}, Limit: 500})
				if err != nil {
					t.Fatal(err)
				}
				return len(page.Events), page.Cursor, page.More
			})
		}
	}
	if err := o.store.commit(func(tx *txn) error { // the first and the last are dead
		q := tx.queue("reader")
		for _, n := range []uint64{1, events} {
			d, history := q.get(n)
			if err := q.put(n, d, d.ended(dead, time.Now()), history); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"", "5"} {
		all("deliveries of call "+call, 3, func(cursor string) (int, string, bool) {
			list, next, err := o.Deliveries(DeliveryQuery{State: "dead", CallID: call, Cursor: cursor, Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			return len(list), next, next != ""
		})
	}
}

// A call is told page by page, without the bodies of its events, and with its numbers as people are shown them.
func TestCallByPages(t *testing.T) {
	o := openOutbox(t, Options{Endpoints: []Endpoint{endpoint("crm"), endpoint("other")}})
	long := strings.Repeat("ж", 100<<10) // the ID of the call
	const events = 2*maxCallEvents + 7
	for i := range events {
		for _, call := range []string{"5", long} {
			e := event("call.incoming", call)
			e.From, e.To = strings.Repeat("1", 1000), fmt.Sprint(i)
			mustAppend(t, o, e)
		}
	}
	for _, call := range []string{"5", long} {
		read, pages, most := 0, 0, 0
		for after, more := uint64(0), true; more; pages++ {
			page, err := o.Call(call, after)
			if err != nil || len(page.Events) == 0 {
				t.Fatal(page, err)
			}
			for _, e := range page.Events {
				read++
				if e.Sequence != uint64(read) || e.From != strings.Repeat("1", 64)+"…" || e.To != fmt.Sprint(read-1) || len(e.Deliveries) != 2 {
					t.Fatalf("the event %d: %.200v", read, e)
				}
			}
			after, more, most = page.Next, page.Next != 0, max(most, len(page.Events))
		}
		if read != events || most > maxCallEvents || call == long && most*2*len(long) > 2*maxCallBytes {
			t.Errorf("%d events on %d pages of up to %d", read, pages, most)
		}
	}
	listed := 0
	for q := (DeliveryQuery{CallID: long, Limit: 500}); ; {
		list, cursor, err := o.Deliveries(q)
		if err != nil || len(list) == 0 || len(list)*len(long) > mostRead+len(long) {
			t.Fatalf("a page of %d deliveries, %v", len(list), err)
		}
		if listed += len(list); cursor == "" {
			break
		}
		q.Cursor = cursor
	}
	if listed != 2*events {
		t.Errorf("%d deliveries", listed)
	}
	if page, err := o.Call("5", events); err != nil || len(page.Events) != 0 || page.Next != 0 {
		t.Errorf("after the last one: %+v, %v", page, err)
	}
	if _, err := o.Call("6", 0); !errors.Is(err, ErrNoCall) {
		t.Errorf("of no call: %v", err)
	}
}

// One read is bounded in bytes, however large the events are, and the next one goes on.
func TestReadIsBounded(t *testing.T) {
	reader := endpoint("reader")
	reader.URL, reader.Secrets = "", nil
	o := openOutbox(t, Options{Endpoints: []Endpoint{reader}})
	const events = 10
	for i := range events {
		e := event("sms.sent", fmt.Sprint(i))
		e.Text = strings.Repeat("x", 1<<20)
		mustAppend(t, o, e)
	}
	read := 0
	for cursor := ""; read < events; {
		bodies, next, err := readEvents(o, EventQuery{Endpoint: "reader", After: cursor, Limit: 500})
		if err != nil || len(bodies) == 0 || len(bodies) > mostRead>>20 {
			t.Fatalf("after %d it reads %d: %v", read, len(bodies), err)
		}
		read, cursor = read+len(bodies), next
	}
	if read != events {
		t.Errorf("it reads %d", read)
	}
}
