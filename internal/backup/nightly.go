package backup

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"pzbridge/internal/sleep"
)

const (
	// nightHour is the hour of local time at which a copy is due: few call then, and it is past the
	// hour that clocks repeat or leave out in spring and autumn.
	nightHour = 4
	// startDelay leaves the first moments after a start to the calls that were missed.
	startDelay = 10 * time.Second
	// checkEvery is the interval at which the time is compared. A wait until the next night would
	// miss it after the machine has slept, or its clock was set.
	checkEvery = time.Minute
	// retryAfter is the wait after a copy that failed.
	retryAfter = time.Hour
)

// Observer counts copies.
type Observer interface {
	BackupFound(at time.Time) // at the start: the newest one that there is
	BackupMade(at time.Time)
	BackupFailed()
}

// Options describes what is copied, and where to.
type Options struct {
	Folder Folder
	// Copy writes the outbox's file to the writer that begin returns for its size.
	Copy func(begin func(size int64) io.Writer) error
	// Usable returns an error while the file is not worth copying, since the copy would displace
	// a good one.
	Usable   func(context.Context) error
	Logger   *slog.Logger
	Observer Observer
}

// Nightly makes a copy each night.
type Nightly struct{ opts Options }

// New returns a Nightly. Fails if an option is missing.
func New(opts Options) (*Nightly, error) {
	if opts.Folder.Dir == "" || opts.Folder.Keep < 1 || opts.Copy == nil || opts.Usable == nil ||
		opts.Logger == nil || opts.Observer == nil {
		return nil, errors.New("backup: Options.Folder, Copy, Usable, Logger and Observer must be set")
	}
	return &Nightly{opts}, nil
}

// Run makes a copy whenever one is due, until ctx ends: at the start if last night's is missing,
// then each night. One that fails is logged and tried again after an hour; nothing else waits for
// it.
func (n *Nightly) Run(ctx context.Context) error {
	newest, _ := n.opts.Folder.Newest(time.Now()) // after an error a copy is due, and fails by the same error
	if !newest.IsZero() {
		n.opts.Observer.BackupFound(newest)
	}
	for wait := startDelay; sleep.For(ctx, wait); {
		wait = checkEvery
		now := time.Now()
		if !newest.Before(lastNight(now)) {
			continue
		}
		switch err := n.copy(ctx, now); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			n.opts.Observer.BackupFailed()
			n.opts.Logger.Warn("no copy of the outbox was made", "err", err, "retry_in", retryAfter.String())
			wait = retryAfter
		default:
			newest = now
			n.opts.Observer.BackupMade(now)
		}
	}
	return nil
}

// copy makes one copy, and removes those that are too many.
func (n *Nightly) copy(ctx context.Context, now time.Time) error {
	if err := n.opts.Usable(ctx); err != nil {
		return err
	}
	size := int64(0)
	path, err := n.opts.Folder.Write(now, 0, func(w io.Writer) error {
		return n.opts.Copy(func(bytes int64) io.Writer {
			size = bytes
			return untilDone{ctx, w}
		})
	})
	if err != nil {
		return err
	}
	n.opts.Logger.Info("a copy of the outbox is made", "path", path, "bytes", size,
		"took_ms", time.Since(now).Milliseconds())
	if err := n.opts.Folder.Prune(path); err != nil {
		n.opts.Logger.Warn("old copies of the outbox cannot be removed", "err", err)
	}
	return nil
}

// BeforeLayout makes the copy of a file that is about to get a new layout. Its error is to end the
// start: the new layout is the one step that cannot be taken back, somebody who upgrades is there
// to read it, and the version before still runs with the file.
func (f Folder) BeforeLayout(layout int, write func(io.Writer) error, logger *slog.Logger) error {
	path, err := f.Write(time.Now(), layout, write)
	if err != nil {
		return err
	}
	logger.Info("a copy of the outbox is made before it gets a new layout", "path", path, "layout", layout)
	if err := f.Prune(path); err != nil {
		logger.Warn("old copies of the outbox cannot be removed", "err", err)
	}
	return nil
}

// lastNight returns the last time at or before now at which a copy was due.
func lastNight(now time.Time) time.Time {
	year, month, day := now.Date()
	due := time.Date(year, month, day, nightHour, 0, 0, 0, now.Location())
	if due.After(now) {
		due = time.Date(year, month, day-1, nightHour, 0, 0, 0, now.Location())
	}
	return due
}

// untilDone is a writer that fails once ctx has ended, so that a shutdown waits for no slow disk.
type untilDone struct {
	ctx context.Context
	w   io.Writer
}

func (u untilDone) Write(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, u.ctx.Err()
	}
	return u.w.Write(b)
}
