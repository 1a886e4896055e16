//go:build !unix

package bolt

// chownLike does nothing: a file inherits its rights from the folder.
func chownLike(string, string) error { return nil }
