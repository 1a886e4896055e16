//go:build unix

package bolt

import (
	"fmt"
	"os"
	"syscall"
)

// own gives a file the owner, and if that may be the group, of another or of a folder.
func own(path, other string) error {
	var has, wanted syscall.Stat_t
	if err := syscall.Stat(path, &has); err != nil {
		return err
	}
	if err := syscall.Stat(other, &wanted); err != nil {
		return err
	}
	err := os.Chown(path, int(wanted.Uid), int(wanted.Gid))
	if err != nil && has.Uid != wanted.Uid {
		return fmt.Errorf("it belongs to user %d, and only they or root can do this: %w", wanted.Uid, plain(err))
	}
	return nil // the owner may not be in the group any more, and does not need it
}
