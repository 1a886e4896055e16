package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// A damaged record of a call is passed over: requests about that call work as far as they can, and
// those about other calls work as ever.
func TestDamagedRecordOfACallIsPassedOver(t *testing.T) {
	o := openToDamage(t, storetest.Options{})
	a, b := storetest.Event("call.incoming", "5"), storetest.Event("call.completed", "5")
	storetest.MustAppend(t, o, a, b)
	key := append(callKey("5"), number(1)...)
	mustCommit(t, engineOf(o), func(tx *txn) error { return tx.calls.Put(key, []byte("x")) })
	if d, err := o.Redeliver(b.ID + ".crm"); err != nil || d.State != "pending" {
		t.Errorf("the event behind it is redelivered: %v, %v", d, err)
	}
	replay := storetest.Event("call.incoming_answered", "5")
	replay.Replayed, replay.Fingerprint = true, [16]byte{1}
	storetest.MustAppend(t, o, replay, storetest.Event("call.incoming", "6"))
	if got := storetest.States(t, o, "crm"); got[store.Pending] != 4 {
		t.Errorf("states: %v", got)
	}
}

// A delivery that is held and damaged is given up, and the rest of its call goes on.
func TestHeldAndDamagedDeliveryIsGivenUp(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		o := openToDamage(t, storetest.Options{DialContext: c.Net.Dial})
		storetest.MustAppend(t, o, eventsOf("5", "call.incoming", "call.incoming_answered", "call.completed")...)
		damageDelivery(t, engineOf(o), 2)
		stop := storetest.RunBox(t, o)
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		storetest.MustAppend(t, o, completed("5")...)
		time.Sleep(48 * time.Hour)
		stop()
		got := ""
		for _, r := range c.Received() {
			_, sequence := callIn(t, r.Body)
			got += fmt.Sprint(sequence, " ")
		}
		if got != "1 3 4 " {
			t.Errorf("of the events 1, (2), 3 and 4 arrived: %s", got)
		}
		states := storetest.States(t, o, "crm")
		if states[store.Pending] != 0 || states[store.Delivered] != 3 || states[store.Dead] != 1 {
			t.Errorf("states: %v", states)
		}
	})
}

// What waits behind a delivery that is given up goes on, also where what came right after it is
// done with.
func TestWhatIsBehindADamagedDeliveryAndAGapGoesOn(t *testing.T) {
	o := openToDamage(t, storetest.Options{})
	var events []telephony.Event
	for range 3 {
		events = append(events, storetest.Event("call.completed", "5"))
	}
	storetest.MustAppend(t, o, events...)
	for range 3 { // all are dead, then the first and the last are delivered again
		f := dueNow(t, engineOf(o), 1)
		if len(f.jobs) != 1 {
			t.Fatal(f)
		}
		dead := store.Result{Job: f.jobs[0], Now: f.jobs[0].Delivery.Ended(store.Dead, time.Now())}
		if err := engineOf(o).record("crm", []store.Result{dead}); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range []int{0, 2} {
		if _, err := o.Redeliver(events[i].ID + ".crm"); err != nil {
			t.Fatal(err)
		}
	}
	damageDelivery(t, engineOf(o), 1)
	if err := laneOf(t, engineOf(o), "crm").giveUp([]uint64{1}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if f := dueNow(t, engineOf(o), 10); len(f.jobs) != 1 || f.jobs[0].Number != 3 {
		t.Errorf("due are %+v", f.jobs)
	}
}

// Counts that are damaged are wrong numbers and nothing more.
func TestDamagedCountsHoldUpNoDelivery(t *testing.T) {
	o := openToDamage(t, storetest.Options{})
	storetest.MustAppend(t, o, completed("1", "2")...)
	mustCommit(t, engineOf(o), func(tx *txn) error { return tx.queue("crm").root.Put(keyCounts, []byte("x")) })
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("a look for what is due panics: %v", r)
		}
	}()
	for range 2 { // claim, deliver, record, claim
		if f := dueNow(t, engineOf(o), 64); len(f.jobs) > 0 {
			j := f.jobs[0]
			done := store.Result{Job: j, Now: j.Delivery.Ended(store.Delivered, time.Now())}
			if err := engineOf(o).record("crm", []store.Result{done}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A damaged key of the due index is logged and taken away, and holds up nothing.
func TestDamagedKeyOfTheDueIndexIsTakenAway(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		opts := quietly(t, storetest.Options{DialContext: c.Net.Dial})
		o := storetest.OpenBox(t, harness{}, opts)
		for _, k := range [][]byte{{0}, []byte("twelve bytes"), []byte("a key of some thirty bytes")} {
			mustCommit(t, engineOf(o), func(tx *txn) error { return tx.queue("crm").due.Put(k, nil) })
		}
		storetest.MustAppend(t, o, completed("5")...)
		if _, err := o.OldestPending("crm"); err != nil {
			t.Error(err)
		}
		stop := storetest.RunBox(t, o)
		synctest.Wait()
		stop()
		if got := storetest.States(t, o, "crm"); got[store.Delivered] != 1 || c.Count() != 1 {
			t.Errorf("states: %v", got)
		}
	})
}

// A damaged key of the index by expiry, and one that belongs to no delivery, keep nothing from
// expiring.
func TestDamagedKeyOfTheIndexByExpiryHoldsUpNothing(t *testing.T) {
	c := &storetest.CRM{Answer: func(_ int, _ storetest.Received, w http.ResponseWriter) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}}
	storetest.Bubble(t, c, func(t *testing.T) {
		e := storetest.Endpoint("crm")
		e.RingingTTL = time.Minute
		o := openToDamage(t, storetest.Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		for _, k := range [][]byte{{0}, []byte("twelve bytes"), timeKey(1, 99)} {
			mustCommit(t, engineOf(o), func(tx *txn) error { return tx.queue("crm").expiry.Put(k, nil) })
		}
		storetest.MustAppend(t, o, storetest.Event("call.incoming", "5"), storetest.Event("call.incoming", "6"))
		stop := storetest.RunBox(t, o)
		time.Sleep(2 * time.Minute)
		stop()
		if got := storetest.States(t, o, "crm"); got[store.Expired] != 2 {
			t.Errorf("states: %v", got)
		}
	})
}

// freelistKind is the kind of bbolt's page of free pages: see pageHead.
const freelistKind = 0x10

// damagePages damages the pages of a kind in an outbox's file, and gives the file as it was.
func damagePages(
	t *testing.T, o *storetest.Box, of func(kind byte) bool, damage func(page []byte),
) (sound []byte) {
	t.Helper()
	s := engineOf(o)
	sound, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	file, size := bytes.Clone(sound), int(s.pageSize)
	for at := firstDataPage * size; at < len(file); at += size {
		if page := file[at : at+size]; of(page[8]) {
			damage(page)
		}
	}
	if err := os.WriteFile(s.path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return sound
}

// A file with pages that are overwritten is refused with a sentence.
func TestFileWithOverwrittenPagesIsRefused(t *testing.T) {
	opts := quietly(t, storetest.Options{})
	o := mustOpen(t, opts)
	for i := range 100 {
		storetest.MustAppend(t, o, completed(fmt.Sprint(i))...)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	damagePages(t, o,
		func(kind byte) bool { return kind != freelistKind }, func(page []byte) { clear(page[:pageHead]) })
	o, err := storetest.Open(harness{}, opts)
	if !errors.Is(err, ErrNotOutbox) {
		t.Errorf("it is opened: %v", err)
	}
	if err == nil {
		_ = o.Close()
	}
}

// A delivery that waits and is damaged is given up when the clock is set back, and takes nothing
// from those behind it.
func TestClockSetBackOverADamagedDelivery(t *testing.T) {
	// With this schedule no wait is longer than 24 hours.
	o := openToDamage(t, storetest.Options{RetrySchedule: []time.Duration{20 * time.Hour}})
	storetest.MustAppend(t, o, completed("1", "2", "3")...)
	f := dueNow(t, engineOf(o), 10)
	if len(f.jobs) != 3 {
		t.Fatal(f)
	}
	later := time.Now().Add(time.Hour)
	for _, j := range f.jobs {
		now := j.Delivery
		now.Attempts, now.Step = 1, 1
		now.FailedAt, now.Due = later.UnixNano(), later.Add(48*time.Second).UnixNano()
		failed := store.Result{Job: j, Now: now, Attempt: &store.Attempt{At: later}}
		if err := engineOf(o).record("crm", []store.Result{failed}); err != nil {
			t.Fatal(err)
		}
	}
	damageDelivery(t, engineOf(o), 1)
	if err := laneOf(t, engineOf(o), "crm").setBack(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if f := dueNow(t, engineOf(o), 10); len(f.jobs) != 2 {
		t.Errorf("%d of the 2 that can be read are due", len(f.jobs))
	}
	if got := storetest.States(t, o, "crm"); got[store.Dead] != 1 {
		t.Errorf("states: %v", got)
	}
}

// Keys of the due index that belong to no delivery do not keep a failing endpoint from being lined
// up.
func TestLineUpOverStaleKeysEnds(t *testing.T) {
	o := storetest.OpenBox(t, harness{}, storetest.Options{})
	storetest.MustAppend(t, o, completed("1")...)
	mustCommit(t, engineOf(o), func(tx *txn) (err error) {
		for i := range 2 * lineBatch {
			err = errors.Join(err, tx.queue("crm").due.Put(timeKey(int64(1+i), 1), nil))
		}
		return err
	})
	l, done := laneOf(t, engineOf(o), "crm"), make(chan error, 1)
	go func() { done <- l.LineUp(t.Context(), time.Now()) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on for ever")
	}
}

// Where a commit meets damage nothing more is written, and the program can end.
func TestNothingIsWrittenOnceACommitHasMetDamage(t *testing.T) {
	opts := quietly(t, storetest.Options{})
	o := mustOpen(t, opts)
	for i := range 10 {
		storetest.MustAppend(t, o, completed(fmt.Sprint(i))...)
	}
	sound := damagePages(t, o,
		func(kind byte) bool { return kind == freelistKind }, func(page []byte) { clear(page[:pageHead]) })
	for _, what := range []string{"damaged", "sound again: there may be other damage"} {
		if err := o.Append(t.Context(), completed("new")); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("%s: an append: %v", what, err)
		}
		if err := os.WriteFile(opts.Place, sound, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	closed := make(chan error, 1)
	go func() { closed <- o.Close() }()
	select {
	case err := <-closed:
		if !errors.Is(err, store.ErrDamaged) {
			t.Errorf("Close: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Close waits for ever")
	}
}

// Pages that are damaged while the bridge runs are an error of every request that reads them, and
// end neither the program nor the request.
func TestPagesDamagedWhileTheBridgeRuns(t *testing.T) {
	for name, damage := range map[string]func(page []byte){
		"zeros":         func(page []byte) { clear(page) },
		"noise":         func(page []byte) { copy(page, bytes.Repeat([]byte("\xa5\x5a\xff"), len(page))) },
		"its elements":  func(page []byte) { clear(page[16:256]) },
		"another place": func(page []byte) { page[0]++ }, // it says that it is the page behind
	} {
		t.Run(name, func(t *testing.T) {
			c := &storetest.CRM{}
			storetest.Bubble(t, c, func(t *testing.T) {
				o := openToDamage(t, storetest.Options{DialContext: c.Net.Dial})
				for i := range 300 {
					storetest.MustAppend(t, o, completed(fmt.Sprint(i))...)
				}
				damagePages(t, o, func(kind byte) bool { return kind == leafKind }, damage)
				stop := storetest.RunBox(t, o)
				time.Sleep(time.Minute)
				isDamage := func(err error) bool {
					return errors.Is(err, store.ErrDamaged) || errors.Is(err, store.ErrBadRecord)
				}
				if _, _, err := o.Deliveries(store.DeliveryQuery{Limit: 500}); !isDamage(err) {
					t.Errorf("the list: %v", err)
				}
				if err := o.Append(t.Context(), completed("new")); !isDamage(err) {
					t.Errorf("an append: %v", err)
				}
				if err := o.Writable(); !isDamage(err) {
					t.Errorf("Writable: %v", err)
				}
				stop()
			})
		})
	}
}

// The page of a call whose route is damaged shows its events all the same.
func TestEventsOfACallWithADamagedRoute(t *testing.T) {
	o := storetest.OpenBox(t, harness{}, storetest.Options{})
	storetest.MustAppend(t, o, storetest.Event("call.transfer_requested", "5"), storetest.Event("call.incoming", "5"))
	mustCommit(t, engineOf(o), func(tx *txn) error { return tx.routes.Put(callKey("5"), []byte("x")) })
	page, err := o.Call("5", 0)
	if len(page.Events) != 2 || page.Route != nil || err != nil {
		t.Errorf("%d events, %v, %v", len(page.Events), page.Route, err)
	}
}

// bigOutbox is the file of a closed outbox whose trees have branches.
func bigOutbox(t *testing.T) (opts storetest.Options, pageSize int) {
	t.Helper()
	opts = quietly(t, storetest.Options{})
	o := mustOpen(t, opts)
	for batch := range 20 {
		var list []telephony.Event
		for i := range 100 {
			list = append(list, storetest.Event("call.completed", fmt.Sprint(batch*100+i)))
		}
		storetest.MustAppend(t, o, list...)
	}
	pageSize = int(engineOf(o).pageSize)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	return opts, pageSize
}

// A branch page that leads back to itself, to a page above it, or nowhere, which bbolt would follow
// until the process dies, is found when the file is opened, compacted or restored.
func TestBranchPagesThatLeadAstray(t *testing.T) {
	opts, size := bigOutbox(t)
	sound, err := os.ReadFile(opts.Place)
	if err != nil {
		t.Fatal(err)
	}
	var branches []int
	for at := firstDataPage * size; at < len(sound); at += size {
		if binary.NativeEndian.Uint16(sound[at+8:]) == branchKind {
			branches = append(branches, at)
		}
	}
	if len(branches) < 3 {
		t.Fatalf("there are %d branch pages", len(branches))
	}
	for name, leads := range map[string]uint64{"to itself": 0, "behind the end": 1 << 40, "to a meta page": 1} {
		for _, at := range branches {
			file := bytes.Clone(sound)
			number := leads
			if number == 0 {
				number = binary.NativeEndian.Uint64(file[at:])
			}
			binary.NativeEndian.PutUint64(file[at+pageHead+branchElement-8:], number)
			if isFree(file, size, uint64(at/size)) {
				continue
			}
			if err := os.WriteFile(opts.Place, file, 0o600); err != nil {
				t.Fatal(err)
			}
			if o, err := storetest.Open(harness{}, opts); !errors.Is(err, ErrNotOutbox) {
				t.Errorf("page %d %s: it is opened: %v", at/size, name, err)
				if err == nil {
					_ = o.Close()
				}
			}
			if _, _, err := Compact(opts.Place); !errors.Is(err, ErrNotOutbox) {
				t.Errorf("page %d %s: it is compacted: %v", at/size, name, err)
			}
			if _, err := Restore(filepath.Join(t.TempDir(), "fresh.db"), opts.Place); !errors.Is(err, ErrNotOutbox) {
				t.Errorf("page %d %s: it is restored: %v", at/size, name, err)
			}
		}
	}
	if err := os.WriteFile(opts.Place, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := storetest.Open(harness{}, opts)
	if err != nil {
		t.Fatalf("the sound file: %v", err)
	}
	_ = o.Close()
}

// isFree reports whether a page is one that the file's freelist names: what stands in it means
// nothing.
func isFree(file []byte, size int, page uint64) bool {
	meta := 0
	if tx := func(m int) uint64 { return binary.NativeEndian.Uint64(file[m*size+pageHead+48:]) }; tx(1) > tx(0) {
		meta = 1
	}
	at := int(binary.NativeEndian.Uint64(file[meta*size+pageHead+32:])) * size
	count := int(binary.NativeEndian.Uint16(file[at+10:]))
	for i := range count {
		if binary.NativeEndian.Uint64(file[at+pageHead+8*i:]) == page {
			return true
		}
	}
	return false
}

// A page that is damaged where deliveries stand, or becomes so while their outcomes are recorded,
// costs what stands on it. Everything else is delivered, and readiness and one line of the log say
// it.
func TestDamagedPageCostsWhatStandsThere(t *testing.T) {
	for name, beforeClaim := range map[string]bool{"before they are claimed": true, "before they are recorded": false} {
		t.Run(name, func(t *testing.T) {
			var answer chan struct{}
			c := &storetest.CRM{Answer: func(int, storetest.Received, http.ResponseWriter) { <-answer }}
			storetest.Bubble(t, c, func(t *testing.T) {
				answer = make(chan struct{})
				opts, size := bigOutbox(t)
				var log strings.Builder
				opts.DialContext, opts.Logger = c.Net.Dial, slog.New(slog.NewTextHandler(&log, nil))
				o := openToDamage(t, opts)
				damage := func() {
					damageLeaf(t, engineOf(o), size)
					synctest.Wait()
				}
				if beforeClaim {
					damage()
				}
				stop := storetest.RunBox(t, o)
				synctest.Wait()
				if !beforeClaim {
					damage()
				}
				close(answer)
				time.Sleep(time.Minute)
				sent := map[string]int{}
				for _, r := range c.Received() {
					sent[r.Header.Get("webhook-id")]++
				}
				for id, n := range sent {
					if n > 1 {
						t.Fatalf("%s was sent %d times", id, n)
					}
				}
				if len(sent) < 1700 {
					t.Errorf("%d of 2000 were sent", len(sent))
				}
				if err := o.Writable(); !errors.Is(err, store.ErrDamaged) {
					t.Errorf("readiness: %v", err)
				}
				if n := strings.Count(log.String(), `msg="the outbox is damaged"`); n != 1 {
					t.Errorf("%d lines say that it is damaged", n)
				}
				storetest.MustAppend(t, o, completed("new")...)
				stop()
			})
		})
	}
}

// damageLeaf overwrites the first leaf of the deliveries of "crm".
func damageLeaf(t *testing.T, s *Engine, size int) {
	t.Helper()
	file, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = s.db.View(func(tx *bolt.Tx) error {
		w := pageWalk{file: file, size: size, pages: uint64(tx.Size()) / uint64(size), seen: map[uint64]bool{}}
		page := uint64(tx.Bucket(bucketEndpoints).Bucket([]byte("crm")).Bucket(bucketDeliveries).Root())
		for {
			children, err := w.children(page)
			if err != nil || children == nil {
				_, errWrite := file.WriteAt(make([]byte, size), int64(page)*int64(size))
				return errors.Join(err, errWrite)
			}
			page = children[0]
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
