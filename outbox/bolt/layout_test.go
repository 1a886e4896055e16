package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/outbox"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// rewrite takes the file of a closed outbox back to an older layout: it rewrites the record of
// every delivery, and removes what the layout did not have.
func rewrite(t testing.TB, path string, layout uint64, record func(d store.Delivery, history []byte) []byte) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		endpoints := tx.Bucket(bucketEndpoints)
		err := endpoints.ForEachBucket(func(name []byte) error {
			root := endpoints.Bucket(name)
			b := root.Bucket(bucketDeliveries)
			old := map[string][]byte{}
			err := b.ForEach(func(k, v []byte) error {
				d, history, _, err := decodeDelivery(v)
				old[string(k)] = record(d, history)
				return err
			})
			for k, v := range old {
				err = errors.Join(err, b.Put([]byte(k), v))
			}
			return errors.Join(
				err, root.Delete(keyFilled), root.DeleteBucket(bucketExpiry), root.DeleteBucket(bucketFailed),
			)
		})
		meta := tx.Bucket(bucketMeta)
		return errors.Join(
			err, forgetNumbers(tx), meta.Delete(keyNumbered), meta.Put(keySchema, number(layout)),
		)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// forgetNumbers takes calls back to when they had no keys of numbers.
func forgetNumbers(tx *bolt.Tx) error {
	calls, old := tx.Bucket(bucketCalls), map[string][]byte{}
	err := calls.ForEach(func(k, v []byte) error {
		old[string(k)] = bytes.Clone(v[:min(len(v), callEntryHead)])
		return nil
	})
	for k, v := range old {
		err = errors.Join(err, calls.Put([]byte(k), v))
	}
	return errors.Join(err, tx.DeleteBucket(bucketNumbers))
}

// toLayout1 takes a file back to the first layout.
func toLayout1(t testing.TB, path string) {
	t.Helper()
	rewrite(t, path, 1, func(d store.Delivery, _ []byte) []byte {
		v := binary.BigEndian.AppendUint16([]byte{byte(d.State)}, uint16(d.Attempts))
		v = binary.BigEndian.AppendUint64(v, uint64(d.Due))
		v = binary.BigEndian.AppendUint16(v, 503)
		return binary.BigEndian.AppendUint64(v, uint64(d.FailedAt))
	})
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		endpoints := tx.Bucket(bucketEndpoints)
		return endpoints.ForEachBucket(func(name []byte) error { return endpoints.Bucket(name).Delete(keyCounts) })
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// toLayout3 takes a file back to the third layout, in which no delivery said when it expires.
func toLayout3(t testing.TB, path string) {
	t.Helper()
	rewrite(t, path, 3, func(d store.Delivery, history []byte) []byte {
		v := []byte{byte(d.State), d.Redelivered}
		v = binary.BigEndian.AppendUint16(v, uint16(d.Step))
		v = binary.BigEndian.AppendUint32(v, uint32(d.Attempts))
		v = binary.BigEndian.AppendUint64(v, uint64(d.Due))
		v = binary.BigEndian.AppendUint64(v, uint64(d.FailedAt))
		v = binary.BigEndian.AppendUint64(v, d.Next)
		for _, a := range store.Attempts(history) { // which had no steps
			one := store.AppendAttempt(nil, nil, store.Attempt{
				At: a.At, Took: a.Took, Status: a.Status, Response: a.Response, Error: a.Error,
			})
			v = append(v, one[:len(one)-1]...)
		}
		return v
	})
}

// checkOrder fails the test where a CRM got a call's events out of order, or one twice.
func checkOrder(t *testing.T, hooks []storetest.Received) {
	t.Helper()
	last := map[string]int{}
	for _, h := range hooks {
		call, n := callIn(t, h.Body)
		if n <= last[call] {
			t.Errorf("call %s: %d after %d", call, n, last[call])
		}
		last[call] = n
	}
}

// A file of the first layout is brought to this one with everything in it.
func TestFileOfTheFirstLayoutIsDeliveredInOrder(t *testing.T) {
	var up atomic.Bool
	c := &storetest.CRM{}
	c.Answer = func(_ int, r storetest.Received, w http.ResponseWriter) {
		if call, _ := callIn(t, r.Body); call == "3" && !up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	storetest.Bubble(t, c, func(t *testing.T) {
		opts := quietly(t, storetest.Options{
			DialContext:    c.Net.Dial,
			Retention:      time.Hour,
			RoutingTimeout: time.Second,
			OrderHold:      10 * time.Minute,
			Grace:          time.Second,
			RetrySchedule:  slices.Repeat([]time.Duration{5 * time.Minute}, 9),
		})
		old := mustOpen(t, opts)
		stop := storetest.RunBox(t, old)
		for i := range 5 {
			events := eventsOf(fmt.Sprint(i), "call.incoming", "call.incoming_answered", "call.completed")
			storetest.MustAppend(t, old, events...)
		}
		synctest.Wait()
		stop()
		storetest.MustAppend(t, old, eventsOf("9", "call.incoming", "call.completed")...)
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		toLayout1(t, opts.Place)
		o := storetest.OpenBox(t, harness{}, opts)
		checkFile(t, engineOf(o))
		if got := storetest.States(t, o, "crm"); got[store.Delivered] != 12 || got[store.Pending] != 5 {
			t.Errorf("states: %v", got)
		}
		d := deliveriesOf(t, o, store.DeliveryQuery{CallID: "3", State: "pending", Limit: 10})
		if len(d) != 3 || d[2].Attempts != 1 {
			t.Errorf("what waits: %+v", d)
		}
		up.Store(true)
		from := len(c.Received())
		stop = storetest.RunBox(t, o)
		time.Sleep(10 * time.Minute)
		stop()
		checkOrder(t, c.Received()[from:])
		if got := storetest.States(t, o, "crm"); got[store.Delivered] != 17 {
			t.Errorf("in the end the states are %v", got)
		}
	})
}

// A file of a layout to come is refused and left as it is.
func TestFileOfANewerLayoutIsRefused(t *testing.T) {
	opts := quietly(t, storetest.Options{})
	o := mustOpen(t, opts)
	mustCommit(t, engineOf(o), func(tx *txn) error { return tx.meta.Put(keySchema, number(schema+1)) })
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(opts.Place)
	if err != nil {
		t.Fatal(err)
	}
	_, err = storetest.Open(harness{}, opts)
	if err == nil || !strings.Contains(err.Error(), "newer version of pzbridge") {
		t.Errorf("a newer file: %v", err)
	}
	if after, err := os.ReadFile(opts.Place); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a newer file was changed (%v)", err)
	}
}

// layout3 is a file that a bridge of the third layout has written, at the very beginning of fake
// time. The calls 1 and 2 have three events each, 3 has one, 4 has three that were not tried. Of
// call 1 all were delivered, and the second was asked for again; the first of call 2 got a 503, and
// holds the others; that of call 3 is dead.
const layout3 = "testdata/layout3.db"

// layout3GUID is what the exchange knows the bridge of that file by.
const layout3GUID = "c8e74605-0a80-4adf-b935-095e447db7a6"

// layout3Options gives the options with which that file was written.
func layout3Options(t *testing.T, c *storetest.CRM, path string) storetest.Options {
	return quietly(t, storetest.Options{
		Place:         path,
		DialContext:   c.Net.Dial,
		OrderHold:     10 * time.Minute,
		RetrySchedule: slices.Repeat([]time.Duration{5 * time.Minute}, 9),
	})
}

// A file of the third layout opens with all that is in it, also as a backup that is restored, and
// what waits is delivered in order.
func TestFileOfTheThirdLayoutIsDeliveredInOrder(t *testing.T) {
	for name, put := range map[string]func(t *testing.T, path string){
		"after an upgrade": func(t *testing.T, path string) {
			if err := copyFile(path, layout3); err != nil {
				t.Fatal(err)
			}
		},
		"after a restore": func(t *testing.T, path string) {
			if _, err := Restore(path, layout3); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := &storetest.CRM{}
			storetest.Bubble(t, c, func(t *testing.T) {
				time.Sleep(5 * time.Second) // past what stands in the file
				path := filepath.Join(t.TempDir(), "outbox.db")
				put(t, path)
				o := storetest.OpenBox(t, harness{}, layout3Options(t, c, path))
				checkFile(t, engineOf(o))
				if guid, err := o.ClientGUID("another"); guid != layout3GUID || err != nil {
					t.Errorf("the GUID is %s, %v", guid, err)
				}
				got := storetest.States(t, o, "crm")
				if got[store.Pending] != 7 || got[store.Delivered] != 2 || got[store.Dead] != 1 {
					t.Errorf("states: %v", got)
				}
				stop := storetest.RunBox(t, o)
				synctest.Wait()
				hooks := c.Received()
				if len(hooks) != 4 { // the others of call 2 are held, its first waits for its time
					t.Errorf("%d are sent at once", len(hooks))
				}
				time.Sleep(15 * time.Minute)
				storetest.MustAppend(t, o, completed("4")...)
				time.Sleep(time.Minute)
				stop()
				hooks = c.Received()
				checkOrder(t, hooks)
				if call, n := callIn(t, hooks[len(hooks)-1].Body); len(hooks) != 8 || call != "4" || n != 4 {
					t.Errorf("%d are sent, the last is event %d of call %s", len(hooks), n, call)
				}
				if got := storetest.States(t, o, "crm"); got[store.Delivered] != 10 || got[store.Dead] != 1 {
					t.Errorf("in the end the states are %v", got)
				}
				first := deliveriesOf(t, o, store.DeliveryQuery{CallID: "2", Limit: 10})[2]
				_, made, err := o.Delivery(first.ID)
				if err != nil || len(made) != 2 || made[0].Status != 503 || made[1].Status != 200 {
					t.Errorf("the attempts before the upgrade and after: %+v, %v", made, err)
				}
				if n := filledOf(t, engineOf(o)); n != filledWhole {
					t.Errorf("the index by expiry is filled to %d", n)
				}
			})
		})
	}
}

// filledOf gives up to which delivery the index by expiry of "crm" is filled.
func filledOf(t *testing.T, s *Engine) (n uint64) {
	t.Helper()
	if err := s.view(func(tx *txn) error {
		n = decodeNumber(tx.queue("crm").root.Get(keyFilled))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// expiringOf counts the deliveries of "crm" that the index by expiry finds.
func expiringOf(t *testing.T, s *Engine) (n int) {
	t.Helper()
	if err := s.view(func(tx *txn) error {
		q := tx.queue("crm")
		return q.expiry.ForEach(func(k, _ []byte) error {
			q.expiringIn(readExpiryEntry(k), func(uint64, store.Delivery) bool {
				n++
				return true
			})
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// oldBacklog is the file of a closed outbox of the third layout, in which n calls ring and wait.
// Each has a second event, which is held, and a third that does not expire.
func oldBacklog(t *testing.T, opts storetest.Options, n int) {
	t.Helper()
	o := mustOpen(t, opts)
	for i := range n {
		events := eventsOf(fmt.Sprint(i), "call.incoming", "call.incoming_answered", "call.completed")
		storetest.MustAppend(t, o, events...)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	toLayout3(t, opts.Place)
}

// The index by expiry of an older file is filled in steps, and a kill between two of them loses
// nothing: the next start goes on where the last step has ended.
func TestIndexByExpiryIsFilledInStepsThatSurviveAKill(t *testing.T) {
	const calls = 200
	opts := quietly(t, storetest.Options{})
	oldBacklog(t, opts, calls)
	o := openToDamage(t, opts)
	checkFile(t, engineOf(o))
	if n := expiringOf(t, engineOf(o)); n != 0 {
		t.Errorf("as it is opened, the index finds %d", n)
	}
	if done, err := engineOf(o).fillSome("crm"); done || err != nil {
		t.Fatal(done, err)
	}
	checkFile(t, engineOf(o))
	if n := filledOf(t, engineOf(o)); n != fillBatch {
		t.Errorf("after one step it is filled to %d", n)
	}
	killed, err := os.ReadFile(opts.Place) // as a process leaves it that is killed now
	if err != nil {
		t.Fatal(err)
	}
	next := storetest.OpenBox(t, harness{}, quietly(t, storetest.Options{Place: writeFile(t, killed)}))
	s := engineOf(next)
	checkFile(t, s)
	if n := filledOf(t, s); n != fillBatch {
		t.Errorf("after the kill it is filled to %d", n)
	}
	if got := storetest.States(t, next, "crm"); got[store.Pending] != 3*calls {
		t.Errorf("after the kill the states are %v", got)
	}
	steps := 1
	for done := false; !done; steps++ {
		if done, err = s.fillSome("crm"); err != nil {
			t.Fatal(err)
		}
		checkFile(t, s)
	}
	if want := 3*calls/fillBatch + 1; steps != want {
		t.Errorf("it took %d steps, not %d", steps, want)
	}
	if n := expiringOf(t, s); n != calls || filledOf(t, s) != filledWhole {
		t.Errorf("in the end %d of the index finds %d", n, calls)
	}
	if done, err := s.fillSome("crm"); !done || err != nil {
		t.Errorf("once more: %v, %v", done, err)
	}
}

// What happens to deliveries between two steps that fill the index by expiry, counts: it is filled
// for what waits then.
func TestDeliveriesGoOnWhileTheIndexByExpiryIsFilled(t *testing.T) {
	opts := quietly(t, storetest.Options{})
	oldBacklog(t, opts, 200)
	o := storetest.OpenBox(t, harness{}, opts)
	s := engineOf(o)
	for done, round := false, 0; !done; round++ {
		jobs := dueNow(t, s, 40).jobs
		var results []store.Result
		for i, j := range jobs {
			now := j.Delivery.Ended(store.Delivered, time.Now())
			now.Attempts++
			if i%2 == 0 { // it failed, and is due again in an hour
				now = j.Delivery
				now.Attempts, now.Step = now.Attempts+1, now.Step+1
				now.FailedAt, now.Due = time.Now().UnixNano(), time.Now().Add(time.Hour).UnixNano()
			}
			made := &store.Attempt{At: time.Now(), Status: 200}
			results = append(results, store.Result{Job: j, Now: now, Attempt: made})
		}
		if err := s.record("crm", results); err != nil {
			t.Fatal(err)
		}
		storetest.MustAppend(t, o, eventsOf(fmt.Sprint(1000+round), "call.incoming", "call.incoming_answered")...)
		if round == 1 {
			if err := laneOf(t, s, "crm").LineUp(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		checkFile(t, s)
		var err error
		if done, err = s.fillSome("crm"); err != nil {
			t.Fatal(err)
		}
		checkFile(t, s)
	}
	err := s.view(func(tx *txn) error {
		return tx.queue("crm").deliveries.ForEach(func(k, v []byte) error {
			if d, _, version, err := decodeDelivery(v); err == nil && d.State == store.Pending && version == 0 {
				t.Errorf("delivery %d waits in the older layout still", decodeNumber(k))
			}
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
}

// What waits in an older file expires in time, also where the endpoint takes nothing, so that it is
// never its turn.
func TestDeliveriesOfAnOlderFileExpireInTime(t *testing.T) {
	c := &storetest.CRM{Answer: func(_ int, _ storetest.Received, w http.ResponseWriter) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
	}}
	storetest.Bubble(t, c, func(t *testing.T) {
		e := storetest.Endpoint("crm")
		e.RingingTTL = 10 * time.Minute
		opts := quietly(t, storetest.Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		oldBacklog(t, opts, 200)
		o := storetest.OpenBox(t, harness{}, opts)
		stop := storetest.RunBox(t, o)
		time.Sleep(11 * time.Minute)
		stop()
		if got := storetest.States(t, o, "crm"); got[store.Expired] != 400 || got[store.Pending] != 200 {
			t.Errorf("states: %v", got)
		}
	})
}

// Files of the first two layouts, as bridges of their time have written them at the beginning of
// fake time, open with all that is in them, also as a backup that is restored, and what waits is
// delivered in order. Of call 1 three events were delivered; the first of call 2 got a 503 and
// holds two others; call 3 got a 410; the three events of call 4 were not tried.
func TestFilesOfTheFirstLayoutsAreDeliveredInOrder(t *testing.T) {
	for _, file := range []string{"testdata/layout1.db", "testdata/layout2.db"} {
		for name, put := range map[string]func(path string) error{
			"after an upgrade": func(path string) error { return copyFile(path, file) },
			"after a restore":  func(path string) error { _, err := Restore(path, file); return err },
		} {
			t.Run(file+" "+name, func(t *testing.T) {
				c := &storetest.CRM{}
				storetest.Bubble(t, c, func(t *testing.T) {
					time.Sleep(5 * time.Second) // past what stands in the file
					path := filepath.Join(t.TempDir(), "outbox.db")
					if err := put(path); err != nil {
						t.Fatal(err)
					}
					deliverOldFile(t, c, path)
				})
			})
		}
	}
}

func deliverOldFile(t *testing.T, c *storetest.CRM, path string) {
	t.Helper()
	o := storetest.OpenBox(t, harness{}, layout3Options(t, c, path))
	checkFile(t, engineOf(o))
	got := storetest.States(t, o, "crm")
	if got[store.Pending] != 6 || got[store.Delivered] != 3 || got[store.Dead] != 1 {
		t.Errorf("states: %v", got)
	}
	stop := storetest.RunBox(t, o)
	synctest.Wait()
	if hooks := c.Received(); len(hooks) != 3 { // call 2 waits for the time of its first
		t.Errorf("%d are sent at once", len(hooks))
	}
	time.Sleep(15 * time.Minute)
	storetest.MustAppend(t, o, completed("4")...)
	time.Sleep(time.Minute)
	stop()
	hooks := c.Received()
	checkOrder(t, hooks)
	if call, n := callIn(t, hooks[len(hooks)-1].Body); len(hooks) != 7 || call != "4" || n != 4 {
		t.Errorf("%d are sent, the last is event %d of call %s", len(hooks), n, call)
	}
	if got := storetest.States(t, o, "crm"); got[store.Delivered] != 10 || got[store.Dead] != 1 {
		t.Errorf("in the end the states are %v", got)
	}
}

// The calls of an older file are found by their numbers once the index by number is filled, in
// steps that survive a kill; until then a search says that some may be missing.
func TestCallsOfAnOlderFileAreFoundByNumber(t *testing.T) {
	opts := quietly(t, storetest.Options{})
	o := mustOpen(t, opts)
	const calls = fillBatch + 10
	for i := range calls {
		e := storetest.Event("call.incoming", fmt.Sprint(i))
		e.From, e.To = fmt.Sprintf("8343011%04d", i), "101"
		storetest.MustAppend(t, o, e)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	toLayout3(t, opts.Place)
	o = storetest.OpenBox(t, harness{}, opts)
	s := engineOf(o)
	find := func(number string) (string, bool) {
		found, err := o.Outbox.FindCalls(t.Context(), outbox.CallFilter{Number: number, Limit: 2})
		if err != nil || len(found.Calls) > 1 {
			t.Fatalf("%+v, %v", found, err)
		}
		if len(found.Calls) == 0 {
			return "", found.Unindexed
		}
		return found.Calls[0].CallID, found.Unindexed
	}
	if call, unindexed := find("+73430110005"); call != "5" || !unindexed { // it is looked for without the index
		t.Errorf("before: call %q, unindexed %v", call, unindexed)
	}
	checkFile(t, s)
	if done, err := s.fillNumbers(); done || err != nil {
		t.Fatal(done, err)
	}
	checkFile(t, s)
	if call, unindexed := find("+73430110005"); call != "5" || !unindexed {
		t.Errorf("after a step: call %q, unindexed %v", call, unindexed)
	}
	for done := false; !done; {
		var err error
		if done, err = s.fillNumbers(); err != nil {
			t.Fatal(err)
		}
	}
	checkFile(t, s)
	last := fmt.Sprintf("+7343011%04d", calls-1)
	if call, unindexed := find(last); call != fmt.Sprint(calls-1) || unindexed {
		t.Errorf("after all steps: call %q, unindexed %v", call, unindexed)
	}
}
