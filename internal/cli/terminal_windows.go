package cli

import (
	"os"

	"golang.org/x/sys/windows"
)

// enableColours makes a console interpret escape sequences, which those of Windows do not by
// default. It returns false if the console cannot.
func enableColours(f *os.File) bool {
	console := windows.Handle(f.Fd())
	var mode uint32
	if err := windows.GetConsoleMode(console, &mode); err != nil {
		return false
	}
	return windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
