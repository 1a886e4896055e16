package outbox

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"

	bolt "go.etcd.io/bbolt"
)

// keys counts the keys of the whole file but for meta.
func keys(t *testing.T, o *Outbox) int {
	t.Helper()
	n := 0
	err := o.store.db.View(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketEvents, bucketIDs, bucketCalls} {
			n += tx.Bucket(name).Stats().KeyN
		}
		return tx.Bucket(bucketEndpoints).ForEachBucket(func(name []byte) error {
			b := tx.Bucket(bucketEndpoints).Bucket(name)
			n += b.Bucket(bucketDeliveries).Stats().KeyN + b.Bucket(bucketDue).Stats().KeyN
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What is old and done with goes, whole; what an endpoint waits for stays, unless that endpoint is configured no longer.
func TestRetention(t *testing.T) {
	t.Parallel()
	fails := map[string]bool{"9": true}
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); fails[call] {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	bubble(t, c, func(t *testing.T) {
		gone := endpoint("gone")
		opts := Options{
			Path: filepath.Join(t.TempDir(), "outbox.db"), Endpoints: []Endpoint{endpoint("crm"), gone}, DialContext: c.net.Dial,
			RetrySchedule: slices.Repeat([]time.Duration{time.Hour}, 1000), MaxBytes: 1 << 30, Retention: 48 * time.Hour, RoutingTimeout: time.Hour, Grace: time.Second,
			OrderHold: time.Minute, Logger: slog.New(slog.DiscardHandler),
		}
		first, err := Open(opts) // appends for both, delivers nothing
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 * pruneBatch {
			mustAppend(t, first, event("call.incoming", fmt.Sprint(10+i)))
		}
		mustAppend(t, first, event("call.incoming", "9"), event("call.completed", "9"))
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		opts.Endpoints = opts.Endpoints[:1]
		o := openOutbox(t, opts)
		stop := run(t, o)
		time.Sleep(47 * time.Hour)
		synctest.Wait()
		if got := states(t, o, "crm"); got[delivered] != 3*pruneBatch || got[pending] != 2 {
			t.Errorf("before the retention is over: %v", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		// Call 9 waits: two events with ID, place in the call, delivery to "crm" and to "gone"; and the due entries of those that are not held.
		if got := states(t, o, "crm"); got[delivered] != 0 || got[pending] != 2 {
			t.Errorf("after it: %v", got)
		}
		if list := list(t, o, DeliveryQuery{Endpoint: "gone", Limit: 10}); len(list) != 2 || list[0].State != "pending" {
			t.Errorf("of the endpoint that is gone: %v", list)
		}
		stop()
	})
}

// Under a steady load the file stops growing.
func TestFileStopsGrowing(t *testing.T) {
	skipBulk(t)
	t.Parallel()
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "outbox.db")
		o := openOutbox(t, Options{Path: path, DialContext: c.net.Dial, Retention: time.Hour, RoutingTimeout: time.Hour, Logger: slog.New(slog.DiscardHandler)})
		stop := run(t, o)
		size := func() int64 {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		var early int64
		for hour := range 6 {
			for i := range 60 {
				for j := range 5 {
					mustAppend(t, o, event("call.completed", fmt.Sprint(hour*300+i*5+j)))
				}
				time.Sleep(time.Minute)
			}
			if hour == 2 {
				early = size()
			}
		}
		if late := size(); late > early {
			t.Errorf("from the third hour to the sixth the file grew from %d to %d bytes", early, late)
		}
		time.Sleep(2 * time.Hour)
		stop()
		if n := keys(t, o); n != 0 {
			t.Errorf("%d keys are left in the end", n)
		}
	})
}

// Readiness says that the file is full no longer than it is, also if nothing is appended after that.
func TestFullEndsByItself(t *testing.T) {
	skipBulk(t)
	t.Parallel()
	c := &crm{forget: true}
	bubble(t, c, func(t *testing.T) {
		const limit = 1 << 20
		o := openOutbox(t, Options{DialContext: c.net.Dial, MaxBytes: limit, Logger: slog.New(slog.DiscardHandler), Retention: 1000 * time.Hour})
		var err error
		for i := 0; err == nil; i++ {
			err = o.Append(t.Context(), []telephony.Event{event("call.completed", fmt.Sprint(i))})
		}
		if !errors.Is(err, ErrFull) || !errors.Is(o.Writable(), ErrFull) {
			t.Fatal(err, o.Writable())
		}
		defer run(t, o)()
		time.Sleep(2 * time.Hour)
		if err := o.Writable(); err != nil {
			t.Errorf("two hours later %d of %d bytes are in use, and readiness says: %v", o.InUse(), limit, err)
		}
	})
}

// A call that goes on keeps counting its events, also when those that are delivered have made room.
func TestSequenceOutlivesEarlyPruning(t *testing.T) {
	c := &crm{forget: true}
	bubble(t, c, func(t *testing.T) {
		const limit = 1 << 20
		o := openOutbox(t, Options{DialContext: c.net.Dial, MaxBytes: limit, Logger: slog.New(slog.DiscardHandler)})
		defer run(t, o)()
		mustAppend(t, o, event("call.incoming", "live"), event("call.incoming_answered", "live"))
		time.Sleep(time.Second)
		for i := range 60 { // a busy quarter of an hour
			var list []telephony.Event
			for j := range 64 {
				list = append(list, event("call.completed", fmt.Sprintf("%d-%d", i, j)))
			}
			mustAppend(t, o, list...)
			time.Sleep(15 * time.Second)
		}
		last := event("call.completed", "live")
		mustAppend(t, o, last)
		synctest.Wait()
		d, _, err := o.Delivery(last.ID + ".crm")
		if err != nil || d.Sequence != 3 {
			t.Errorf("the third event of a call that is a quarter of an hour old has the sequence %d (%v)", d.Sequence, err)
		}
	})
}

// It is never full of what has been delivered, also if no call is told to be over.
func TestNeverFullOfWhatIsDelivered(t *testing.T) {
	skipBulk(t)
	t.Parallel()
	c := &crm{forget: true}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, MaxBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
		stop := run(t, o)
		full := false
		for n := 0; n < 5000 && !full; n++ {
			full = o.Append(t.Context(), []telephony.Event{event("call.outgoing", fmt.Sprint(n))}) != nil
		}
		time.Sleep(2 * pruneEvery)
		if err := o.Append(t.Context(), []telephony.Event{event("call.completed", "1")}); err != nil || !full {
			t.Errorf("two minutes later (it was full: %v): %v, %v", full, err, states(t, o, "crm"))
		}
		synctest.Wait()
		stop()
	})
}

// What waits for an endpoint that is configured no longer waits as long as the retention, also when the file is nearly full.
func TestOrphansDoNotGoEarly(t *testing.T) {
	skipBulk(t)
	t.Parallel()
	c := &crm{forget: true}
	bubble(t, c, func(t *testing.T) {
		opts := Options{
			Path: filepath.Join(t.TempDir(), "outbox.db"), DialContext: c.net.Dial, MaxBytes: 1 << 20, Endpoints: []Endpoint{endpoint("crm"), endpoint("other")},
			Logger: slog.New(slog.DiscardHandler),
		}
		o, err := Open(withDefaults(t, opts))
		if err != nil {
			t.Fatal(err)
		}
		const many = 50
		for i := range many {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		opts.Endpoints = opts.Endpoints[:1]
		o = openOutbox(t, opts)
		stop := run(t, o)
		for i := range 3000 { // more than there is room for
			_ = o.Append(t.Context(), []telephony.Event{event("call.completed", fmt.Sprint("later ", i))})
			if i%100 == 0 {
				time.Sleep(crowdedAgain + time.Second)
			}
		}
		stop()
		if n := len(list(t, o, DeliveryQuery{Endpoint: "other", Limit: 500})); n != many {
			t.Errorf("%d of %d are left", n, many)
		}
	})
}

// What was held by an event that is given up is due: checkFile would find it out of the due index.
func TestGivenUpHoldsNothing(t *testing.T) {
	o := openOutbox(t, Options{})
	first, second := event("call.incoming", "5"), event("call.completed", "5")
	first.Time = time.Now().Add(-time.Hour)
	mustAppend(t, o, first, second)
	old := pruning{
		store: o.store, clock: o.opts.Clock, maxAge: -time.Hour,
		abandoned: map[string]bool{"crm": true}, abandonedAge: time.Minute,
	}
	if err := old.run(t.Context()); err != nil || old.given["crm"] != 1 {
		t.Errorf("given up: %v, %v", old.given, err)
	}
	if n := dueKeys(t, o); n != 1 {
		t.Errorf("%d are due", n)
	}
}

// A call that says nothing for hours is over, and keeps no event from going early.
func TestCallGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openOutbox(t, Options{})
		mustAppend(t, o, event("call.incoming", "5"))
		p := pruning{store: o.store, clock: o.opts.Clock}
		for _, want := range []bool{true, true, false} {
			err := o.store.view(func(tx *txn) error {
				e, _, err := decodeEventHead(tx.events.Get(number(1)))
				if got := p.goesOn(tx, 1, e); got != want {
					t.Errorf("after %s it goes on: %v", time.Since(e.at), got)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			time.Sleep(2*time.Hour + time.Minute)
		}
	})
}
