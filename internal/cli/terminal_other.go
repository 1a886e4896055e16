//go:build !windows

package cli

import "os"

// enableColours returns true: terminals interpret escape sequences by default.
func enableColours(*os.File) bool { return true }
