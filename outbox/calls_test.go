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
		bodies, cursor, err := o.(*Outbox).Events(EventQuery{Endpoint: "reader", Limit: 2})
		if err != nil || len(bodies) != 2 || cursor != "2" {
			t.Fatalf("%d events, %s, %v", len(bodies), cursor, err)
		}
		closeEngine()
		box := openOutbox(t, opts)
		stop = run(t, box)
		defer stop()
		if bodies, cursor, err = box.Events(EventQuery{Endpoint: "reader", After: cursor, Limit: 9}); err != nil || len(bodies) != 2 || cursor != "4" {
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
		if _, _, err = box.Events(EventQuery{Endpoint: "reader", After: "2", Limit: 9}); !errors.As(err, &pruned) || pruned.Oldest != "3" {
			t.Fatalf("after the retention: %v", err)
		}
		if bodies, cursor, err = box.Events(EventQuery{Endpoint: "reader", After: pruned.Oldest, Limit: 9}); err != nil || cursor != "5" || len(bodies) != 2 { // the question of a call that goes on is kept
			t.Errorf("from the oldest on: %d events, %s, %v", len(bodies), cursor, err)
		}
		if bodies, _, err = box.Events(EventQuery{Endpoint: "reader", Limit: 9}); err != nil || len(bodies) == 0 {
			t.Errorf("from the beginning: %d events, %v", len(bodies), err)
		}
	})
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
			if taken, err := o.ClaimKey([32]byte{i}, [32]byte{}); taken != nil || err != nil {
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

func (a *asked) Settle(_ context.Context, call, _ string, timeUp bool) {
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
				_, cursor, err := o.Events(EventQuery{Endpoint: "crm", After: first, Limit: 10})
				if err != nil {
					t.Fatal(err)
				}
				if _, _, err = o.Events(EventQuery{Endpoint: "crm", After: cursor, Limit: 10}); err != nil {
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
		_, cursor, err := o.Events(EventQuery{Endpoint: "reader", Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 { // it reads every half hour, and there is never anything for it
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
			time.Sleep(30 * time.Minute)
			var err error
			if _, cursor, err = o.Events(EventQuery{Endpoint: "reader", After: cursor, Limit: 10}); err != nil {
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
	old := pruning{store: o.store, before: time.Now().Add(time.Hour)}
	if err := old.run(t.Context()); err != nil || old.removed != 4 {
		t.Fatalf("%d removed, %v", old.removed, err)
	}
	for after, want := range map[string]int{"": 2, "0": 2, "2": 2, "3": 1, "4": 1, "5": 1, "0.1": 2, "99": 2} {
		read, gone := 0, 0
		for cursor, more := after, true; more; {
			bodies, next, err := o.Events(EventQuery{Endpoint: "reader", After: cursor, Limit: 1})
			if pruned, ok := errors.AsType[*PrunedError](err); ok {
				gone++
				bodies, next, err = o.Events(EventQuery{Endpoint: "reader", After: pruned.Oldest, Limit: 1})
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
	_, _, err := o.Events(EventQuery{Endpoint: "reader", After: "500", Limit: 1})
	if pruned, ok := errors.AsType[*PrunedError](err); !ok || pruned.Oldest != "6" {
		t.Errorf("after what was never given: %v", err)
	}
	for _, cursor := range []string{"x", "1.", "1.x", ".", "-1", "1.1.1"} {
		if _, _, err := o.Events(EventQuery{Endpoint: "reader", After: cursor, Limit: 1}); !errors.Is(err, ErrBadCursor) {
			t.Errorf("the cursor %q: %v", cursor, err)
		}
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
		bodies, next, err := o.Events(EventQuery{Endpoint: "reader", After: cursor, Limit: 500})
		if err != nil || len(bodies) == 0 || len(bodies) > mostRead>>20 {
			t.Fatalf("after %d it reads %d: %v", read, len(bodies), err)
		}
		read, cursor = read+len(bodies), next
	}
	if read != events {
		t.Errorf("it reads %d", read)
	}
}
