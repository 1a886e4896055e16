package cli

import (
	"io"
	"os"

	"golang.org/x/term"
)

// terminalOf returns the terminal that w writes to, nil if it writes to none.
func terminalOf(w io.Writer) *os.File {
	if o, ok := w.(*output); ok {
		w = o.Writer
	}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return f
}

// isTerminal reports whether w writes to a terminal, which a person looks at.
func isTerminal(w io.Writer) bool { return terminalOf(w) != nil }

// showsColours reports whether w writes to a terminal that shows colours. NO_COLOR, the convention
// of https://no-color.org, forbids them.
func showsColours(w io.Writer) bool {
	f := terminalOf(w)
	return f != nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && enableColours(f)
}
