// Package backup keeps copies of the outbox's file in a folder: one each night, and one before the
// file gets a new layout.
package backup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"pzbridge/internal/telephony"
)

// Folder is where copies are kept. Only the files whose names it has made are ever removed from it.
type Folder struct {
	Dir  string
	Keep int // how many copies
}

// The name of a copy has the time at which it was made, in UTC: by local time two nights of a year
// would have the same hour twice, and names would not sort as times do.
const (
	nameLayout = "outbox-2006-01-02T150405Z"
	nameEnd    = ".db"
	unfinished = ".part" // follows the name until the copy is whole
	// beforeLayout follows the time in the name of a copy that was made before the file got the
	// layout whose number comes next.
	beforeLayout = "-before-layout-"
)

// timeOf returns the time in a name that Write has made; false if it is another name.
func timeOf(name string) (at time.Time, ok bool) {
	stamp, ok := strings.CutSuffix(name, nameEnd)
	if !ok {
		return time.Time{}, false
	}
	if before, layout, found := strings.Cut(stamp, beforeLayout); found {
		if layout == "" || strings.Trim(layout, "0123456789") != "" {
			return time.Time{}, false
		}
		stamp = before
	}
	at, err := time.Parse(nameLayout, stamp)
	return at, err == nil
}

// Write makes a copy that was begun at a time, with what write gives it, and returns its path. What
// has its name is whole and on the disk: until then the name ends in .part. A layout other than 0
// is the one that the file gets next.
func (f Folder) Write(at time.Time, layout int, write func(io.Writer) error) (path string, err error) {
	name := at.UTC().Format(nameLayout)
	if layout != 0 {
		name += fmt.Sprint(beforeLayout, layout)
	}
	path = filepath.Join(f.Dir, name+nameEnd)
	if err := f.write(path, write); err != nil {
		return "", &telephony.Fault{
			Code: telephony.CodeNoBackup,
			Args: []string{f.Dir},
			Text: "a copy of the outbox cannot be written",
			Err:  err,
		}
	}
	return path, nil
}

func (f Folder) write(path string, write func(io.Writer) error) error {
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return err
	}
	part := path + unfinished
	file, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err = write(file); err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return syncFolder(f.Dir)
}

// syncFolder makes a rename durable. Windows has no such call, and does it by itself.
func syncFolder(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// own returns the names of the copies in the folder, the oldest first, and those of copies that
// were never finished. A folder that is not there has none.
func (f Folder) own() (copies, parts []string, err error) {
	list, err := os.ReadDir(f.Dir) // sorted by name, which begins with the time
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	for _, entry := range list {
		name, isPart := strings.CutSuffix(entry.Name(), unfinished)
		_, isOwn := timeOf(name)
		switch {
		case !isOwn || !entry.Type().IsRegular():
		case isPart:
			parts = append(parts, entry.Name())
		default:
			copies = append(copies, entry.Name())
		}
	}
	return copies, parts, err
}

// Newest returns when the newest copy was made that is not later than now; the zero time if there
// is none. A later one was made by a wrong clock.
func (f Folder) Newest(now time.Time) (newest time.Time, err error) {
	copies, _, err := f.own()
	for _, name := range copies {
		if at, _ := timeOf(name); !at.After(now) && at.After(newest) {
			newest = at
		}
	}
	return newest, err
}

// Prune removes the oldest copies beyond Keep, but never the one at the path made, and what was
// left unfinished. No copy may be under way.
func (f Folder) Prune(made string) error {
	copies, remove, err := f.own()
	if excess := len(copies) - f.Keep; excess > 0 {
		// If the clock was set back, the newest copy has not the latest name.
		copies = slices.DeleteFunc(copies, func(name string) bool { return name == filepath.Base(made) })
		remove = append(remove, copies[:min(excess, len(copies))]...)
	}
	for _, name := range remove {
		err = errors.Join(err, os.Remove(filepath.Join(f.Dir, name)))
	}
	if err != nil {
		return fmt.Errorf("remove old copies of the outbox: %w", err)
	}
	return nil
}
