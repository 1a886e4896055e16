package bolt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"pzbridge/internal/telephony"

	bolt "go.etcd.io/bbolt"
)

// onWindows is true where an open file can be neither renamed nor removed, and a folder not synced.
const onWindows = runtime.GOOS == "windows"

// Backup writes a copy of the file as it is now to the writer that begin returns for its size in
// bytes. The copy is first made beside the file, and takes as much disk space there until it is
// written: the client may read slowly, and during a bbolt read transaction no freed page is used
// again.
func (s *Engine) Backup(begin func(size int64) io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil { // the folder may have been removed meanwhile
		return fmt.Errorf("make a copy of the outbox: %w", withoutPath(err))
	}
	copied, err := os.CreateTemp(filepath.Dir(s.path), filepath.Base(s.path)+".backup-*")
	if err != nil {
		return fmt.Errorf("make a copy of the outbox: %w", withoutPath(err))
	}
	defer func() {
		_ = copied.Close()
		if onWindows {
			_ = os.Remove(copied.Name())
		}
	}()
	if !onWindows { // then the space is freed when the process ends, in whatever way
		if err := os.Remove(copied.Name()); err != nil {
			return fmt.Errorf("make a copy of the outbox: %w", withoutPath(err))
		}
	}
	var size int64
	err = s.view(func(tx *txn) error {
		size, err = tx.WriteTo(copied)
		return err
	})
	if err == nil {
		_, err = copied.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("make a copy of the outbox: %w", withoutPath(err))
	}
	_, err = io.Copy(begin(size), copied)
	return err
}

// Compact rewrites the file without its free pages, and returns its size in bytes before and after.
// No bridge may have the file open. Fails with ErrInUse, ErrNotOutbox or an error of the disk, and
// then leaves the file unchanged.
func Compact(path string) (before, after int64, err error) {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return 0, 0, fmt.Errorf("compact the outbox %s: %w", path, withoutPath(err))
	}
	before, after, err = compact(target)
	if err != nil {
		err = fmt.Errorf("compact the outbox %s: %w", path, inCommand(err))
	}
	return before, after, err
}

// inCommand gives ErrInUse the code for a command: the file is open in a bridge, or in another
// command.
func inCommand(err error) error {
	if errors.Is(err, ErrInUse) {
		return &telephony.Fault{Code: telephony.CodeBridgeRuns, Err: err}
	}
	return err
}

func compact(path string) (before, after int64, err error) {
	// The lock on the old file is held until the new one is in its place. Otherwise a bridge could
	// write to the old one in between.
	src, err := openFile(path, 0)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if before, err = size(path); err != nil {
		return 0, 0, err
	}
	copied := unusedName(path + ".compact")
	if err := copyTo(copied, src); err != nil {
		if removed := os.Remove(copied); !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
		return 0, 0, missingRight(err, telephony.CodeNoRightToWrite, filepath.Dir(path))
	}
	if err := copyModeAndOwner(copied, path); err != nil {
		return 0, 0, errors.Join(err, os.Remove(copied))
	}
	if onWindows { // a bridge that starts now opens the old file, and the rename fails
		if err := src.Close(); err != nil {
			return 0, 0, errors.Join(err, os.Remove(copied))
		}
	}
	if err := os.Rename(copied, path); err != nil {
		return 0, 0, errors.Join(err, os.Remove(copied))
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return 0, 0, err
	}
	after, err = size(path)
	return before, after, err
}

// copyTo copies all pages in use with bbolt, in transactions of 64 KiB, cuts off the space that
// bbolt has allocated in advance, and syncs the copy.
func copyTo(path string, src *bolt.DB) error {
	dst, err := bolt.Open(path, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoSync: true})
	if err != nil {
		return err
	}
	const step = 64 << 10 // bytes
	err = guarded(func() error { return bolt.Compact(dst, src, step) })
	var used int64
	err = errors.Join(err, dst.View(func(tx *bolt.Tx) error {
		used = tx.Size()
		return nil
	}), dst.Sync(), dst.Close())
	if err != nil {
		return err
	}
	return os.Truncate(path, used)
}

// Restore puts a copy of a backup in the place of the file, and returns the path to which it has
// moved the file that was there, or "" if there was none. No bridge may have the file open. Fails
// with ErrInUse, with ErrNotOutbox if the backup is not one or is damaged, or with an error of the
// disk, and then leaves the file unchanged.
func Restore(path, backup string) (before string, err error) {
	before, err = restore(path, backup)
	if err != nil {
		err = fmt.Errorf("restore the outbox %s from %s: %w", path, backup, inCommand(err))
	}
	return before, err
}

func restore(path, backup string) (before string, err error) {
	unlock := func() {} // on Windows, before the present file is renamed
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
		// The lock on the present file is held until the backup is in its place. No bridge can have
		// a damaged file open, and damage is the reason to restore.
		present, err := openFile(path, 0)
		if err == nil {
			defer func() { _ = present.Close() }()
			if onWindows {
				unlock = func() { _ = present.Close() }
			}
		} else if !errors.Is(err, ErrNotOutbox) {
			return "", err
		}
		before = unusedName(path + ".before-restore")
	} else if _, err := os.Lstat(path); err == nil {
		return "", &telephony.Fault{Code: telephony.CodeLinkToNothing, Text: "it is a link to a file that is not there"}
	}
	copied := unusedName(path + ".restore") // the backup itself may have the name without a number
	if err := copyFile(copied, backup); err != nil {
		return "", withoutPath(err)
	}
	if err = isOutbox(copied); err == nil {
		err = renumber(copied, time.Now())
	}
	if errors.Is(err, ErrNotOutbox) {
		err = &telephony.Fault{Code: telephony.CodeBadBackup, Err: err} // it is not the outbox that is to be restored
	}
	switch {
	case err != nil:
	case before != "":
		err = copyModeAndOwner(copied, path)
	case os.Geteuid() == 0: // the bridge may run as another user, the owner of the folder
		err = chownLike(copied, filepath.Dir(copied))
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(copied))
	}
	if before != "" {
		unlock()
		if err := os.Rename(path, before); err != nil {
			return "", errors.Join(err, os.Remove(copied))
		}
	}
	if err := os.Rename(copied, path); err != nil {
		if before != "" {
			err = errors.Join(err, os.Rename(before, path))
		}
		return "", err
	}
	return before, syncFolder(filepath.Dir(path))
}

// copyModeAndOwner gives a file the mode and the owner of the file that it is to replace: the
// bridge may run as another user than this command.
func copyModeAndOwner(path, other string) error {
	info, err := os.Stat(other)
	if err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, info.Mode().Perm()), chownLike(path, other))
}

// unusedName returns a path at which there is no file: name, or name with -2, -3 … added.
func unusedName(name string) string {
	for n := 1; ; n++ {
		numbered := name
		if n > 1 {
			numbered = fmt.Sprintf("%s-%d", name, n)
		}
		if _, err := os.Lstat(numbered); err != nil { // any error but fs.ErrNotExist comes back from the write
			return numbered
		}
	}
}

// copyFile copies a file to a path at which there is none, and syncs the copy. It makes the folder
// if necessary. On failure it removes the incomplete copy.
func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return missingRight(err, telephony.CodeNoRightToRead, from)
	}
	defer func() { _ = src.Close() }()
	if info, err := src.Stat(); err == nil && info.IsDir() {
		return errors.New("it is a folder, not a file")
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return missingRight(err, telephony.CodeNoRightToWrite, filepath.Dir(to))
	}
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Sync(), dst.Close()); err != nil {
		_ = os.Remove(to)
	}
	return err
}

// isOutbox checks a file that no process has open. Fails with ErrNotOutbox if it is not an outbox
// or any page is damaged, and with another error if it was written by a newer version.
func isOutbox(path string) error {
	db, err := openFile(path, 0)
	if err != nil {
		return err
	}
	err = guarded(func() error {
		return db.View(func(tx *bolt.Tx) error {
			meta := tx.Bucket(bucketMeta)
			if meta == nil || meta.Get(keySchema) == nil {
				return ErrNotOutbox
			}
			// The last pages may be free, so reading every record does not detect that they are
			// missing.
			if info, err := os.Stat(path); err != nil || info.Size() < tx.Size() {
				return errors.Join(damage{ErrNotOutbox, "its end is missing"}, err)
			}
			if err := refuseMoved(tx); err != nil {
				return err
			}
			if err := tooNew(decodeNumber(meta.Get(keySchema))); err != nil {
				return err
			}
			return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return readAll(b) })
		})
	})
	return errors.Join(err, db.Close())
}

// renumber raises the number of the next event above all numbers that were used after the backup
// was made, and after earlier restores of it. Otherwise a CRM that reads its events would take new
// ones for those that it has already read. The next number is at least the microseconds since 1970,
// since events never come faster than one per microsecond.
func renumber(path string, now time.Time) error {
	db, err := openFile(path, 0)
	if err != nil {
		return err
	}
	err = guarded(func() error {
		return db.Update(func(tx *bolt.Tx) error {
			events := tx.Bucket(bucketEvents)
			next := max(events.Sequence(), uint64(now.UnixMicro()))
			return errors.Join(endSessions(tx.Bucket(bucketMeta), now), events.SetSequence(next))
		})
	})
	return errors.Join(err, db.Close())
}

// readAll reads every record of a bucket, and so detects damaged and missing pages. Tx.Check of
// bbolt does so in a goroutine of its own, in which a fault ends the process.
func readAll(b *bolt.Bucket) error {
	last := byte(0)
	return b.ForEach(func(k, v []byte) error {
		if v == nil {
			return readAll(b.Bucket(k))
		}
		if len(v) > 0 {
			last ^= v[len(v)-1]
		}
		return nil
	})
}

func size(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// syncFolder makes a rename durable. Windows does that by itself.
func syncFolder(path string) error {
	if onWindows {
		return nil
	}
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
