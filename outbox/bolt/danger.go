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

// watchEvery is the interval between checks that the file is still at its path, for the log.
// Readiness makes the check on each request.
const watchEvery = 5 * time.Second

// danger records what is known to be wrong with the file, and with the clock that dates its events.
type danger struct {
	path   string
	opened fs.FileInfo // describes the open file
	logger *slog.Logger
	clock  *clock.Clock

	mu      sync.Mutex
	damaged error
}

// keepDamage examines the error of an operation on the file. If the error reports a damaged page,
// keepDamage remembers the first such damage until the file is opened again, since other pages may
// be damaged too, and returns store.ErrDamaged with it. It returns any other error as it is.
func (d *danger) keepDamage(err error) error {
	var found damage
	if !errors.As(err, &found) || errors.Is(err, store.ErrDamaged) {
		return err
	}
	kept := damage{store.ErrDamaged, found.found}
	d.mu.Lock()
	first := d.damaged == nil
	if first {
		d.damaged = kept
	}
	d.mu.Unlock()
	if first {
		d.logger.Error("the outbox is damaged", "err", kept)
	}
	return kept
}

// err returns the most serious known problem: a file that is gone, then a damaged page, then a
// wrong clock. It returns nil if none is known.
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

// isGone reports whether the file is no longer at its path or has been truncated, as happens when
// another file is copied over it. If the check fails for any other reason, the file counts as
// present.
func (d *danger) isGone() bool {
	current, err := os.Stat(d.path)
	return errors.Is(err, fs.ErrNotExist) ||
		err == nil && (!os.SameFile(current, d.opened) || current.Size() < d.opened.Size())
}

// watch logs when the file disappears or returns, and when the clock becomes wrong or right, until
// ctx ends. At each interval it also stores the step of the clock that does not count yet. A
// failure of that is ignored: the disk is at fault then, which commits report.
func (d *danger) watch(ctx context.Context, keepDoubt func() error) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for wasGone, wasWrong := false, false; ; {
		_ = keepDoubt()
		if gone := d.isGone(); gone != wasGone {
			if wasGone = gone; gone {
				d.logger.Error("the outbox's file is gone", "path", d.path, "err", store.ErrFileGone)
			} else {
				d.logger.Info("the outbox's file is there again", "path", d.path)
			}
		}
		if err := d.clock.Check(); (err != nil) != wasWrong {
			if wasWrong = err != nil; wasWrong {
				d.logger.Error("the clock is wrong: nothing is dropped as too old meanwhile", "err", err)
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

// restoreRescued renames the newest copy that rescue has saved to the path of the file, if no file
// is there. This is automatic because a container restarts the bridge without a person reading the
// log. If a file is there, the copy stays as it is and is only logged.
func restoreRescued(path string, logger *slog.Logger) error {
	copies, err := filepath.Glob(path + ".rescued*")
	if err != nil || len(copies) == 0 {
		return nil // a path with brackets may be an invalid pattern
	}
	newest := slices.MaxFunc(copies, func(a, b string) int { return modTime(a).Compare(modTime(b)) })
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		logger.Warn("a copy of the outbox that a stop has saved lies beside it and is not used",
			"path", path, "saved", newest)
		return nil
	}
	if err := os.Rename(newest, path); err != nil {
		return fmt.Errorf("put back the copy that the last stop has saved at %s: %w", newest, withoutPath(err))
	}
	logger.Warn("the outbox is put back: the last stop had saved it, since its file was gone",
		"path", path, "saved", newest)
	return nil
}

// modTime returns when a file was last modified, or the zero time if there is none.
func modTime(path string) (at time.Time) {
	if info, err := os.Stat(path); err == nil {
		at = info.ModTime()
	}
	return at
}

// rescue writes a copy of the open file beside its path, if the file is no longer there.
func (d *danger) rescue(db *bolt.DB) error {
	if !d.isGone() {
		return nil
	}
	copied := unusedName(d.path + ".rescued")
	err := errors.Join(os.MkdirAll(filepath.Dir(d.path), 0o700), guarded(func() error {
		return db.View(func(tx *bolt.Tx) error { return tx.CopyFile(copied, 0o600) })
	}))
	if err != nil {
		return fmt.Errorf("the outbox's file was removed, moved or replaced, "+
			"and a copy of what it held cannot be saved: %w", withoutPath(err))
	}
	d.logger.Error("the outbox's file is gone; what it held is saved beside it",
		"path", d.path, "saved", copied)
	return nil
}
