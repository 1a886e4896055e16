//go:build unix

package connlimit

import (
	"math"
	"syscall"
)

// maxFiles returns the process's limit on open files and sockets. The Go runtime raises it to the
// hard limit at the start.
func maxFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return usualFiles
	}
	return int(min(uint64(limit.Cur), math.MaxInt32))
}
