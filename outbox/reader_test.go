package outbox

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// readerOptions is an outbox of one endpoint that reads its events.
func readerOptions(t *testing.T, c *crm) Options {
	e := endpoint("poller")
	e.URL, e.Secrets = "", nil
	return Options{Path: filepath.Join(t.TempDir(), "outbox.db"), DialContext: c.net.Dial, Endpoints: []Endpoint{e}}
}

// A CRM that reads its events has those pending that it has not read, from the first on, and
// nothing is delivered before it has read it. A restart forgets none of it.
func TestWhatAReaderHasRead(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		opts := readerOptions(t, c)
		o, err := Open(withDefaults(t, opts))
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, o)
		check := func(when string, o *Outbox, waiting, read uint64, lastRead, oldest time.Time) {
			t.Helper()
			list, err := o.Endpoints()
			if err != nil || list[0].State != "reads" || list[0].Pending != waiting || list[0].Delivered != read || !list[0].LastRead.Equal(lastRead) {
				t.Errorf("%s: %+v, %v", when, list, err)
			}
			for state, want := range map[string]uint64{"pending": waiting, "delivered": read} {
				found, _, err := o.Deliveries(DeliveryQuery{State: state, Limit: 10})
				if err != nil || uint64(len(found)) != want {
					t.Errorf("%s: %d are listed as %s, not %d (%v)", when, len(found), state, want, err)
				}
				for _, d := range found {
					one, _, err := o.Delivery(d.ID)
					if err != nil || one != d || d.ToBeRead != (state == "pending") || !d.NextAttempt.IsZero() || d.Ended.IsZero() != d.ToBeRead {
						t.Errorf("%s: %+v, alone %+v (%v)", when, d, one, err)
					}
				}
			}
			if at, err := o.OldestPending("poller"); err != nil || !at.Equal(oldest) {
				t.Errorf("%s: the oldest is of %s, not %s (%v)", when, at, oldest, err)
			}
		}
		began := time.Now()
		for range 6 {
			mustAppend(t, o, event("call.completed", "5"))
			time.Sleep(time.Minute)
		}
		check("before it has read", o, 6, 0, time.Time{}, began)
		page, err := o.Events(EventQuery{Endpoint: "poller", Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		first := time.Now()
		check("after a page", o, 4, 2, first, began.Add(2*time.Minute))
		call, err := o.Call("5", 0)
		if err != nil || call.Events[1].Deliveries[0].State != "delivered" || call.Events[2].Deliveries[0].State != "pending" {
			t.Errorf("of the call: %+v, %v", call, err)
		}
		// What is written down soon is all that a crash leaves.
		time.Sleep(2 * readsKept)
		o.store.readers.mu.Lock()
		written := o.store.readers.latest
		o.store.readers.latest = map[string]reading{}
		o.store.readers.mu.Unlock()
		check("as the file has it", o, 4, 2, first, began.Add(2*time.Minute))
		o.store.readers.mu.Lock()
		o.store.readers.latest = written
		o.store.readers.mu.Unlock()

		time.Sleep(time.Hour)
		if _, err = o.Events(EventQuery{Endpoint: "poller", Limit: 1}); err != nil { // it is written down at once, and the next read is not
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err = o.Events(EventQuery{Endpoint: "poller", After: page.Cursor, Limit: 1}); err != nil {
			t.Fatal(err)
		}
		last := time.Now()
		stop()
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		again := openOutbox(t, opts)
		check("after a restart", again, 3, 3, last, began.Add(3*time.Minute))
		if _, err := again.Events(EventQuery{Endpoint: "poller", After: Now, Limit: 1}); err != nil {
			t.Fatal(err)
		}
		check("behind everything", again, 0, 6, time.Now(), time.Time{})
		if _, err := again.Events(EventQuery{Limit: 1}); err != nil { // the operator's reads are no CRM's
			t.Fatal(err)
		}
		check("after the operator has read", again, 0, 6, time.Now(), time.Time{})
	})
}

// Who reads the newest first, and keeps no cursor, has read what it was given, as far as that goes back
// to what it had read before.
func TestNewestFirstIsReadToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := endpoint("poller")
		reader.URL, reader.Secrets = "", nil
		o := openOutbox(t, Options{Endpoints: []Endpoint{reader}})
		defer run(t, o)()
		stands := func(unread uint64) {
			t.Helper()
			list, err := o.Endpoints()
			if err != nil || !list[0].LastRead.Equal(time.Now()) || list[0].Pending != unread {
				t.Errorf("last read %s, %d are unread, want %d, %v", list[0].LastRead, list[0].Pending, unread, err)
			}
		}
		read := func(limit int, after string) EventPage {
			t.Helper()
			page, err := o.Events(EventQuery{Endpoint: "poller", Backwards: true, Limit: limit, After: after})
			if err != nil {
				t.Fatal(err)
			}
			return page
		}
		mustAppend(t, o, event("call.completed", "1"), event("call.completed", "2"))
		read(10, "")
		stands(0)
		mustAppend(t, o, event("call.completed", "3"), event("call.completed", "4"), event("call.completed", "5"))
		time.Sleep(time.Minute)
		page := read(1, "")
		stands(3)
		read(10, page.Cursor)
		stands(3)
		read(3, "")
		stands(0)
	})
}

// Counts that are damaged never show more than there can be.
func TestDamagedCountsOfAReader(t *testing.T) {
	reader := endpoint("reader")
	reader.URL, reader.Secrets = "", nil
	o, err := Open(withDefaults(t, Options{Endpoints: []Endpoint{reader}}))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	mustAppend(t, o, event("call.completed", "1"), event("call.completed", "2"))
	if err := o.store.commit(func(tx *txn) error { return tx.queue("reader").root.Put(keyCounts, counts{}.encode()) }); err != nil {
		t.Fatal(err)
	}
	list, err := o.Endpoints()
	if err != nil || list[0].Delivered > 100 {
		t.Errorf("delivered %d, %v", list[0].Delivered, err)
	}
}

// What had been tried in vain before an endpoint's URL was taken away is there to be read, and has not been.
func TestURLTakenAwayAfterFailures(t *testing.T) {
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(500) }}
	bubble(t, c, func(t *testing.T) {
		opts := withDefaults(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{endpoint("crm")}, RetrySchedule: []time.Duration{time.Hour, time.Hour}})
		o, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, o)
		for i := range 10 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		stop()
		_ = o.Close()
		e := endpoint("crm")
		e.URL, e.Secrets = "", nil
		opts.Endpoints = []Endpoint{e}
		o, err = Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		l, err := o.Endpoints()
		if l[0].Pending != 10 || l[0].Delivered != 0 {
			t.Errorf("none was ever taken or read: %+v %v", l, err)
		}
		_ = o.Close()
	})
}

// Cursors, states and IDs from outside end in an answer or an error, whatever stands in them.
func TestHostileQueries(t *testing.T) {
	reader := endpoint("reader")
	reader.URL, reader.Secrets = "", nil
	o := openOutbox(t, Options{Endpoints: []Endpoint{reader, endpoint("crm")}})
	for i := range 20 {
		mustAppend(t, o, event("call.completed", fmt.Sprint(i%3)))
	}
	big := fmt.Sprint(uint64(math.MaxUint64))
	for _, cur := range []string{"", "0", "0.0", big, big + "." + big, "0." + big, "1." + big, "-1", "1.", ".1", "x", "9223372036854775808", "20", "21", "now", "NOW", "1.2.3", big + ".", "0.crm", "20.crm", "20.zzz", "20.\x00"} {
		for _, back := range []bool{false, true} {
			for _, e := range []string{"", "reader", "crm", "x"} {
				p, err := o.Events(EventQuery{Endpoint: e, After: cur, Backwards: back, Limit: 5})
				if errors.Is(err, ErrDamaged) {
					t.Error(cur, back, e, err)
				}
				_ = p
				if d := o.store.danger.err(); d != nil {
					t.Fatal(cur, back, e, d)
				}
			}
		}
		for _, q := range []DeliveryQuery{{}, {CallID: "1"}, {CallID: "nope"}, {Endpoint: "crm"}, {Endpoint: "x"}, {State: "dead"}, {State: "pending", Endpoint: "reader", CallID: "2"}} {
			q.Limit, q.Cursor = 3, cur
			_, _, err := o.Deliveries(q)
			if d := o.store.danger.err(); d != nil {
				t.Fatal(cur, q, d, err)
			}
		}
	}
	for _, c := range []string{"", "1", "nope", string(make([]byte, 33))} {
		for _, a := range []uint64{0, 1, 1 << 63, math.MaxUint64, math.MaxUint64 - 1} {
			_, _ = o.Call(c, a)
			if d := o.store.danger.err(); d != nil {
				t.Fatal(c, a, d)
			}
		}
	}
	for _, id := range []string{"", ".", "x.crm", "00000000-0000-0000-0000-000000000000.crm", "00000000-0000-0000-0000-000000000000.", ".crm"} {
		_, _, _ = o.Delivery(id)
		_, _ = o.Redeliver(id)
		if d := o.store.danger.err(); d != nil {
			t.Fatal(id, d)
		}
	}
}
