//go:build unix

package bolt

import (
	"fmt"
	"os"
	"syscall"
)

// chownLike gives a file the owner of another file or of a folder, and its group if that is
// permitted.
func chownLike(path, other string) error {
	var has, wanted syscall.Stat_t
	if err := syscall.Stat(path, &has); err != nil {
		return err
	}
	if err := syscall.Stat(other, &wanted); err != nil {
		return err
	}
	err := os.Chown(path, int(wanted.Uid), int(wanted.Gid))
	if err != nil && has.Uid != wanted.Uid {
		return fmt.Errorf("it belongs to user %d, and only they or root can do this: %w", wanted.Uid, withoutPath(err))
	}
	return nil // a group that cannot be set is not needed: the owner has the rights
}
