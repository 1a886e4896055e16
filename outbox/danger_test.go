package outbox

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
)

// That the file is removed, moved or replaced under the running bridge makes readiness red and is
// logged; deliveries go on. At the end what it held is saved beside it, and restores whole.
func TestFileIsGone(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"removed": os.Remove,
		"moved":   func(path string) error { return os.Rename(path, path+".old") },
		"replaced": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", []byte("x"), 0o600), os.Rename(path+".new", path))
		},
		"its folder removed": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := &crm{}
			bubble(t, c, func(t *testing.T) {
				var log strings.Builder
				folder := filepath.Join(t.TempDir(), "data")
				opts := withDefaults(t, Options{
					Path: filepath.Join(folder, "outbox.db"), DialContext: c.net.Dial, Logger: slog.New(slog.NewTextHandler(&log, nil)),
				})
				o, err := Open(opts)
				if err != nil {
					t.Fatal(err)
				}
				stop := run(t, o)
				mustAppend(t, o, event("call.completed", "before"))
				time.Sleep(time.Minute)
				if err := o.Writable(); err != nil {
					t.Fatalf("before: %v", err)
				}
				if err := lose(opts.Path); err != nil {
					t.Fatal(err)
				}
				if err := o.Writable(); !errors.Is(err, ErrFileGone) {
					t.Errorf("readiness: %v", err)
				}
				mustAppend(t, o, event("call.completed", "after"))
				time.Sleep(time.Minute)
				synctest.Wait()
				stop()
				if n := strings.Count(log.String(), `msg="the outbox's file is gone"`); n != 1 || c.count() != 2 {
					t.Errorf("it is logged %d times, %d were delivered", n, c.count())
				}
				if err := o.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				if name == "replaced" { // by something that is no outbox: nobody can say which of the two is wanted
					if _, err := Restore(opts.Path, opts.Path+".rescued"); err != nil {
						t.Fatalf("restore what was rescued: %v", err)
					}
				}
				again := openOutbox(t, Options{Path: opts.Path}) // else it is put back by itself
				if got := states(t, again, "crm"); got[delivered] != 2 {
					t.Errorf("what was rescued holds %v", got)
				}
			})
		})
	}
}

// A file that is where it was is not saved again, and one that comes back is none that is gone.
func TestFileComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		opts := withDefaults(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		o, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, o)
		if err := os.Rename(opts.Path, opts.Path+".old"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := os.Rename(opts.Path+".old", opts.Path); err != nil {
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
		if _, err := os.Stat(opts.Path + ".rescued"); err == nil {
			t.Error(fmt.Sprint("it is saved all the same: ", opts.Path))
		}
	})
}

// Where the file is gone with its folder, the backup that readiness asks for can be taken all the same.
func TestBackupWhereTheFolderIsGone(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "data")
	opts := withDefaults(t, Options{Path: filepath.Join(folder, "outbox.db")})
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	mustAppend(t, o, event("call.completed", "1"))
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if err := o.Writable(); !errors.Is(err, ErrFileGone) {
		t.Fatal(err)
	}
	if err := o.Backup(func(int64) io.Writer { return io.Discard }); err != nil {
		t.Errorf("readiness says to take a backup, and: %v", err)
	}
}

// A file that is emptied in place, as by a copy over it, holds up neither what asks for it nor the stop:
// bbolt cannot even begin a transaction then, and would wait for its own locks.
func TestFileIsEmptied(t *testing.T) {
	opts := withDefaults(t, Options{Endpoints: []Endpoint{endpoint("crm")}})
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, o, event("call.completed", "1"))
	if err := os.Truncate(opts.Path, 0); err != nil {
		t.Fatal(err)
	}
	if err := o.store.view(func(*txn) error { return nil }); !errors.Is(err, ErrDamaged) {
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
		_ = o.Run(ctx, nobody{})
		_ = o.Close()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("Append, Run or Close hangs")
	}
}
