// Package asynclog keeps whoever reads the log from holding up the program. A pipe that is not read, as that of a container whose log driver hangs, would
// else stop every goroutine at its next line.
package asynclog

import (
	"io"
	"sync"
	"time"
)

const (
	// size is how many bytes may wait to be written.
	size = 1 << 20
	// patience is how long a line waits for room when the log is read too slowly, and Close for what is still to be written.
	patience = time.Second
)

// Writer writes lines from a goroutine of its own, those that wait together. A log that is read slowly slows the program down, as it would without; when it was
// not read for a second, lines are left out until it is read again.
type Writer struct {
	out    io.Writer
	notice func(out io.Writer, lines int)

	filled  chan struct{} // something waits, or Close was called
	written chan struct{} // something was written, so there is room
	done    chan struct{} // closed when all is written

	mu      sync.Mutex
	waiting []byte
	leftOut int  // lines, since something was written last
	stuck   bool // a line has waited for patience in vain, and nothing was written since
	closed  bool
}

// New gives a Writer that writes to out until Close. Where lines were left out, notice writes to out how many.
func New(out io.Writer, notice func(out io.Writer, lines int)) *Writer {
	w := &Writer{out: out, notice: notice, filled: make(chan struct{}, 1), written: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w
}

// Write takes one line, and never fails. Only one call at a time may be under way, as is the case with a slog.Handler. It waits for a second at most.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.fits(line) && !w.stuck {
		w.stuck = !w.awaitRoom(line)
	}
	if !w.fits(line) || w.closed {
		w.leftOut++
		return len(line), nil
	}
	w.waiting = append(w.waiting, line...)
	signal(w.filled)
	return len(line), nil
}

// fits says whether there is room for a line. One that is larger than all the room there is goes alone.
func (w *Writer) fits(line []byte) bool {
	return len(w.waiting) == 0 || len(w.waiting)+len(line) <= size
}

// awaitRoom says whether there is room for a line within patience. The caller holds mu.
func (w *Writer) awaitRoom(line []byte) bool {
	over := time.After(patience)
	for !w.fits(line) {
		w.mu.Unlock()
		select {
		case <-w.written:
			w.mu.Lock()
		case <-over:
			w.mu.Lock()
			return w.fits(line)
		}
	}
	return true
}

// run writes what waits until Close was called and nothing waits.
func (w *Writer) run() {
	defer close(w.done)
	var lines []byte
	var leftOut int
	for closed := false; !closed; {
		<-w.filled
		for more := true; more; {
			lines, leftOut, closed = w.take(lines[:0])
			more = len(lines) > 0 || leftOut > 0
			if more {
				_, _ = w.out.Write(lines) // nobody could be told of an error but by the log
			}
			if leftOut > 0 {
				w.notice(w.out, leftOut)
			}
			signal(w.written)
		}
	}
}

// take gives what waits, and how many lines were left out after it. What comes next goes into room.
func (w *Writer) take(room []byte) (lines []byte, leftOut int, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines, leftOut = w.waiting, w.leftOut
	w.waiting, w.leftOut, w.stuck = room, 0, false
	return lines, leftOut, w.closed
}

// Close returns when everything is written, or after a second. What is written later is left out.
func (w *Writer) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	signal(w.filled)
	select {
	case <-w.done:
	case <-time.After(patience):
	}
}

// signal wakes whoever waits on a channel with room for one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
