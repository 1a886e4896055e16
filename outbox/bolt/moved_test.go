package bolt

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// openToCopy opens the file of an outbox that is closed.
func openToCopy(t *testing.T, o storetest.Options) *Source {
	t.Helper()
	s, err := OpenSource(sourceOptions(o))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sourceOptions(o storetest.Options) Options {
	return Options{
		Path: o.Place, MaxBytes: o.MaxBytes, Rules: o.Rules(), Clock: o.Clock, Logger: slog.New(slog.DiscardHandler),
	}
}

// closeIt closes what a test has opened itself.
func closeIt(t *testing.T, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// dumpAll gives all records of a file, batch by batch.
func dumpAll(t *testing.T, s *Source, limit int) (list []store.CopyRecord, damaged int) {
	t.Helper()
	for after := []byte(nil); ; {
		d, err := s.Dump(t.Context(), after, limit)
		if err != nil {
			t.Fatal(err)
		}
		list, damaged = append(list, d.Records...), damaged+d.Damaged
		if after = d.Next; after == nil {
			return list, damaged
		}
	}
}

// codeOf is the code of an error.
func codeOf(err error) telephony.Code {
	var fault *telephony.Fault
	if !errors.As(err, &fault) {
		return ""
	}
	return fault.Code
}

// A marked file is opened by no bridge, whatever becomes of it, also by none of a version that does
// not know the mark, and says where its contents are. Without the mark it is as before.
func TestMovedFileIsOpenedByNoBridge(t *testing.T) {
	o := quietly(t, storetest.Options{})
	b := mustOpen(t, o)
	storetest.MustAppend(t, b, completed("1", "2")...)
	if _, err := OpenSource(sourceOptions(o)); codeOf(err) != telephony.CodeBridgeRuns {
		t.Errorf("a file that a bridge has open is opened with %v", err)
	}
	closeIt(t, b)

	s := openToCopy(t, o)
	if mark, isMoved := s.Moved(); isMoved {
		t.Errorf("it is marked with %v", mark)
	}
	if err := s.Mark(uuid.UUID{7}, "database calls at db1"); err != nil {
		t.Fatal(err)
	}
	closeIt(t, s)
	isRefused := func(path string) {
		t.Helper()
		opts := sourceOptions(o)
		opts.Path = path
		e, err := Open(opts)
		if codeOf(err) != telephony.CodeMoved || !strings.Contains(err.Error(), "database calls at db1") {
			t.Errorf("it is opened with %v", err)
		}
		if err == nil {
			closeIt(t, e)
		}
	}
	isRefused(o.Place)
	if _, _, err := Compact(o.Place); err != nil {
		t.Fatal(err)
	}
	isRefused(o.Place)
	if _, err := Restore(filepath.Join(t.TempDir(), "other.db"), o.Place); codeOf(err) != telephony.CodeMoved {
		t.Errorf("it is restored with %v", err)
	}
	db, err := openFile(o.Place, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.View(func(tx *bolt.Tx) error {
		if tooNew(decodeNumber(tx.Bucket(bucketMeta).Get(keySchema))) == nil {
			t.Error("a version without the mark opens it")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	closeIt(t, db)

	s = openToCopy(t, o)
	mark, isMoved := s.Moved()
	if !isMoved || mark.ID != (uuid.UUID{7}) {
		t.Errorf("the mark is %v", mark)
	}
	if err := s.Unmark(); err != nil {
		t.Fatal(err)
	}
	closeIt(t, s)
	b = mustOpen(t, o)
	defer closeIt(t, b)
	if list := deliveriesOf(t, b, store.DeliveryQuery{Limit: 10}); len(list) != 2 {
		t.Errorf("there is %v", list)
	}
}

// A copy makes no file, and none that is something else an outbox.
func TestOnlyOutboxesAreCopied(t *testing.T) {
	o := quietly(t, storetest.Options{})
	if _, err := OpenSource(sourceOptions(o)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there is opened with %v", err)
	}
	if _, err := os.Stat(o.Place); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there now (%v)", err)
	}
	if err := os.WriteFile(o.Place, []byte(strings.Repeat("text ", 10_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSource(sourceOptions(o)); !errors.Is(err, ErrNotOutbox) {
		t.Errorf("another file is opened with %v", err)
	}
}

// Files of every earlier layout are copied.
func TestFilesOfEarlierLayoutsAreCopied(t *testing.T) {
	for _, file := range []string{"layout1.db", "layout2.db", "layout3.db"} {
		content, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		o := quietly(t, storetest.Options{})
		if err := os.WriteFile(o.Place, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s := openToCopy(t, o)
		events, deliveries := 0, 0
		list, damaged := dumpAll(t, s, 3)
		seen := map[uint64]bool{}
		for _, r := range list {
			if e, is := r.(store.EventRecord); is && !seen[e.Number] {
				seen[e.Number] = true
				events++
				deliveries += len(e.Deliveries)
			}
		}
		var want struct{ events, deliveries int }
		if err := s.engine.view(func(tx *txn) error {
			want.events = tx.events.Stats().KeyN
			for _, name := range tx.names() {
				want.deliveries += tx.queue(name).deliveries.Stats().KeyN
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if events != want.events || deliveries != want.deliveries || damaged > 0 || events == 0 {
			t.Errorf("%s: %d events with %d deliveries, want %v", file, events, deliveries, want)
		}
		closeIt(t, s)
	}
}

// The first part has the calls for which an endpoint waits whole, of the others the latest event,
// of events without a call those for which one waits, and the newest events, down to where an
// endpoint has read. The rest follows, the newest first.
func TestDumpBringsFirstWhatIsWaitedFor(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		o := quietly(t, storetest.Options{DialContext: c.Net.Dial})
		b := mustOpen(t, o)
		stop := storetest.RunBox(t, b)
		storetest.MustAppend(t, b, eventsOf("done", "call.incoming", "call.completed")...)
		storetest.MustAppend(t, b, eventsOf("waits", "call.incoming", "call.completed")...)
		storetest.MustAppend(t, b, eventsOf("", "pz.event", "pz.event")...)
		time.Sleep(time.Second)
		stop()
		list := deliveriesOf(t, b, store.DeliveryQuery{Limit: 100})
		for _, d := range list {
			if d.Type == "call.incoming" && d.CallID == "waits" || d.CallID == "" && d.ID == list[0].ID {
				if _, err := b.Redeliver(d.ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		closeIt(t, b)
		time.Sleep(25 * time.Hour)
		b = mustOpen(t, o)
		storetest.MustAppend(t, b, completed("new")...)
		closeIt(t, b)
		for _, limit := range []int{1, 2, 100} {
			s := openToCopy(t, o)
			if got, want := parts(t, s, limit), "2 3 4 6 7 7 | 6 5 4 3 2 1"; got != want {
				t.Errorf("in batches of %d the events come as %s, want %s", limit, got, want)
			}
			closeIt(t, s)
		}
		reader := storetest.Endpoint("crm")
		reader.URL = ""
		o.Endpoints = []store.Endpoint{reader}
		b = mustOpen(t, o)
		page := store.EventPage{Last: 5}
		b.Engine.SetRead(t.Context(), store.EventQuery{Endpoint: "crm"}, page, 0, time.Now())
		storetest.RunBox(t, b)()
		closeIt(t, b)
		s := openToCopy(t, o)
		defer closeIt(t, s)
		if got, want := parts(t, s, 100), "2 4 7 7 6 5 | 4 3 2 1"; got != want {
			t.Errorf("with an endpoint that has read up to 5 the events come as %s, want %s", got, want)
		}
	})
}

// parts gives the numbers of events as they come, and where the first part ends.
func parts(t *testing.T, s *Source, limit int) string {
	t.Helper()
	var calls, rest []string
	list, _ := dumpAll(t, s, limit)
	isNewest, last := false, uint64(0)
	for _, r := range list {
		switch r := r.(type) {
		case store.NumbersRecord:
			last = r.Last
		case store.FirstPartRecord:
			rest = append(rest, "|")
		case store.EventRecord:
			if isNewest = isNewest || r.Number == last && slices.Contains(calls, number10(r.Number)); isNewest {
				rest = append(rest, number10(r.Number))
			} else {
				calls = append(calls, number10(r.Number))
			}
		}
	}
	slices.Sort(calls)
	return strings.Join(append(calls, rest...), " ")
}

func number10(n uint64) string { return string(rune('0' + n)) }

// What is damaged is left out and counted, a delivery that is damaged is dead, and neither holds
// what it held.
func TestDumpLeavesOutWhatIsDamaged(t *testing.T) {
	o := quietly(t, storetest.Options{})
	b := mustOpen(t, o)
	storetest.MustAppend(t, b, eventsOf("1", "call.incoming", "call.incoming_answered", "call.completed")...)
	storetest.MustAppend(t, b, eventsOf("2", "call.incoming", "call.completed")...)
	s := engineOf(b)
	damageDelivery(t, s, 1)
	mustCommit(t, s, func(tx *txn) error { return tx.events.Put(number(4), []byte("x")) })
	closeIt(t, b)
	source := openToCopy(t, o)
	defer closeIt(t, source)
	list, damaged := dumpAll(t, source, 100)
	if damaged != 1 {
		t.Errorf("%d events are damaged, want 1", damaged)
	}
	got := map[uint64]store.DeliveryRecord{}
	for _, r := range list {
		if e, is := r.(store.EventRecord); is {
			got[e.Number] = e.Deliveries[0]
		}
	}
	if d := got[1]; d.Delivery.State != store.Dead || len(store.Attempts(d.History)) != 1 {
		t.Errorf("the damaged delivery is %+v", d)
	}
	if _, is := got[4]; is || len(got) != 4 {
		t.Errorf("there are %v", got)
	}
	for n, due := range map[uint64]int64{2: 0, 3: store.Held, 5: 0} {
		if got[n].Delivery.Due != due {
			t.Errorf("delivery %d is due at %d, want %d", n, got[n].Delivery.Due, due)
		}
	}
}
