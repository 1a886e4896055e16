package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/clock"
	"pzbridge/outbox/store"
)

// watchEvery is how often it is looked whether the file is still at its path, for the log.
// Readiness looks each time that it is asked.
const watchEvery = 5 * time.Second

// danger is what is known to be wrong with the file, or with the clock that dates what stands in
// it.
type danger struct {
	path   string
	opened fs.FileInfo // of the file that is open
	logger *slog.Logger
	clock  *clock.Clock

	mu      sync.Mutex
	damaged error
}

// note takes an error of something that was done with the file. Where it says that a page is
// damaged, that is kept until the file is opened anew, for who knows what else is wrong, and the
// error says what to do about a file that is in use.
func (d *danger) note(err error) error {
	var found damage
	if !errors.As(err, &found) || errors.Is(err, store.ErrDamaged) {
		return err
	}
	met := damage{store.ErrDamaged, found.found}
	d.mu.Lock()
	first := d.damaged == nil
	if first {
		d.damaged = met
	}
	d.mu.Unlock()
	if first {
		d.logger.Error("the outbox is damaged", "err", met.Error())
	}
	return met
}

// err is what is wrong now, nil if nothing is known.
func (d *danger) err() error {
	if d.isGone() {
		return store.ErrFileGone
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.damaged != nil {
		return d.damaged
	}
	return d.clock.Check()
}

// isGone looks whether the file is still at its path, and was not cut off, as by what copies
// another one over it. Where that cannot be said, it is.
func (d *danger) isGone() bool {
	there, err := os.Stat(d.path)
	return errors.Is(err, fs.ErrNotExist) ||
		err == nil && (!os.SameFile(there, d.opened) || there.Size() < d.opened.Size())
}

// watch looks after the file, and the clock by which its events are dated, until ctx ends, and logs
// what changes. Each time it keeps what the clock doubts; where that fails the disk is at fault, of
// which others have more to say.
func (d *danger) watch(ctx context.Context, keepDoubt func() error) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for wasGone, wasWrong := false, false; ; {
		_ = keepDoubt()
		if gone := d.isGone(); gone != wasGone {
			if wasGone = gone; gone {
				d.logger.Error("the outbox's file is gone", "path", d.path, "err", store.ErrFileGone.Error())
			} else {
				d.logger.Info("the outbox's file is there again", "path", d.path)
			}
		}
		if err := d.clock.Check(); (err != nil) != wasWrong {
			if wasWrong = err != nil; wasWrong {
				d.logger.Error("the clock is wrong: nothing is dropped as too old meanwhile", "err", err.Error())
			} else {
				d.logger.Info("the clock is right again")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// putBack puts the newest copy that a stop has saved in the place of a file that is not there:
// nobody reads a log before a restart, which containers make by themselves. Beside a file that is
// there, a copy is only told of.
func putBack(path string, logger *slog.Logger) error {
	copies, err := filepath.Glob(path + ".rescued*")
	if err != nil || len(copies) == 0 {
		return nil // no pattern is made of a path with brackets in it
	}
	newest := slices.MaxFunc(copies, func(a, b string) int { return changed(a).Compare(changed(b)) })
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		logger.Warn("a copy of the outbox that a stop has saved lies beside it and is not used",
			"path", path, "saved", newest)
		return nil
	}
	if err := os.Rename(newest, path); err != nil {
		return fmt.Errorf("put back what the last stop has saved at %s: %w", newest, plain(err))
	}
	logger.Warn("the outbox is put back: the last stop had saved it, since its file was gone",
		"path", path, "saved", newest)
	return nil
}

// changed is when a file was changed last, zero for one that is not there.
func changed(path string) (at time.Time) {
	if info, err := os.Stat(path); err == nil {
		at = info.ModTime()
	}
	return at
}

// rescue writes a copy of the file beside where it was, if it is not there any more.
func (d *danger) rescue(db *bolt.DB) error {
	if !d.isGone() {
		return nil
	}
	copied := unused(d.path + ".rescued")
	err := errors.Join(os.MkdirAll(filepath.Dir(d.path), 0o700), guarded(func() error {
		return db.View(func(tx *bolt.Tx) error { return tx.CopyFile(copied, 0o600) })
	}))
	if err != nil {
		return fmt.Errorf("the outbox's file was removed, moved or replaced, "+
			"and a copy of what it held cannot be saved: %w", plain(err))
	}
	d.logger.Error("the outbox's file is gone; what it held is saved beside it",
		"path", d.path, "saved", copied)
	return nil
}
