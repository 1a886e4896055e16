package bolt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Backup writes a copy of the file as it stands now; begin is told its size in bytes first. The
// copy is made beside the file, and takes as much room there until it is written: whoever takes it
// may be slow, and as long as bbolt is read from, no page that becomes free is used again.
func (s *Engine) Backup(begin func(size int64) io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil { // it may have been removed under the bridge
		return fmt.Errorf("make a copy of the outbox: %w", plain(err))
	}
	copied, err := os.CreateTemp(filepath.Dir(s.path), filepath.Base(s.path)+".backup-*")
	if err != nil {
		return fmt.Errorf("make a copy of the outbox: %w", plain(err))
	}
	defer func() { _ = copied.Close() }()
	if err := os.Remove(copied.Name()); err != nil { // it is gone with the process then, however that ends
		return fmt.Errorf("make a copy of the outbox: %w", plain(err))
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
		return fmt.Errorf("make a copy of the outbox: %w", plain(err))
	}
	_, err = io.Copy(begin(size), copied)
	return err
}

// Compact rewrites the file without the room in it that is free, and gives its size in bytes before
// and after. No bridge may have it open: it fails with ErrInUse or ErrNotOutbox, or says what went
// wrong; the file is then as it was.
func Compact(path string) (before, after int64, err error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return 0, 0, fmt.Errorf("compact the outbox %s: %w", path, plain(err))
	}
	before, after, err = compact(real)
	if err != nil {
		err = fmt.Errorf("compact the outbox %s: %w", path, stopFirst(err))
	}
	return before, after, err
}

// stopFirst adds to ErrInUse what to do: a bridge runs, or another one of these.
func stopFirst(err error) error {
	if errors.Is(err, ErrInUse) {
		return fmt.Errorf("%w; stop the bridge first", err)
	}
	return err
}

func compact(path string) (before, after int64, err error) {
	// The lock on the old file is held until the new one is in its place, or a bridge could write
	// to the old one in between.
	src, err := openFile(path, 0)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if before, err = size(path); err != nil {
		return 0, 0, err
	}
	copied := unused(path + ".compact")
	if err := copyTo(copied, src); err != nil {
		if removed := os.Remove(copied); !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
		return 0, 0, missingRight(err, "write in "+filepath.Dir(path))
	}
	if err := alike(copied, path); err != nil {
		return 0, 0, errors.Join(err, os.Remove(copied))
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

// copyTo lets bbolt copy all that is in use, in transactions of 64 KiB, cuts off what bbolt has
// taken ahead, and syncs the copy.
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

// Restore puts a copy of a backup in the file's place, and gives where it has left what was there,
// empty if nothing was. No bridge may have the file open: it fails with ErrInUse, or with
// ErrNotOutbox if the backup is none, or says what went wrong; the file is then as it was.
func Restore(path, backup string) (before string, err error) {
	before, err = restore(path, backup)
	if err != nil {
		err = fmt.Errorf("restore the outbox %s from %s: %w", path, backup, stopFirst(err))
	}
	return before, err
}

func restore(path, backup string) (before string, err error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
		// The lock on what is there is held until the backup is in its place. What is damaged is
		// nobody's, and is the very reason to restore.
		there, err := openFile(path, 0)
		if err == nil {
			defer func() { _ = there.Close() }()
		} else if !errors.Is(err, ErrNotOutbox) {
			return "", err
		}
		before = unused(path + ".before-restore")
	} else if _, err := os.Lstat(path); err == nil {
		return "", errors.New("it is a link to a file that is not there: remove the link")
	}
	copied := unused(path + ".restore") // the backup itself may bear that name
	if err := copyFile(copied, backup); err != nil {
		return "", plain(err)
	}
	if err = isOutbox(copied); err == nil {
		err = renumber(copied, time.Now())
	}
	if errors.Is(err, ErrNotOutbox) {
		err = badBackup{err}
	}
	switch {
	case err != nil:
	case before != "":
		err = alike(copied, path)
	case os.Geteuid() == 0: // the bridge may run as somebody else: the folder says who
		err = own(copied, filepath.Dir(copied))
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(copied))
	}
	if before != "" {
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

// badBackup is ErrNotOutbox of a backup: it is not the outbox that has to be restored then.
type badBackup struct{ error }

func (b badBackup) Error() string {
	const text = "the file is no outbox, or is damaged: take another backup"
	return strings.Replace(b.error.Error(), ErrNotOutbox.Error(), text, 1)
}

func (b badBackup) Unwrap() error { return b.error }

// alike gives a file the mode and the owner of another, in whose place it is to be: the bridge may
// run as another user than who does this.
func alike(path, other string) error {
	info, err := os.Stat(other)
	if err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, info.Mode().Perm()), own(path, other))
}

// unused gives a name that no file has: that one, or with the first number behind it that makes it
// so.
func unused(name string) string {
	for n := 1; ; n++ {
		numbered := name
		if n > 1 {
			numbered = fmt.Sprintf("%s-%d", name, n)
		}
		if _, err := os.Lstat(numbered); err != nil { // if it is not that there is none, the renaming will say so
			return numbered
		}
	}
}

// copyFile copies a file to where none is, and syncs the copy. Its folder is made if need be. If it
// fails, nothing is left of the copy.
func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return missingRight(err, "read "+from)
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
		return missingRight(err, "write in "+filepath.Dir(to))
	}
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Sync(), dst.Close()); err != nil {
		_ = os.Remove(to) // what there is of it
	}
	return err
}

// isOutbox fails with ErrNotOutbox if a file that nobody has open is none, or damaged in any page,
// and with a sentence of its own if it is of a newer version.
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
			// Pages at the end may hold nothing; a copy without them is cut off all the same.
			if info, err := os.Stat(path); err != nil || info.Size() < tx.Size() {
				return errors.Join(fmt.Errorf("%w (its end is missing)", ErrNotOutbox), err)
			}
			if err := tooNew(decodeNumber(meta.Get(keySchema))); err != nil {
				return err
			}
			return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return readAll(b) })
		})
	})
	return errors.Join(err, db.Close())
}

// renumber gives the events that are to come higher numbers than any that were given since a backup
// was made, or after it was restored before: a CRM that reads its events would take new ones for
// those that it has read. Numbers begin at the microseconds since 1970: never so many events come.
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

// readAll reads whatever is in a bucket, and so meets what is damaged or missing. The bolt.Tx's own
// Check does so in a goroutine, where a fault ends the process.
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

// syncFolder makes a rename durable.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
