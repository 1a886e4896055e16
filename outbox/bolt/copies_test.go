package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// removeAllEvents removes every event, also those that "crm" waits for.
func removeAllEvents(t *testing.T, s *Engine, want int) {
	t.Helper()
	old := store.Retention{MaxAge: -time.Hour, Abandoned: map[string]bool{"crm": true}, AbandonedAge: -time.Hour}
	if p, err := s.Prune(t.Context(), old); err != nil || p.Events != want {
		t.Fatalf("%d removed, %v", p.Events, err)
	}
}

// writeFile gives the path of a file with this content in a folder of its own.
func writeFile(t *testing.T, content []byte) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// backupOf gives a backup of an open outbox.
func backupOf(t *testing.T, o *storetest.Box) []byte {
	t.Helper()
	var copied bytes.Buffer
	if err := engineOf(o).Backup(func(int64) io.Writer { return &copied }); err != nil {
		t.Fatal(err)
	}
	return copied.Bytes()
}

// isLink fails the test where a path is no link any more.
func isLink(t *testing.T, path string) {
	t.Helper()
	if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("a link is no link any more: %v, %v", info, err)
	}
}

// callsIn gives the calls of a file, the newest first.
func callsIn(t *testing.T, path string) []string {
	t.Helper()
	o := mustOpen(t, storetest.Options{Place: path})
	defer o.Close()
	found, err := o.Outbox.FindCalls(t.Context(), outbox.CallFilter{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	for _, h := range found.Calls {
		calls = append(calls, h.CallID)
	}
	return calls
}

// Compacting keeps everything but the room that is free, and is refused while a bridge runs.
func TestCompactKeepsAllButTheFreeRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	o := mustOpen(t, storetest.Options{Place: path})
	for i := range 40 {
		events := make([]telephony.Event, 100)
		for j := range events {
			events[j] = storetest.Event("call.completed", fmt.Sprint(i*100+j))
		}
		storetest.MustAppend(t, o, events...)
	}
	removeAllEvents(t, engineOf(o), 4000)
	storetest.MustAppend(t, o, eventsOf("5", "call.incoming", "call.completed")...)
	guid, err := o.ClientGUID("a GUID")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Compact(path); !errors.Is(err, ErrInUse) {
		t.Errorf("while a bridge runs: %v", err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	theirs := path + ".compact" // a file of this name belongs to the user
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
	isLink(t, link)
	if err != nil || after > before {
		t.Errorf("once more, from %d to %d bytes: %v", before, after, err)
	}
	compactDamaged(t, path)
	again := storetest.OpenBox(t, harness{}, storetest.Options{Place: path})
	if got := storetest.States(t, again, "crm"); got[store.Pending] != 2 {
		t.Errorf("states: %v", got)
	}
	if g, err := again.ClientGUID("another GUID"); g != guid || err != nil {
		t.Errorf("the GUID was %s and is %s, %v", guid, g, err)
	}
	_, _, err = Compact(filepath.Join(t.TempDir(), "none.db"))
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("of a file that there is not: %v", err)
	}
}

// compactDamaged compacts a file once for each of its pages, with that page overwritten. The file
// holds the call 5.
func compactDamaged(t *testing.T, path string) {
	t.Helper()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for page := firstDataPage; page*os.Getpagesize() < len(whole); page++ {
		damaged := bytes.Clone(whole)
		copy(damaged[page*os.Getpagesize():], bytes.Repeat([]byte("x"), os.Getpagesize()))
		bad := writeFile(t, damaged)
		if _, _, err := Compact(bad); err == nil { // then the page is not in use
			if calls := callsIn(t, bad); !slices.Equal(calls, []string{"5"}) {
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
}

// A backup that is made while events come and go is an outbox.
func TestBackupOfARunningBridgeIsAnOutbox(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		o := storetest.OpenBox(t, harness{}, storetest.Options{DialContext: c.Net.Dial})
		stop := storetest.RunBox(t, o)
		for i := range 100 {
			storetest.MustAppend(t, o, completed(fmt.Sprint(i))...)
		}
		var copied bytes.Buffer
		var announced int64
		err := engineOf(o).Backup(func(size int64) io.Writer {
			// Where the program ends in the middle, nothing must be left.
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(engineOf(o).path), "*")); len(left) != 1 {
				t.Errorf("in the folder there are %v", left)
			}
			announced = size
			storetest.MustAppend(t, o, completed("later")...)
			return &copied
		})
		if err != nil || announced != int64(copied.Len()) {
			t.Fatalf("%d bytes of %d, %v", copied.Len(), announced, err)
		}
		stop()
		restored := storetest.OpenBox(t, harness{}, storetest.Options{Place: writeFile(t, copied.Bytes())})
		if got := deliveriesOf(t, restored, store.DeliveryQuery{Limit: 1000}); len(got) != 100 {
			t.Errorf("the backup has %d deliveries", len(got))
		}
	})
}

// A backup that is taken slowly does not keep events from being stored, also when the file grows
// meanwhile.
func TestSlowBackupHoldsUpNoAppend(t *testing.T) {
	o := mustOpen(t, storetest.Options{})
	release, started := make(chan struct{}), make(chan struct{})
	backup := make(chan error, 1)
	go func() {
		backup <- engineOf(o).Backup(func(int64) io.Writer { return &slowWriter{release: release, started: started} })
	}()
	<-started
	if n := engineOf(o).db.Stats().OpenTxN; n != 0 { // no page that becomes free would be used again
		t.Errorf("while it is taken, %d transactions read the file", n)
	}
	big := strings.Repeat("x", 10_000)
	appended := make(chan int, 1000)
	go func() {
		for i := range 100 {
			e := storetest.Event("call.completed", fmt.Sprint(i))
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

// slowWriter takes nothing until it is released.
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
func TestFileOfAnotherProgramIsRefused(t *testing.T) {
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
	o, err := storetest.Open(harness{}, quietly(t, storetest.Options{Place: path}))
	if err == nil {
		t.Error("another program's bbolt file was taken over")
		_ = o.Close()
	}
}

// A backup is put in the file's place, and what was there is kept; nothing happens while a bridge
// has the file open, or if the backup is none.
func TestRestorePutsABackupInPlaceAndKeepsWhatWasThere(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "outbox.db")
	o := mustOpen(t, storetest.Options{Place: path})
	storetest.MustAppend(t, o, completed("1")...)
	whole := backupOf(t, o)
	backup := writeFile(t, whole)
	storetest.MustAppend(t, o, completed("2")...)
	if _, err := Restore(path, backup); !errors.Is(err, ErrInUse) {
		t.Errorf("while it is open: %v", err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty":                 nil,
		"text":                  []byte("hello"),
		"cut in half":           whole[:len(whole)/2],
		"without its last page": whole[:len(whole)-os.Getpagesize()],
	} {
		before, err := Restore(path, writeFile(t, content))
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
	_, err := Restore(nowhere, backup)
	if err == nil || !strings.Contains(err.Error(), "a link to a file that is not there") {
		t.Errorf("to a link to nothing: %v", err)
	}
	if calls := callsIn(t, path); !slices.Equal(calls, []string{"2", "1"}) {
		t.Errorf("after all that failed, the file holds the calls %v", calls)
	}
	restoreDamaged(t, whole)
	before, err := Restore(path, backup)
	if err != nil {
		t.Fatal(err)
	}
	if calls := callsIn(t, path); !slices.Equal(calls, []string{"1"}) {
		t.Errorf("the file holds the calls %v", calls)
	}
	second, err := Restore(path, backup)
	if err != nil || second == before {
		t.Errorf("once more: what was there is %q, %v", second, err)
	}
	if calls := callsIn(t, before); !slices.Equal(calls, []string{"2", "1"}) {
		t.Errorf("what was there holds the calls %v", calls)
	}
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(link, backup); err != nil {
		t.Error(err)
	}
	isLink(t, link)
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
	fresh := filepath.Join(t.TempDir(), "new", "outbox.db")
	if before, err := Restore(fresh, backup); before != "" || err != nil || len(callsIn(t, fresh)) != 1 {
		t.Errorf("where nothing was: %q, %v", before, err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(path, backup); err != nil {
		t.Errorf("over a damaged one: %v", err)
	}
}

// restoreDamaged restores copies of a backup: for each of its pages one in which that page is
// overwritten, and one that is cut off there. The backup holds the call 1.
func restoreDamaged(t *testing.T, whole []byte) {
	t.Helper()
	var copies [][]byte
	for page := firstDataPage; page*os.Getpagesize() < len(whole); page++ {
		overwritten := bytes.Clone(whole)
		copy(overwritten[page*os.Getpagesize():], bytes.Repeat([]byte("x"), os.Getpagesize()))
		copies = append(copies, overwritten, whole[:page*os.Getpagesize()])
	}
	refused := 0
	for i, content := range copies {
		path := filepath.Join(t.TempDir(), "outbox.db")
		// Where it succeeds, nothing stands on the page that is overwritten, or cut off.
		if _, err := Restore(path, writeFile(t, content)); err == nil {
			if calls := callsIn(t, path); !slices.Equal(calls, []string{"1"}) {
				t.Errorf("copy %d: the calls are %v", i, calls)
			}
		} else if refused++; !errors.Is(err, ErrNotOutbox) {
			t.Errorf("copy %d: %v", i, err)
		}
	}
	if refused == 0 {
		t.Error("nothing that is damaged was refused")
	}
}

// A copy that is cut off is refused also where nothing stands on the pages that are missing.
func TestCopyWithoutItsFreeEndIsNotRestored(t *testing.T) {
	for range 5 { // now and then something stands on the last page
		if err := restoreWithoutItsEnd(t); !errors.Is(err, ErrNotOutbox) {
			t.Fatalf("got %v", err)
		} else if strings.Contains(err.Error(), "its end is missing") {
			return
		}
	}
	t.Error("no copy is refused for its missing end")
}

// restoreWithoutItsEnd restores a copy of an outbox that has been emptied, without its last page.
func restoreWithoutItsEnd(t *testing.T) error {
	t.Helper()
	o := mustOpen(t, storetest.Options{})
	for i := range 500 {
		storetest.MustAppend(t, o, completed(fmt.Sprint(i))...)
	}
	removeAllEvents(t, engineOf(o), 500)
	storetest.MustAppend(t, o, completed("last")...)
	copied := backupOf(t, o)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	bad := writeFile(t, copied[:len(copied)-os.Getpagesize()])
	_, err := Restore(filepath.Join(t.TempDir(), "outbox.db"), bad)
	return err
}

// A CRM that reads its events misses none after a restore and reads none of the new ones as old:
// not those whose numbers the file had given before, and not when the same backup is restored
// twice.
func TestReadingAfterARestore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	reader := store.Endpoint{
		Name:        "crm",
		Events:      storetest.All,
		Timeout:     time.Second,
		Concurrency: 1,
		RingingTTL:  time.Hour,
	}
	session := func(f func(*storetest.Box)) {
		t.Helper()
		o := mustOpen(t, storetest.Options{Place: path, Endpoints: []store.Endpoint{reader}})
		f(o)
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	read := func(o *storetest.Box, after string) (calls []string, cursor string) {
		t.Helper()
		page, err := o.Events(store.EventQuery{Endpoint: "crm", After: after, Limit: 100})
		if pruned, ok := errors.AsType[*store.PrunedError](err); ok {
			return []string{"gone"}, pruned.Oldest
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, body := range page.Events {
			call, _ := callIn(t, body)
			calls = append(calls, call)
		}
		return calls, page.Cursor
	}
	var early, late, backup string
	session(func(o *storetest.Box) {
		storetest.MustAppend(t, o, completed("1", "2")...)
		_, early = read(o, "")
		backup = writeFile(t, backupOf(t, o))
		storetest.MustAppend(t, o, completed("lost", "lost")...)
		_, late = read(o, "")
	})
	for round := range 2 {
		if _, err := Restore(path, backup); err != nil {
			t.Fatal(err)
		}
		session(func(o *storetest.Box) {
			nothing, end := read(o, early)
			if len(nothing) != 0 {
				t.Errorf("round %d: nothing is new, but there are %v", round, nothing)
			}
			for range 3 {
				storetest.MustAppend(t, o, completed("new")...)
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
