//go:build unix

package outbox

import (
	"fmt"
	"os"
	"syscall"
)

// own gives a file the owner and the group of another, or of a folder.
func own(path, other string) error {
	var has, wanted syscall.Stat_t
	if err := syscall.Stat(path, &has); err != nil {
		return err
	}
	if err := syscall.Stat(other, &wanted); err != nil {
		return err
	}
	if has.Uid == wanted.Uid && has.Gid == wanted.Gid {
		return nil
	}
	if err := os.Chown(path, int(wanted.Uid), int(wanted.Gid)); err != nil {
		return fmt.Errorf("it belongs to user %d and group %d, and only they or root can do this: %w", wanted.Uid, wanted.Gid, plain(err))
	}
	return nil
}
