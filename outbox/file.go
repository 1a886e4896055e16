package outbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

// Backup writes a copy of the file as it stands now; begin is told its size in bytes first. Events come in and go out meanwhile, but the pages that they
// free are not used again until the copy is done.
func (o *Outbox) Backup(begin func(size int64) io.Writer) error {
	return o.store.db.View(func(tx *bolt.Tx) error {
		_, err := tx.WriteTo(begin(tx.Size()))
		return err
	})
}

// Compact rewrites the file without the room in it that is free, and gives its size in bytes before and after. No bridge may have it open: it
// fails with ErrInUse or ErrNotOutbox, or says what went wrong; the file is then as it was.
func Compact(path string) (before, after int64, err error) {
	if _, err := os.Stat(path); err != nil {
		return 0, 0, fmt.Errorf("compact the outbox %s: %w", path, plain(err))
	}
	before, after, err = compact(path)
	if err != nil {
		err = fmt.Errorf("compact the outbox %s: %w", path, err)
	}
	return before, after, err
}

func compact(path string) (before, after int64, err error) {
	// The lock on the old file is held until the new one is in its place, or a bridge could write to the old one in between.
	src, err := openFile(path, 0)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if before, err = size(path); err != nil {
		return 0, 0, err
	}
	copied := path + ".compact"
	if err := os.Remove(copied); err != nil && !os.IsNotExist(err) { // of a run that was ended
		return 0, 0, err
	}
	if err := copyTo(copied, src); err != nil {
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

// copyTo lets bbolt copy all that is in use, in transactions of 64 KiB, and syncs the copy.
func copyTo(path string, src *bolt.DB) error {
	dst, err := bolt.Open(path, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoSync: true})
	if err != nil {
		return err
	}
	const step = 64 << 10 // bytes
	return errors.Join(bolt.Compact(dst, src, step), dst.Sync(), dst.Close())
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
