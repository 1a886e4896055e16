package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/term"
)

// lines is where the console's commands come from: a terminal or a pipe.
type lines struct {
	out      io.Writer
	terminal *term.Terminal // nil for a pipe
	restore  func()
	pipe     *bufio.Scanner

	mu sync.Mutex
}

// read gives the next line, or io.EOF.
func (l *lines) read(prompt string) (string, error) {
	if l.terminal != nil {
		l.terminal.SetPrompt(prompt)
		return l.terminal.ReadLine()
	}
	if !l.pipe.Scan() {
		if err := l.pipe.Err(); err != nil {
			return "", err
		}
		return "", io.EOF
	}
	return l.pipe.Text(), nil
}

// password reads a line that is not shown.
func (l *lines) password(prompt string) (string, error) {
	if l.terminal != nil {
		return l.terminal.ReadPassword(prompt)
	}
	line, err := l.read("")
	return strings.TrimSpace(line), err
}

// print writes a line that nobody has asked for, without spoiling the one that is being typed.
func (l *lines) print(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.terminal != nil {
		_, _ = l.terminal.Write([]byte(line + "\n"))
		return
	}
	fmt.Fprintln(l.out, line)
}

// locked asks or changes what the reader of the socket asks too.
func (l *lines) locked(f func() bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f()
}

func (l *lines) close() {
	if l.restore != nil {
		l.restore()
	}
}
