package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// A record of a call that is damaged fails what is asked of that call, and nothing else.
func TestDamagedCallHangsNobody(t *testing.T) {
	o, err := Open(withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	a, b := event("call.incoming", "5"), event("call.completed", "5")
	mustAppend(t, o, a, b)
	key := append(callKey("5"), number(1)...)
	if err := o.store.commit(func(tx *txn) error { return tx.calls.Put(key, []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() { // what net/http does around a handler: POST /v1/deliveries/{id}/redeliver
			if r := recover(); r != nil {
				t.Logf("the handler panics: %v", r)
			}
		}()
		_, err := o.Redeliver(b.ID + ".crm")
		t.Logf("redeliver: %v", err)
	}()
	done := make(chan error, 1)
	go func() { done <- o.Append(context.Background(), []telephony.Event{event("call.incoming", "6")}) }()
	select {
	case err := <-done:
		t.Logf("append: %v", err)
	case <-time.After(3 * time.Second):
		t.Errorf("an event of another call cannot be appended any more, it hangs; Writable says %v", o.Writable())
	}
}

// A replay of such a call is stored.
func TestReplayOfDamagedCall(t *testing.T) {
	o, err := Open(withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, o, event("call.incoming", "5"))
	key := append(callKey("5"), number(1)...)
	if err := o.store.commit(func(tx *txn) error { return tx.calls.Put(key, []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("Append panics: %v", r)
		}
	}()
	e := event("call.completed", "5")
	e.Replayed = true
	t.Log(o.Append(t.Context(), []telephony.Event{e}))
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
		_ = o.Close()
	})
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
	root := int64(0)
	_ = o.store.view(func(tx *txn) error { root = int64(tx.meta.Root()); t.Log("root of meta", root); return nil })
	size := o.store.pageSize
	_ = o.Close()
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("Open panics: %v", r)
		}
	}()
	f, _ := os.OpenFile(path, os.O_RDWR, 0)
	info, _ := f.Stat()
	// everything but the two meta pages and the freelist is overwritten, page by page that looks like no page
	for p := int64(2); p*size < info.Size(); p++ {
		h := make([]byte, 16)
		_, _ = f.ReadAt(h, p*size)
		if h[8] == 0x10 { // freelist
			continue
		}
		_, _ = f.WriteAt(make([]byte, 16), p*size)
	}
	_ = f.Close()
	o, err = Open(withDefaults(t, Options{Path: path, Logger: slog.New(slog.DiscardHandler)}))
	t.Log(err)
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
