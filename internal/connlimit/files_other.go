//go:build !unix

package connlimit

// maxFiles returns the process's limit on open files and sockets, of which there is none here.
func maxFiles() int { return usualFiles }
