package bolt

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	bolt "go.etcd.io/bbolt"
)

// openMigrating opens a file and records how Options.Migrating is called.
func openMigrating(path string, migrating func(int, func(io.Writer) error) error) (s *Engine, calls int, err error) {
	s, err = Open(Options{
		Path:     path,
		MaxBytes: 1 << 30,
		Logger:   slog.New(slog.DiscardHandler),
		Migrating: func(layout int, write func(io.Writer) error) error {
			calls++
			return migrating(layout, write)
		},
	})
	return s, calls, err
}

// layoutOf gives the layout of a closed file.
func layoutOf(t *testing.T, path string) (layout uint64) {
	t.Helper()
	db, err := openFile(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.View(func(tx *bolt.Tx) error {
		layout = decodeNumber(tx.Bucket(bucketMeta).Get(keySchema))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return layout
}

// Before a file of an older layout gets the present one, a copy of it as it was can be written. If
// that fails, the file stays as it was, so that the version before still reads it.
func TestMigrationLeavesTimeForACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "outbox.db")
		if err := copyFile(path, layout3); err != nil {
			t.Fatal(err)
		}
		full := errors.New("the disk is full")
		_, calls, err := openMigrating(path, func(int, func(io.Writer) error) error { return full })
		if !errors.Is(err, full) || calls != 1 {
			t.Errorf("%d calls, %v", calls, err)
		}
		if got := layoutOf(t, path); got != 3 {
			t.Errorf("after the failure its layout is %d", got)
		}
		copied := filepath.Join(t.TempDir(), "copy.db")
		s, calls, err := openMigrating(path, func(layout int, write func(io.Writer) error) error {
			if layout != schema {
				t.Errorf("the new layout is %d", layout)
			}
			file, err := os.Create(copied)
			return errors.Join(err, write(file), file.Close())
		})
		if err != nil || calls != 1 {
			t.Fatalf("%d calls, %v", calls, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if was, is := layoutOf(t, copied), layoutOf(t, path); was != 3 || is != schema {
			t.Errorf("the layout of the copy is %d, of the file %d", was, is)
		}
		if err := isOutbox(copied); err != nil {
			t.Error(err)
		}
		for name, path := range map[string]string{
			"the present layout": path, "a new file": filepath.Join(t.TempDir(), "new.db"),
		} {
			s, calls, err := openMigrating(path, func(int, func(io.Writer) error) error { return full })
			if err != nil || calls != 0 {
				t.Errorf("%s: %d calls, %v", name, calls, err)
				continue
			}
			_ = s.Close()
		}
	})
}
