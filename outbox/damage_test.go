package outbox

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
)

// A record of a call that is damaged is passed over: what is asked of that call works as far as it can, and of others as ever.
func TestDamagedCallHangsNobody(t *testing.T) {
	o, err := Open(withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	a, b := event("call.incoming", "5"), event("call.completed", "5")
	mustAppend(t, o, a, b)
	damageCall(t, o)
	if d, err := o.Redeliver(b.ID + ".crm"); err != nil || d.State != "pending" {
		t.Errorf("the event behind it is redelivered: %v, %v", d, err)
	}
	replay := event("call.incoming_answered", "5")
	replay.Replayed, replay.Fingerprint = true, [16]byte{1}
	mustAppend(t, o, replay, event("call.incoming", "6"))
	if got := states(t, o, "crm"); got[pending] != 4 {
		t.Errorf("states: %v", got)
	}
}

// damageCall overwrites what is kept of the first event of call 5.
func damageCall(t *testing.T, o *Outbox) {
	t.Helper()
	key := append(callKey("5"), number(1)...)
	if err := o.store.commit(func(tx *txn) error { return tx.calls.Put(key, []byte("x")) }); err != nil {
		t.Fatal(err)
	}
}

// A delivery that is held and damaged is given up, and the rest of its call goes on.
func TestHeldAndDamaged(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o, err := Open(withDefaults(t, Options{DialContext: c.net.Dial, Logger: slog.New(slog.DiscardHandler)}))
		if err != nil {
			t.Fatal(err)
		}
		mustAppend(t, o, event("call.incoming", "5"), event("call.incoming_answered", "5"), event("call.completed", "5"))
		if err := o.store.commit(func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(2), []byte("x")) }); err != nil {
			t.Fatal(err)
		}
		stop := run(t, o)
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		mustAppend(t, o, event("call.completed", "5"))
		time.Sleep(48 * time.Hour)
		stop()
		got := ""
		for _, r := range c.received() {
			_, sequence := callOf(t, r)
			got += fmt.Sprint(sequence, " ")
		}
		if got != "1 3 4 " {
			t.Errorf("of the events 1, (2), 3 and 4 arrived: %s", got)
		}
		if got := states(t, o, "crm"); got[pending] != 0 || got[delivered] != 3 || got[dead] != 1 {
			t.Errorf("states: %v", got)
		}
		_ = o.Close()
	})
}

// What waits behind a delivery that is given up goes on, also where what came right after it is done with.
func TestDamagedBeforeAGap(t *testing.T) {
	o, err := Open(withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var events []telephony.Event
	for range 3 {
		events = append(events, event("call.completed", "5"))
	}
	mustAppend(t, o, events...)
	for i := range 3 { // all are dead, then the first and the last are delivered again
		f, err := o.store.due("crm", 1, nil, time.Now())
		if err != nil || len(f.jobs) != 1 {
			t.Fatal(i, f, err)
		}
		if err := o.store.record("crm", []result{{job: f.jobs[0], now: f.jobs[0].delivery.ended(dead, time.Now())}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range []int{0, 2} {
		if _, err := o.Redeliver(events[i].ID + ".crm"); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.store.commit(func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(1), []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	if err := o.store.giveUp("crm", []uint64{1}); err != nil {
		t.Fatal(err)
	}
	if f, err := o.store.due("crm", 10, nil, time.Now()); err != nil || len(f.jobs) != 1 || f.jobs[0].number != 3 {
		t.Errorf("due are %+v, %v", f.jobs, err)
	}
}

// Counts that are damaged are wrong numbers and nothing more.
func TestDamagedCounts(t *testing.T) {
	o, err := Open(withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	mustAppend(t, o, event("call.completed", "1"), event("call.completed", "2"))
	if err := o.store.commit(func(tx *txn) error { return tx.queue("crm").root.Put(keyCounts, []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("a look for what is due panics: %v", r)
		}
	}()
	for range 2 { // claim, deliver, record, claim
		f, err := o.store.due("crm", 64, nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if len(f.jobs) > 0 {
			j := f.jobs[0]
			if err := o.store.record("crm", []result{{job: j, now: j.delivery.ended(delivered, time.Now())}}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A key of the due index that is damaged is told of and taken away, and holds up nothing.
func TestDamagedDueKey(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Logger: slog.New(slog.DiscardHandler)})
		for _, k := range [][]byte{{0}, []byte("twelve bytes"), []byte("a key of some thirty bytes")} {
			if err := o.store.commit(func(tx *txn) error { return tx.queue("crm").due.Put(k, nil) }); err != nil {
				t.Fatal(err)
			}
		}
		mustAppend(t, o, event("call.completed", "5"))
		if _, err := o.OldestPending("crm"); err != nil {
			t.Error(err)
		}
		stop := run(t, o)
		synctest.Wait()
		stop()
		if got := states(t, o, "crm"); got[delivered] != 1 || c.count() != 1 {
			t.Errorf("states: %v", got)
		}
	})
}

// What bbolt writes into the head of a page says of which kind it is.
const (
	leafPage     = 0x02
	freelistPage = 0x10
)

// damagePages damages the pages of a kind in an outbox's file, and gives the file as it was.
func damagePages(t *testing.T, o *Outbox, path string, of func(kind byte) bool, damage func(page []byte)) (sound []byte) {
	t.Helper()
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file, size := bytes.Clone(sound), int(o.store.pageSize)
	for at := 2 * size; at < len(file); at += size { // behind the two meta pages
		if page := file[at : at+size]; of(page[8]) {
			damage(page)
		}
	}
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return sound
}

// A file with pages that are overwritten is refused with a sentence.
func TestDamagedPages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	o, err := Open(withDefaults(t, Options{Path: path, Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	damagePages(t, o, path, func(kind byte) bool { return kind != freelistPage }, func(page []byte) { clear(page[:16]) })
	if o, err = Open(withDefaults(t, Options{Path: path, Logger: slog.New(slog.DiscardHandler)})); !errors.Is(err, ErrNotOutbox) {
		t.Errorf("it is opened: %v", err)
	}
	if err == nil {
		_ = o.Close()
	}
}

// A delivery that waits and is damaged is given up when the clock is set back, and takes nothing from those behind it.
func TestClockSetBackOverDamage(t *testing.T) {
	o, err := Open(withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	mustAppend(t, o, event("call.completed", "1"), event("call.completed", "2"), event("call.completed", "3"))
	f, err := o.store.due("crm", 10, nil, time.Now())
	if err != nil || len(f.jobs) != 3 {
		t.Fatal(f, err)
	}
	later := time.Now().Add(time.Hour)
	for _, j := range f.jobs {
		failed := result{job: j, now: j.delivery.tried(outcome{status: 500}, []time.Duration{time.Minute}, later, 0), attempt: &Attempt{At: later}}
		if err := o.store.record("crm", []result{failed}); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.store.commit(func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(1), []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	if err := o.store.clockSetBack("crm", time.Now(), 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	if f, err := o.store.due("crm", 10, nil, time.Now()); err != nil || len(f.jobs) != 2 {
		t.Errorf("%d of the 2 that can be read are due, %v", len(f.jobs), err)
	}
	if got := states(t, o, "crm"); got[dead] != 1 {
		t.Errorf("states: %v", got)
	}
}

// Keys of the due index that no delivery knows of do not keep a failing endpoint from being lined up.
func TestLineUpOverStaleKeys(t *testing.T) {
	o := openOutbox(t, Options{})
	mustAppend(t, o, event("call.completed", "1"))
	err := o.store.commit(func(tx *txn) (err error) {
		for i := range 2 * lineBatch {
			err = errors.Join(err, tx.queue("crm").due.Put(dueKey(int64(1+i), 1), nil))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- o.store.lineUp("crm") }()
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
func TestFreePagesDamaged(t *testing.T) {
	opts := withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)})
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
	}
	sound := damagePages(t, o, opts.Path, func(kind byte) bool { return kind == freelistPage }, func(page []byte) { clear(page[:16]) })
	for _, what := range []string{"damaged", "sound again: who knows what else is wrong"} {
		if err := o.Append(t.Context(), []telephony.Event{event("call.completed", "new")}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: an append: %v", what, err)
		}
		if err := os.WriteFile(opts.Path, sound, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	closed := make(chan error, 1)
	go func() { closed <- o.Close() }()
	select {
	case err := <-closed:
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("Close: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Close waits for ever")
	}
}

// Pages that are damaged while the bridge runs are told of, and end neither the program nor what asks for them.
func TestPagesDamagedWhileItRuns(t *testing.T) {
	for name, damage := range map[string]func(page []byte){
		"zeros":         func(page []byte) { clear(page) },
		"noise":         func(page []byte) { copy(page, bytes.Repeat([]byte("\xa5\x5a\xff"), len(page))) },
		"its elements":  func(page []byte) { clear(page[16:256]) },
		"another place": func(page []byte) { page[0]++ }, // it says that it is the page behind
	} {
		t.Run(name, func(t *testing.T) {
			c := &crm{}
			bubble(t, c, func(t *testing.T) {
				opts := withDefaults(t, Options{DialContext: c.net.Dial, Logger: slog.New(slog.DiscardHandler)})
				o, err := Open(opts)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = o.Close() }()
				for i := range 300 {
					mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
				}
				damagePages(t, o, opts.Path, func(kind byte) bool { return kind == leafPage }, damage)
				stop := run(t, o)
				time.Sleep(time.Minute)
				isTold := func(err error) bool { return errors.Is(err, ErrDamaged) || errors.Is(err, errDamaged) }
				if _, _, err := o.Deliveries(DeliveryQuery{Limit: 500}); !isTold(err) {
					t.Errorf("the list: %v", err)
				}
				if err := o.Append(t.Context(), []telephony.Event{event("call.completed", "new")}); !isTold(err) {
					t.Errorf("an append: %v", err)
				}
				if err := o.Writable(); !isTold(err) {
					t.Errorf("Writable: %v", err)
				}
				stop()
			})
		})
	}
}

// Of a call whose route is damaged the events are told all the same.
func TestDamagedRoute(t *testing.T) {
	o := openOutbox(t, Options{})
	mustAppend(t, o, event("call.transfer_requested", "5"), event("call.incoming", "5"))
	if err := o.store.commit(func(tx *txn) error { return tx.routes.Put(callKey("5"), []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	page, err := o.Call("5", 0)
	if len(page.Events) != 2 || page.Route != nil || err != nil {
		t.Errorf("%d events, %v, %v", len(page.Events), page.Route, err)
	}
}

// bigOutbox is the file of a closed outbox whose trees have branches.
func bigOutbox(t *testing.T) (opts Options, pageSize int) {
	t.Helper()
	opts = withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)})
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	for batch := range 20 {
		var list []telephony.Event
		for i := range 100 {
			list = append(list, event("call.completed", fmt.Sprint(batch*100+i)))
		}
		mustAppend(t, o, list...)
	}
	pageSize = int(o.store.pageSize)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	return opts, pageSize
}

// A branch page that leads back to itself, to a page above it, or nowhere, which bbolt would follow
// until the process dies, is found when the file is opened, compacted or restored.
func TestBranchPagesThatLeadAstray(t *testing.T) {
	opts, size := bigOutbox(t)
	sound, err := os.ReadFile(opts.Path)
	if err != nil {
		t.Fatal(err)
	}
	var branches []int
	for at := 2 * size; at < len(sound); at += size {
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
			if err := os.WriteFile(opts.Path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			if o, err := Open(opts); !errors.Is(err, ErrNotOutbox) {
				t.Errorf("page %d %s: it is opened: %v", at/size, name, err)
				if err == nil {
					_ = o.Close()
				}
			}
			if _, _, err := Compact(opts.Path); !errors.Is(err, ErrNotOutbox) {
				t.Errorf("page %d %s: it is compacted: %v", at/size, name, err)
			}
			if _, err := Restore(filepath.Join(t.TempDir(), "fresh.db"), opts.Path); !errors.Is(err, ErrNotOutbox) {
				t.Errorf("page %d %s: it is restored: %v", at/size, name, err)
			}
		}
	}
	if err := os.WriteFile(opts.Path, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := Open(opts)
	if err != nil {
		t.Fatalf("the sound file: %v", err)
	}
	_ = o.Close()
}

// isFree says whether a page is one that the file's freelist names: what stands in it means nothing.
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

// A page that is damaged where deliveries stand, or becomes so while their outcomes are recorded, costs
// what stands on it. Everything else is delivered, and readiness and one line of the log say it.
func TestDamagedPageCostsWhatStandsThere(t *testing.T) {
	for name, beforeClaim := range map[string]bool{"before they are claimed": true, "before they are recorded": false} {
		t.Run(name, func(t *testing.T) {
			var answer chan struct{}
			c := &crm{answer: func(int, received, http.ResponseWriter) { <-answer }}
			bubble(t, c, func(t *testing.T) {
				answer = make(chan struct{})
				opts, size := bigOutbox(t)
				var log strings.Builder
				opts.DialContext, opts.Logger = c.net.Dial, slog.New(slog.NewTextHandler(&log, nil))
				o, err := Open(opts)
				if err != nil {
					t.Fatal(err)
				}
				damage := func() {
					damageLeaf(t, o, opts.Path, size)
					synctest.Wait()
				}
				if beforeClaim {
					damage()
				}
				stop := run(t, o)
				synctest.Wait()
				if !beforeClaim {
					damage()
				}
				close(answer)
				time.Sleep(time.Minute)
				sent := map[string]int{}
				for _, r := range c.received() {
					sent[r.header.Get("webhook-id")]++
				}
				for id, n := range sent {
					if n > 1 {
						t.Fatalf("%s was sent %d times", id, n)
					}
				}
				if len(sent) < 1700 {
					t.Errorf("%d of 2000 were sent", len(sent))
				}
				if err := o.Writable(); !errors.Is(err, ErrDamaged) {
					t.Errorf("readiness: %v", err)
				}
				if n := strings.Count(log.String(), `msg="the outbox is damaged"`); n != 1 {
					t.Errorf("%d lines say that it is damaged", n)
				}
				mustAppend(t, o, event("call.completed", "new"))
				stop()
				_ = o.Close()
			})
		})
	}
}

// damageLeaf overwrites the first leaf of the deliveries of "crm".
func damageLeaf(t *testing.T, o *Outbox, path string, size int) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = o.store.db.View(func(tx *bolt.Tx) error {
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
