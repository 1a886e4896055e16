//go:build !unix

package connlimit

// maxFiles is how many files and sockets the process may have open: there is no such limit here.
func maxFiles() int { return usualFiles }
