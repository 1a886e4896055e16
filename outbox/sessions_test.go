package outbox

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A generation of sessions that was begun is kept through a restart, and none comes again: not even when a backup is restored in which an older one stands.
func TestSessions(t *testing.T) {
	path, backup := filepath.Join(t.TempDir(), "outbox.db"), filepath.Join(t.TempDir(), "backup.db")
	known := map[uint64]bool{}
	with := func(f func(o *Outbox)) {
		t.Helper()
		o, err := Open(withDefaults(t, Options{Path: path}))
		if err != nil {
			t.Fatal(err)
		}
		f(o)
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	current := func(o *Outbox) uint64 {
		t.Helper()
		generation, err := o.Sessions()
		if err != nil {
			t.Fatal(err)
		}
		return generation
	}
	var last uint64
	with(func(o *Outbox) {
		known[current(o)] = true
		copied, err := os.Create(backup)
		if err == nil {
			err = o.Backup(func(int64) io.Writer { return copied })
		}
		if err != nil || copied.Close() != nil {
			t.Fatal(err)
		}
		for range 3 {
			if last, err = o.EndSessions(); err != nil || known[last] || current(o) != last {
				t.Errorf("%d after %v, %v", last, known, err)
			}
			known[last] = true
		}
	})
	with(func(o *Outbox) {
		if got := current(o); got != last {
			t.Errorf("after a restart it is %d, was %d", got, last)
		}
	})
	if _, err := Restore(path, backup); err != nil {
		t.Fatal(err)
	}
	with(func(o *Outbox) {
		if got := current(o); known[got] {
			t.Errorf("after a restore %d comes again", got)
		}
	})
}
