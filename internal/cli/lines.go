package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/term"
)

// lines reads the console's commands from a terminal or a pipe.
type lines struct {
	ctx      context.Context
	out      io.Writer
	terminal *term.Terminal // nil for a pipe
	restore  func()
	pipe     *bufio.Scanner

	mu sync.Mutex
}

// read returns the next line, or io.EOF at the end of the input or of the context.
func (l *lines) read(prompt string) (string, error) {
	return l.readOrDone(func() (string, error) { return l.readLine(prompt) })
}

// readOrDone calls read in a goroutine and returns its result, or io.EOF when the context ends. A
// blocked read of standard input cannot be interrupted; its goroutine ends with the process.
func (l *lines) readOrDone(read func() (string, error)) (string, error) {
	type result struct {
		line string
		err  error
	}
	results := make(chan result, 1)
	go func() {
		line, err := read()
		results <- result{line, err}
	}()
	select {
	case r := <-results:
		return r.line, r.err
	case <-l.ctx.Done():
		return "", io.EOF
	}
}

func (l *lines) readLine(prompt string) (string, error) {
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

// password reads a line without echo.
func (l *lines) password(prompt string) (string, error) {
	if l.terminal != nil {
		return l.readOrDone(func() (string, error) { return l.terminal.ReadPassword(prompt) })
	}
	line, err := l.read("")
	return strings.TrimSpace(line), err
}

// print writes an unsolicited line, without disturbing the line that the user is typing.
func (l *lines) print(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.terminal != nil {
		_, _ = l.terminal.Write([]byte(line + "\n"))
		return
	}
	fmt.Fprintln(l.out, line)
}

// withLock calls f under the lock, for state that the reader of the socket also uses.
func (l *lines) withLock(f func() bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f()
}

func (l *lines) close() {
	if l.restore != nil {
		l.restore()
	}
}
