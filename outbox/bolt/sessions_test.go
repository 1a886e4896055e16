package bolt

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

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

// TestGenerationsOfSessionsThatBeginAtOnceDiffer checks that calls of EndSessions that run at the
// same time, which stands still meanwhile, get a generation each, and that the newest stays.
func TestGenerationsOfSessionsThatBeginAtOnceDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := storetest.OpenBox(t, harness{}, storetest.Options{})
		generations := make([]uint64, 32)
		var ending sync.WaitGroup
		for i := range generations {
			ending.Go(func() {
				var err error
				if generations[i], err = b.EndSessions(); err != nil {
					t.Error(err)
				}
			})
		}
		ending.Wait()
		slices.Sort(generations)
		if got := slices.Compact(slices.Clone(generations)); len(got) != len(generations) {
			t.Errorf("%d callers got %d generations: %d", len(generations), len(got), got)
		}
		if got, err := b.Sessions(); err != nil || got != generations[len(generations)-1] {
			t.Errorf("%d is left of %d, %v", got, generations, err)
		}
	})
}
