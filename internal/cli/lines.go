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

// lines is where the console's commands come from: a terminal or a pipe.
type lines struct {
	ctx      context.Context
	out      io.Writer
	terminal *term.Terminal // nil for a pipe
	restore  func()
	pipe     *bufio.Scanner

	mu sync.Mutex
}

// read gives the next line, or io.EOF, also when the context has ended.
func (l *lines) read(prompt string) (string, error) {
	return l.await(func() (string, error) { return l.next(prompt) })
}

// await gives what a read gives. One of standard input cannot be called back when the context ends;
// it ends with the process.
func (l *lines) await(read func() (string, error)) (string, error) {
	type result struct {
		line string
		err  error
	}
	got := make(chan result, 1)
	go func() {
		line, err := read()
		got <- result{line, err}
	}()
	select {
	case r := <-got:
		return r.line, r.err
	case <-l.ctx.Done():
		return "", io.EOF
	}
}

func (l *lines) next(prompt string) (string, error) {
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
		return l.await(func() (string, error) { return l.terminal.ReadPassword(prompt) })
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
