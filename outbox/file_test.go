package outbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
)

// What OUTBOX_MAX_BYTES may be at most can be mapped, free pages and all. A process of 64 bits has
// room to spare.
func TestLargestFileIsMapped(t *testing.T) {
	if strconv.IntSize == 64 {
		t.Skip("the address space is larger than any disk")
	}
	db, err := openFile(filepath.Join(t.TempDir(), "outbox.db"), int(2*LargestMaxBytes-1))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	opts := withDefaults(t, Options{MaxBytes: LargestMaxBytes + 1})
	if o, err := Open(opts); err == nil {
		t.Error("more than that is taken")
		_ = o.Close()
	}
}

// While a CRM is away the file fills: what is finished goes early, then Append says that it is full, and nothing else is refused. It ends by itself.
func TestFull(t *testing.T) {
	t.Parallel()
	var up atomic.Bool
	up.Store(true)
	c := &crm{forget: true, answer: func(_ int, _ received, w http.ResponseWriter) {
		if !up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}}
	bubble(t, c, func(t *testing.T) {
		const limit = 2 << 20
		o := openOutbox(t, Options{DialContext: c.net.Dial, MaxBytes: limit, Logger: slog.New(slog.DiscardHandler), Retention: 1000 * time.Hour})
		stop := run(t, o)
		n := 0
		appendSome := func() error {
			events := make([]telephony.Event, 64)
			for i := range events {
				n++
				events[i] = event("call.completed", fmt.Sprint(n))
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
		if got := states(t, o, "crm"); got[pending] != 0 || got[delivered] < 1000 || got[delivered] > 10_000 {
			t.Errorf("states: %v", got)
		}
		up.Store(false)
		var err error
		for range 300 {
			if err = appendSome(); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "2.0 MiB are allowed (OUTBOX_MAX_BYTES)") {
			t.Fatalf("it does not get full: %v", err)
		}
		if got := states(t, o, "crm"); got[delivered] > 0 || got[pending] < 1000 {
			t.Errorf("when it is full the states are %v", got)
		}
		if err := o.Writable(); !errors.Is(err, ErrFull) {
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
		if got := states(t, o, "crm"); got[pending] != 0 {
			t.Errorf("in the end the states are %v", got)
		}
	})
}

// Compacting keeps everything but the room that is free, and is refused while a bridge runs.
func TestCompact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	opts := Options{
		Path: path, Endpoints: []Endpoint{endpoint("crm")}, Retention: time.Hour, RoutingTimeout: time.Second, MaxBytes: 1 << 30,
		Logger: slog.New(slog.DiscardHandler),
	}
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		events := make([]telephony.Event, 100)
		for j := range events {
			events[j] = event("call.completed", fmt.Sprint(i*100+j))
		}
		mustAppend(t, o, events...)
	}
	old := pruning{
		store: o.store, clock: o.opts.Clock, maxAge: -time.Hour,
		abandoned: map[string]bool{"crm": true}, abandonedAge: -time.Hour,
	}
	if err := old.run(t.Context()); err != nil || old.removed != 4000 {
		t.Fatalf("%d removed, %v", old.removed, err)
	}
	mustAppend(t, o, event("call.incoming", "5"), event("call.completed", "5"))
	guid, err := o.ClientGUID()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Compact(path); !errors.Is(err, ErrInUse) {
		t.Errorf("while a bridge runs: %v", err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	theirs := path + ".compact" // a file of this name is nobody's business
	if err := os.WriteFile(theirs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before, after, err := Compact(path)
	if err != nil || before < 1<<20 || after > 256<<10 {
		t.Errorf("from %d to %d bytes: %v", before, after, err)
	}
	if left, _ := filepath.Glob(path + "?*"); !slices.Equal(left, []string{theirs}) {
		t.Errorf("it leaves %v", left)
	}
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	before, after, err = Compact(link)
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("a link is no link any more: %v, %v", info, err)
	}
	if err != nil || after > before {
		t.Errorf("once more, from %d to %d bytes: %v", before, after, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for page := 2; page*os.Getpagesize() < len(whole); page++ {
		damaged := bytes.Clone(whole)
		copy(damaged[page*os.Getpagesize():], bytes.Repeat([]byte("x"), os.Getpagesize()))
		bad := filepath.Join(t.TempDir(), "bad.db")
		if err := os.WriteFile(bad, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Compact(bad); err == nil { // then the page is not in use
			there := opts
			there.Path = bad
			if calls := callsIn(t, there); !slices.Equal(calls, []string{"5"}) {
				t.Errorf("page %d is damaged: the calls are %v", page, calls)
			}
		} else if refused++; !errors.Is(err, ErrNotOutbox) {
			t.Errorf("page %d is damaged: %v", page, err)
		}
		if left, _ := filepath.Glob(bad + "?*"); len(left) > 0 {
			t.Errorf("page %d is damaged: it leaves %v", page, left)
		}
	}
	if refused == 0 {
		t.Error("nothing that is damaged was refused")
	}
	again := openOutbox(t, Options{Path: path})
	if got := states(t, again, "crm"); got[pending] != 2 {
		t.Errorf("states: %v", got)
	}
	if g, err := again.ClientGUID(); g != guid || err != nil {
		t.Errorf("the GUID was %s and is %s, %v", guid, g, err)
	}
	if _, _, err := Compact(filepath.Join(t.TempDir(), "none.db")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("of a file that there is not: %v", err)
	}
}

// A backup that is made while events come and go is an outbox.
func TestBackup(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial})
		stop := run(t, o)
		for i := range 100 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		var copied bytes.Buffer
		var announced int64
		err := o.Backup(func(size int64) io.Writer {
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(o.opts.Path), "*")); len(left) != 1 { // an end in the middle must leave nothing
				t.Errorf("in the folder there are %v", left)
			}
			announced = size
			mustAppend(t, o, event("call.completed", "later"))
			return &copied
		})
		if err != nil || announced != int64(copied.Len()) {
			t.Fatalf("%d bytes of %d, %v", copied.Len(), announced, err)
		}
		stop()
		path := filepath.Join(t.TempDir(), "backup.db")
		if err := os.WriteFile(path, copied.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		restored := openOutbox(t, Options{Path: path})
		if got := list(t, restored, DeliveryQuery{Limit: 1000}); len(got) != 100 {
			t.Errorf("the backup has %d deliveries", len(got))
		}
	})
}

// toLayout1 takes a file back to the first layout.
func toLayout1(t *testing.T, path string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		endpoints := tx.Bucket(bucketEndpoints)
		err := endpoints.ForEachBucket(func(name []byte) error {
			b := endpoints.Bucket(name).Bucket(bucketDeliveries)
			old := map[string][]byte{}
			err := b.ForEach(func(k, v []byte) error {
				d, err := decodeDelivery(v)
				o := binary.BigEndian.AppendUint16([]byte{byte(d.state)}, uint16(d.attempts))
				o = binary.BigEndian.AppendUint64(o, uint64(d.due))
				o = binary.BigEndian.AppendUint16(o, 503)
				old[string(k)] = binary.BigEndian.AppendUint64(o, uint64(d.failedAt))
				return err
			})
			for k, v := range old {
				err = errors.Join(err, b.Put([]byte(k), v))
			}
			return errors.Join(err, endpoints.Bucket(name).Delete(keyCounts))
		})
		return errors.Join(err, tx.Bucket(bucketMeta).Put(keySchema, number(1)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// A file of the first layout is brought to this one with everything in it; one of a layout to come is refused and left as it is.
func TestLayouts(t *testing.T) {
	var up atomic.Bool
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "3" && !up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	bubble(t, c, func(t *testing.T) {
		opts := Options{
			Path: filepath.Join(t.TempDir(), "outbox.db"), DialContext: c.net.Dial, Endpoints: []Endpoint{endpoint("crm")}, Retention: time.Hour,
			RoutingTimeout: time.Second, MaxBytes: 1 << 30, OrderHold: 10 * time.Minute, Grace: time.Second, Logger: slog.New(slog.DiscardHandler),
			RetrySchedule: slices.Repeat([]time.Duration{5 * time.Minute}, 9),
		}
		old, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, old)
		for i := range 5 {
			mustAppend(t, old, event("call.incoming", fmt.Sprint(i)), event("call.incoming_answered", fmt.Sprint(i)), event("call.completed", fmt.Sprint(i)))
		}
		synctest.Wait()
		stop()
		mustAppend(t, old, event("call.incoming", "9"), event("call.completed", "9"))
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		toLayout1(t, opts.Path)
		o := openOutbox(t, opts)
		checkFile(t, o)
		if got := states(t, o, "crm"); got[delivered] != 12 || got[pending] != 5 {
			t.Errorf("states: %v", got)
		}
		d := list(t, o, DeliveryQuery{CallID: "3", State: "pending", Limit: 10})
		if len(d) != 3 || d[2].Attempts != 1 {
			t.Errorf("what waits: %+v", d)
		}
		up.Store(true)
		from := len(c.received())
		stop = run(t, o)
		time.Sleep(10 * time.Minute)
		stop()
		last := map[string]int{}
		for _, h := range c.received()[from:] {
			call, n := callOf(t, h)
			if n <= last[call] {
				t.Errorf("call %s: %d after %d", call, n, last[call])
			}
			last[call] = n
		}
		if got := states(t, o, "crm"); got[delivered] != 17 {
			t.Errorf("in the end the states are %v", got)
		}
	})

	path := filepath.Join(t.TempDir(), "outbox.db")
	opts := Options{Path: path, Retention: time.Hour, RoutingTimeout: time.Second, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)}
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.store.commit(func(tx *txn) error { return tx.meta.Put(keySchema, number(schema+1)) }); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), "newer version of pzbridge") {
		t.Errorf("a newer file: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a newer file was changed (%v)", err)
	}
}

// A backup that is taken slowly does not keep events from being stored, also when the file grows meanwhile.
func TestBackupHoldsUpNobody(t *testing.T) {
	o, err := Open(withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	release, started := make(chan struct{}), make(chan struct{})
	backup := make(chan error, 1)
	go func() {
		backup <- o.Backup(func(int64) io.Writer { return &slowWriter{release: release, started: started} })
	}()
	<-started
	if n := o.store.db.Stats().OpenTxN; n != 0 { // no page that becomes free would be used again
		t.Errorf("while it is taken, %d transactions read the file", n)
	}
	big := strings.Repeat("x", 10_000)
	appended := make(chan int, 1000)
	go func() {
		for i := range 100 {
			e := event("call.completed", fmt.Sprint(i))
			e.Text = big
			if err := o.Append(context.Background(), []telephony.Event{e}); err != nil {
				t.Error(err)
			}
			appended <- i
		}
		close(appended)
	}()
	n := 0
	limit := time.After(5 * time.Second)
wait:
	for {
		select {
		case _, ok := <-appended:
			if !ok {
				break wait
			}
			n++
		case <-limit:
			t.Errorf("Append has stood still behind a slow backup since event %d; Writable says %v", n, o.Writable())
			break wait
		}
	}
	close(release)
	<-backup
	for range appended {
	}
	_ = o.Close()
}

// slowWriter takes nothing until it is let go on.
type slowWriter struct {
	release, started chan struct{}
	once             sync.Once
}

func (w *slowWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.started) })
	<-w.release
	return len(p), nil
}

// Another program's file is left alone.
func TestForeignFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other.db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Update(func(tx *bolt.Tx) error {
		b, _ := tx.CreateBucket([]byte("users"))
		return b.Put([]byte("a"), []byte("b"))
	})
	_ = db.Close()
	o, err := Open(withDefaults(t, Options{Path: path, Logger: slog.New(slog.DiscardHandler)}))
	if err == nil {
		t.Error("another program's bbolt file was taken over")
		_ = o.Close()
	}
}

// A backup is put in the file's place, and what was there is kept; nothing happens while a bridge has the file open, or if the backup is none.
func TestRestore(t *testing.T) {
	folder := t.TempDir()
	path, backup := filepath.Join(folder, "outbox.db"), filepath.Join(folder, "backup.db")
	opts := withDefaults(t, Options{Path: path, Logger: slog.New(slog.DiscardHandler)})
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, o, event("call.completed", "1"))
	var copied bytes.Buffer
	if err := o.Backup(func(int64) io.Writer { return &copied }); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(backup, copied.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, o, event("call.completed", "2"))
	if _, err := Restore(path, backup); !errors.Is(err, ErrInUse) {
		t.Errorf("while it is open: %v", err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	whole := copied.Bytes()
	for name, content := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "cut in half": whole[:len(whole)/2], "without its last page": whole[:len(whole)-os.Getpagesize()],
	} {
		bad := filepath.Join(t.TempDir(), "bad.db")
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		before, err := Restore(path, bad)
		if err == nil {
			t.Errorf("%s: it was restored, and what was there is %s", name, before)
		} else if strings.Contains(err.Error(), "runtime error") {
			t.Errorf("%s: %v", name, err)
		}
	}
	nowhere := filepath.Join(folder, "link.db")
	if err := os.Symlink(filepath.Join(folder, "none.db"), nowhere); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(nowhere, backup); err == nil || !strings.Contains(err.Error(), "a link to a file that is not there") {
		t.Errorf("to a link to nothing: %v", err)
	}
	if calls := callsIn(t, opts); !slices.Equal(calls, []string{"2", "1"}) {
		t.Errorf("after all that failed, the file holds the calls %v", calls)
	}
	var copies [][]byte
	for page := 2; page*os.Getpagesize() < len(whole); page++ {
		overwritten := bytes.Clone(whole)
		copy(overwritten[page*os.Getpagesize():], bytes.Repeat([]byte("x"), os.Getpagesize()))
		copies = append(copies, overwritten, whole[:page*os.Getpagesize()])
	}
	refused := 0
	for i, content := range copies {
		bad, there := filepath.Join(t.TempDir(), "bad.db"), opts
		there.Path = filepath.Join(t.TempDir(), "outbox.db")
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(there.Path, bad); err == nil { // then nothing stands on the page that is overwritten, or cut off
			if calls := callsIn(t, there); !slices.Equal(calls, []string{"1"}) {
				t.Errorf("copy %d: the calls are %v", i, calls)
			}
		} else if refused++; !errors.Is(err, ErrNotOutbox) {
			t.Errorf("copy %d: %v", i, err)
		}
	}
	if refused == 0 {
		t.Error("nothing that is damaged was refused")
	}
	before, err := Restore(path, backup)
	if err != nil {
		t.Fatal(err)
	}
	if calls := callsIn(t, opts); !slices.Equal(calls, []string{"1"}) {
		t.Errorf("the file holds the calls %v", calls)
	}
	second, err := Restore(path, backup)
	if err != nil || second == before {
		t.Errorf("once more: what was there is %q, %v", second, err)
	}
	opts.Path = before
	if calls := callsIn(t, opts); !slices.Equal(calls, []string{"2", "1"}) {
		t.Errorf("what was there holds the calls %v", calls)
	}
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(link, backup); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("a link is no link any more: %v, %v", info, err)
	}
	named := path + ".restore" // as the copy that is made of it would be
	if err := os.WriteFile(named, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(path, named); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadFile(named); err != nil || !bytes.Equal(left, whole) {
		t.Errorf("of the backup's %d bytes %d are left, %v", len(whole), len(left), err)
	}
	opts.Path = filepath.Join(t.TempDir(), "new", "outbox.db")
	if before, err := Restore(opts.Path, backup); before != "" || err != nil || len(callsIn(t, opts)) != 1 {
		t.Errorf("where nothing was: %q, %v", before, err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(path, backup); err != nil {
		t.Errorf("over a damaged one: %v", err)
	}
}

// callsIn gives the calls of a file, the newest first.
func callsIn(t *testing.T, opts Options) []string {
	t.Helper()
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	calls, err := o.LatestCalls(10)
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

// A copy that is cut off is refused also where nothing stands on the pages that are missing.
func TestRestoreOfACopyWithoutItsFreeEnd(t *testing.T) {
	o, err := Open(withDefaults(t, Options{Logger: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
	}
	old := pruning{
		store: o.store, clock: o.opts.Clock, maxAge: -time.Hour,
		abandoned: map[string]bool{"crm": true}, abandonedAge: -time.Hour,
	}
	if err := old.run(t.Context()); err != nil || old.removed != 500 {
		t.Fatal(old.removed, err)
	}
	mustAppend(t, o, event("call.completed", "last"))
	var copied bytes.Buffer
	if err := errors.Join(o.Backup(func(int64) io.Writer { return &copied }), o.Close()); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad.db")
	if err := os.WriteFile(bad, copied.Bytes()[:copied.Len()-os.Getpagesize()], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(filepath.Join(t.TempDir(), "outbox.db"), bad); !errors.Is(err, ErrNotOutbox) || !strings.Contains(err.Error(), "its end is missing") {
		t.Errorf("got %v", err)
	}
}

// A CRM that reads its events misses none after a restore and reads none of the new ones as old: not those whose numbers the file had given before, and not
// when the same backup is restored twice.
func TestReadingAfterARestore(t *testing.T) {
	folder := t.TempDir()
	path, backup := filepath.Join(folder, "outbox.db"), filepath.Join(folder, "backup.db")
	reader := Endpoint{Name: "crm", Events: all, Timeout: time.Second, Concurrency: 1, RingingTTL: time.Hour}
	opts := withDefaults(t, Options{Path: path, Endpoints: []Endpoint{reader}, Logger: slog.New(slog.DiscardHandler)})
	session := func(f func(*Outbox)) {
		t.Helper()
		o, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		f(o)
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	read := func(o *Outbox, after string) (calls []string, cursor string) {
		t.Helper()
		bodies, cursor, err := readEvents(o, EventQuery{Endpoint: "crm", After: after, Limit: 100})
		if pruned, ok := errors.AsType[*PrunedError](err); ok {
			return []string{"gone"}, pruned.Oldest
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range bodies {
			call, _ := callOf(t, received{body: b})
			calls = append(calls, call)
		}
		return calls, cursor
	}
	var early, late string
	session(func(o *Outbox) {
		mustAppend(t, o, event("call.completed", "1"), event("call.completed", "2"))
		_, early = read(o, "")
		var copied bytes.Buffer
		if err := o.Backup(func(int64) io.Writer { return &copied }); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(backup, copied.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, o, event("call.completed", "lost"), event("call.completed", "lost"))
		_, late = read(o, "")
	})
	for round := range 2 {
		if _, err := Restore(path, backup); err != nil {
			t.Fatal(err)
		}
		session(func(o *Outbox) {
			nothing, end := read(o, early)
			if len(nothing) != 0 {
				t.Errorf("round %d: nothing is new, but there are %v", round, nothing)
			}
			for range 3 {
				mustAppend(t, o, event("call.completed", "new"))
			}
			calls, oldest := read(o, late)
			if !slices.Equal(calls, []string{"gone"}) {
				t.Fatalf("round %d: after %s there are %v", round, late, calls)
			}
			for _, from := range []string{oldest, early, end} {
				if calls, cursor := read(o, from); !slices.Equal(calls, []string{"new", "new", "new"}) {
					t.Errorf("round %d: after %s there are %v", round, from, calls)
				} else {
					late = cursor
				}
			}
		})
	}
}

// A start with a full file is unready as soon as anything is to be stored, whatever comes first.
func TestFullAfterARestart(t *testing.T) {
	opts := withDefaults(t, Options{MaxBytes: 1 << 19, Logger: slog.New(slog.DiscardHandler)})
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; err == nil; i++ {
		err = o.Append(t.Context(), []telephony.Event{event("call.completed", fmt.Sprint(i))})
	}
	if err := errors.Join(err, o.Close()); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	o = openOutbox(t, opts)
	if err := o.Append(t.Context(), []telephony.Event{event(telephony.EventConnected, ""), event("call.completed", "1")}); !errors.Is(err, ErrFull) {
		t.Errorf("it takes more: %v", err)
	}
	if err := o.Writable(); !errors.Is(err, ErrFull) {
		t.Errorf("readiness says %v", err)
	}
}
