package bolt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// That the file is removed, moved or replaced under the running bridge makes readiness red and is
// logged; deliveries go on. At the end what it held is saved beside it, and restores whole.
func TestFileThatIsGoneIsSavedAtTheEnd(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"removed": os.Remove,
		"moved":   func(path string) error { return os.Rename(path, path+".old") },
		"replaced": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", []byte("x"), 0o600), os.Rename(path+".new", path))
		},
		"its folder removed": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := &storetest.CRM{}
			storetest.Bubble(t, c, func(t *testing.T) {
				var log strings.Builder
				folder := filepath.Join(t.TempDir(), "data")
				opts := storetest.WithDefaults(t, harness{}, storetest.Options{
					Place:       filepath.Join(folder, "outbox.db"),
					DialContext: c.Net.Dial,
					Logger:      slog.New(slog.NewTextHandler(&log, nil)),
				})
				o := mustOpen(t, opts)
				stop := storetest.RunBox(t, o)
				storetest.MustAppend(t, o, completed("before")...)
				time.Sleep(time.Minute)
				if err := o.Writable(); err != nil {
					t.Fatalf("before: %v", err)
				}
				if err := lose(opts.Place); err != nil {
					t.Fatal(err)
				}
				if err := o.Writable(); !errors.Is(err, store.ErrFileGone) {
					t.Errorf("readiness: %v", err)
				}
				storetest.MustAppend(t, o, completed("after")...)
				time.Sleep(time.Minute)
				synctest.Wait()
				stop()
				if n := strings.Count(log.String(), `msg="the outbox's file is gone"`); n != 1 || c.Count() != 2 {
					t.Errorf("it is logged %d times, %d were delivered", n, c.Count())
				}
				if err := o.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				if name == "replaced" { // by something that is no outbox: which of the two is wanted is not known
					if _, err := Restore(opts.Place, opts.Place+".rescued"); err != nil {
						t.Fatalf("restore what was rescued: %v", err)
					}
				}
				// Otherwise the opening puts it back.
				again := storetest.OpenBox(t, harness{}, storetest.Options{Place: opts.Place})
				if got := storetest.States(t, again, "crm"); got[store.Delivered] != 2 {
					t.Errorf("what was rescued holds %v", got)
				}
			})
		})
	}
}

// A file that comes back to its path is not gone any more, and is not saved beside it.
func TestFileThatComesBackIsNotSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, nil))
		opts := storetest.WithDefaults(t, harness{}, storetest.Options{Logger: logger})
		o := mustOpen(t, opts)
		stop := storetest.RunBox(t, o)
		if err := os.Rename(opts.Place, opts.Place+".old"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := os.Rename(opts.Place+".old", opts.Place); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := o.Writable(); err != nil || !strings.Contains(log.String(), "the outbox's file is there again") {
			t.Errorf("%v: %s", err, log.String())
		}
		stop()
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(opts.Place + ".rescued"); err == nil {
			t.Error(fmt.Sprint("it is saved all the same: ", opts.Place))
		}
	})
}

// Where the file is gone with its folder, the backup that readiness asks for can be taken all the
// same.
func TestBackupWhereTheFolderIsGone(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "data")
	opts := storetest.WithDefaults(t, harness{}, storetest.Options{Place: filepath.Join(folder, "outbox.db")})
	o := mustOpen(t, opts)
	defer o.Close()
	storetest.MustAppend(t, o, completed("1")...)
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if err := o.Writable(); !errors.Is(err, store.ErrFileGone) {
		t.Fatal(err)
	}
	if err := engineOf(o).Backup(func(int64) io.Writer { return io.Discard }); err != nil {
		t.Errorf("readiness says to take a backup, and: %v", err)
	}
}

// A file that is emptied in place, as by a copy over it, holds up neither requests nor the stop:
// bbolt cannot even begin a transaction then, and would wait for its own locks.
func TestEmptiedFileHoldsUpNeitherRequestsNorTheStop(t *testing.T) {
	opts := quietly(t, storetest.Options{})
	o := mustOpen(t, opts)
	storetest.MustAppend(t, o, completed("1")...)
	if err := os.Truncate(opts.Place, 0); err != nil {
		t.Fatal(err)
	}
	if err := engineOf(o).view(func(*txn) error { return nil }); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("a read: %v", err)
	}
	if err := o.Writable(); err == nil {
		t.Error("it is said to be writable")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	ended := make(chan struct{})
	go func() {
		_ = o.Append(context.Background(), nil)
		_ = o.Run(ctx, silence{})
		_ = o.Close()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("Append, Run or Close hangs")
	}
}
