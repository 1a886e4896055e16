package bolt

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// What OUTBOX_MAX_BYTES may be at most can be mapped, free pages and all. A process of 64 bits has
// room to spare.
func TestLargestFileCanBeMapped(t *testing.T) {
	if strconv.IntSize == 64 {
		t.Skip("the address space is larger than any disk")
	}
	db, err := openFile(filepath.Join(t.TempDir(), "outbox.db"), int(2*store.LargestMaxBytes-1))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	opts := quietly(t, storetest.Options{MaxBytes: store.LargestMaxBytes + 1})
	if o, err := storetest.Open(harness{}, opts); err == nil {
		t.Error("more than that is taken")
		_ = o.Close()
	}
}

// While a CRM is away the file fills: what is finished goes early, then Append fails with ErrFull,
// and nothing else is refused. It ends by itself.
func TestFullFileRefusesEventsAloneAndRecovers(t *testing.T) {
	storetest.SkipBulk(t)
	t.Parallel()
	var up atomic.Bool
	up.Store(true)
	c := &storetest.CRM{Forget: true, Answer: func(_ int, _ storetest.Received, w http.ResponseWriter) {
		if !up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}}
	storetest.Bubble(t, c, func(t *testing.T) {
		const limit = 2 << 20
		opts := quietly(t, storetest.Options{DialContext: c.Net.Dial, MaxBytes: limit, Retention: 1000 * time.Hour})
		o := storetest.OpenBox(t, harness{}, opts)
		stop := storetest.RunBox(t, o)
		n := 0
		appendSome := func() error {
			events := make([]telephony.Event, 64)
			for i := range events {
				n++
				events[i] = storetest.Event("call.completed", fmt.Sprint(n))
			}
			err := o.Append(t.Context(), events)
			time.Sleep(20 * time.Second)
			return err
		}
		// Three times what fits, all delivered: it goes early, and Append never fails.
		for range 300 {
			if err := appendSome(); err != nil {
				t.Fatal(err)
			}
		}
		got := storetest.States(t, o, "crm")
		if got[store.Pending] != 0 || got[store.Delivered] < 1000 || got[store.Delivered] > 10_000 {
			t.Errorf("states: %v", got)
		}
		up.Store(false)
		var err error
		for range 300 {
			if err = appendSome(); err != nil {
				break
			}
		}
		if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "2.0 MiB are allowed") {
			t.Fatalf("it does not get full: %v", err)
		}
		if got := storetest.States(t, o, "crm"); got[store.Delivered] > 0 || got[store.Pending] < 1000 {
			t.Errorf("when it is full the states are %v", got)
		}
		if err := o.Writable(); !errors.Is(err, store.ErrFull) {
			t.Errorf("readiness says %v", err)
		}
		up.Store(true)
		time.Sleep(10 * time.Minute) // the next probe, and all that has waited
		for range 20 {
			err = appendSome() // as the relay does
		}
		if err != nil || o.Writable() != nil {
			t.Errorf("it stays full: %v", err)
		}
		synctest.Wait()
		stop()
		if got := storetest.States(t, o, "crm"); got[store.Pending] != 0 {
			t.Errorf("in the end the states are %v", got)
		}
	})
}

// A start with a full file is unready as soon as anything is to be stored, whatever comes first.
func TestFullFileIsUnreadyAfterARestart(t *testing.T) {
	opts := quietly(t, storetest.Options{MaxBytes: 1 << 19})
	o := mustOpen(t, opts)
	var err error
	for i := 0; err == nil; i++ {
		err = o.Append(t.Context(), completed(fmt.Sprint(i)))
	}
	if err := errors.Join(err, o.Close()); !errors.Is(err, store.ErrFull) {
		t.Fatal(err)
	}
	o = storetest.OpenBox(t, harness{}, opts)
	events := append(eventsOf("", telephony.EventConnected), completed("1")...)
	if err := o.Append(t.Context(), events); !errors.Is(err, store.ErrFull) {
		t.Errorf("it takes more: %v", err)
	}
	if err := o.Writable(); !errors.Is(err, store.ErrFull) {
		t.Errorf("readiness says %v", err)
	}
}
