package bolt

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"pzbridge/outbox/store/storetest"
)

// TestGenerationOfSessionsNeverComesAgain checks that a generation of sessions that was begun is
// kept through a restart, and that none comes again, not even when a backup is restored that holds
// an older one.
func TestGenerationOfSessionsNeverComesAgain(t *testing.T) {
	path, backup := filepath.Join(t.TempDir(), "outbox.db"), filepath.Join(t.TempDir(), "backup.db")
	known := map[uint64]bool{}
	with := func(f func(b *storetest.Box)) {
		t.Helper()
		b, err := storetest.Open(harness{}, storetest.WithDefaults(t, harness{}, storetest.Options{Place: path}))
		if err != nil {
			t.Fatal(err)
		}
		f(b)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	current := func(b *storetest.Box) uint64 {
		t.Helper()
		generation, err := b.Sessions()
		if err != nil {
			t.Fatal(err)
		}
		return generation
	}
	var last uint64
	with(func(b *storetest.Box) {
		known[current(b)] = true
		copied, err := os.Create(backup)
		if err == nil {
			err = b.Engine.(*Engine).Backup(func(int64) io.Writer { return copied })
		}
		if err != nil || copied.Close() != nil {
			t.Fatal(err)
		}
		for range 3 {
			if last, err = b.EndSessions(); err != nil || known[last] || current(b) != last {
				t.Errorf("%d after %v, %v", last, known, err)
			}
			known[last] = true
		}
	})
	with(func(b *storetest.Box) {
		if got := current(b); got != last {
			t.Errorf("after a restart it is %d, was %d", got, last)
		}
	})
	if _, err := Restore(path, backup); err != nil {
		t.Fatal(err)
	}
	with(func(b *storetest.Box) {
		if got := current(b); known[got] {
			t.Errorf("after a restore %d comes again", got)
		}
	})
}
