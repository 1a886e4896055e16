package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/telephony"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long to wait for a process that is about to end. By default bbolt waits for
// ever.
const lockTimeout = time.Second

// guarded runs an operation on a file that may be damaged. Where the file is truncated or
// overwritten, bbolt panics, or reads past the end, which is a fault; guarded turns both into an
// error.
func guarded(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // a fault
			err = damage{ErrNotOutbox, "a part of it is missing, or cannot be read"}
		default:
			err = damage{ErrNotOutbox, fmt.Sprint(r)}
		}
	}()
	return read()
}

// damage is an error with what was found in a file, and the sentinel for what it means.
type damage struct {
	meaning *telephony.Fault
	found   string
}

func (d damage) Error() string { return fmt.Sprintf("%s (%s)", d.meaning, d.found) }

func (d damage) Unwrap() error { return d.meaning }

// Cause returns the code with what was found.
func (d damage) Cause() telephony.Cause {
	return telephony.Cause{Code: d.meaning.Code, Args: []string{d.found}}
}

// openFile opens the file for this process alone, creates it if necessary, and maps mapped bytes of
// it at first; 0 maps its present size.
func openFile(path string, mapped int) (db *bolt.DB, err error) {
	err = guarded(func() error {
		db, err = openAlone(path, mapped)
		return err
	})
	return db, err
}

func openAlone(path string, mapped int) (*bolt.DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make its folder: %w", withoutPath(err))
	}
	var opened *os.File
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:         lockTimeout,
		InitialMmapSize: mapped,
		FreelistType:    bolt.FreelistMapType,
		OpenFile: func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
			opened, err = os.OpenFile(name, flag, mode)
			return opened, err
		},
	})
	if err != nil {
		return nil, openError(path, err)
	}
	// Compact replaces the file. A process that waited for the lock meanwhile has opened the old
	// one.
	own, ownErr := opened.Stat()
	current, currentErr := os.Stat(path)
	if err := errors.Join(ownErr, currentErr); err != nil || !os.SameFile(own, current) {
		return nil, errors.Join(ErrInUse, db.Close())
	}
	if err := guarded(func() error {
		return db.View(func(tx *bolt.Tx) error { return checkBranches(tx, opened, db.Info().PageSize) })
	}); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// openError classifies an error of bbolt's Open. bbolt has no sentinel for a file that is too
// small; a test pins its text.
func openError(path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return ErrInUse
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum),
		errors.Is(err, berrors.ErrVersionMismatch), strings.Contains(err.Error(), "file size too small"):
		return damage{ErrNotOutbox, err.Error()}
	case errors.Is(err, fs.ErrPermission):
		if _, missing := os.Stat(path); missing != nil {
			return missingRight(err, telephony.CodeNoRightToWrite, filepath.Dir(path))
		}
		return missingRight(err, telephony.CodeNoRightToFile)
	}
	return withoutPath(err)
}

// withoutPath removes the path from an error that is wrapped in a sentence with it already.
func withoutPath(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// missingRight adds to a permission error the code for the right that is missing, with this
// process's user and what the right is to.
func missingRight(err error, code telephony.Code, to ...string) error {
	if errors.Is(err, fs.ErrPermission) {
		return &telephony.Fault{
			Code: code,
			Args: append([]string{strconv.Itoa(os.Getuid())}, to...),
			Err:  withoutPath(err),
		}
	}
	return err
}
