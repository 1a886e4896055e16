//go:build unix

package cli

import (
	"errors"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// ownerOf returns the name of the user who owns a file.
func ownerOf(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.New("the file system does not say who owns " + file)
	}
	owner, err := user.LookupId(strconv.FormatUint(uint64(stat.Uid), 10))
	if err != nil {
		return "", err
	}
	return owner.Username, nil
}
