// Package asynclog decouples the program from the reader of its log. Without it, a pipe that is not
// read, such as that of a container whose log driver hangs, would block every goroutine at its next
// log line.
package asynclog

import (
	"io"
	"sync"
	"time"
)

const (
	// maxBuffered bounds the bytes that wait to be written.
	maxBuffered = 1 << 20
	// patience bounds how long a line waits for buffer space while the log is read too slowly, and
	// how long Close waits for the rest to be written.
	patience = time.Second
)

// Writer writes buffered lines from a goroutine of its own. A slow reader of the log slows the
// program down, as without a Writer; once a line has waited a second in vain, lines are dropped
// until the log is read again.
type Writer struct {
	out    io.Writer
	notice func(out io.Writer, lines int)

	filled  chan struct{} // lines are buffered, or Close was called
	written chan struct{} // buffered lines were written, so there is space
	done    chan struct{} // closed once everything is written

	mu      sync.Mutex
	buffer  []byte
	dropped int  // lines dropped since the last write
	stuck   bool // a line has waited for patience in vain, and there was no write since
	closed  bool
}

// New returns a Writer that writes to out until Close. After lines were dropped, it calls notice
// with their number, to write a line about them to out.
func New(out io.Writer, notice func(out io.Writer, lines int)) *Writer {
	w := &Writer{
		out:     out,
		notice:  notice,
		filled:  make(chan struct{}, 1),
		written: make(chan struct{}, 1),
		done:    make(chan struct{}),
	}
	go w.run()
	return w
}

// Write buffers one line. It waits for at most a second and never fails. Calls must not overlap,
// and those of a slog.Handler do not.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.fits(line) && !w.stuck {
		w.stuck = !w.awaitSpace(line)
	}
	if !w.fits(line) || w.closed {
		w.dropped++
		return len(line), nil
	}
	w.buffer = append(w.buffer, line...)
	wake(w.filled)
	return len(line), nil
}

// fits reports whether the buffer has space for a line. A line beyond the limit fits an empty
// buffer. The caller holds mu.
func (w *Writer) fits(line []byte) bool {
	return len(w.buffer) == 0 || len(w.buffer)+len(line) <= maxBuffered
}

// awaitSpace waits until a line fits, for patience at most, and reports whether it does. The caller
// holds mu.
func (w *Writer) awaitSpace(line []byte) bool {
	timeout := time.After(patience)
	for !w.fits(line) {
		w.mu.Unlock()
		select {
		case <-w.written:
			w.mu.Lock()
		case <-timeout:
			w.mu.Lock()
			return w.fits(line)
		}
	}
	return true
}

// run writes what is buffered until Close was called and the buffer is empty.
func (w *Writer) run() {
	defer close(w.done)
	var lines []byte
	var dropped int
	for closed := false; !closed; {
		<-w.filled
		for more := true; more; {
			lines, dropped, closed = w.take(lines[:0])
			more = len(lines) > 0 || dropped > 0
			if more {
				_, _ = w.out.Write(lines) // an error could be reported nowhere but in the log
			}
			if dropped > 0 {
				w.notice(w.out, dropped)
			}
			wake(w.written)
		}
	}
}

// take empties the buffer and returns its lines, and how many were dropped after them. Spare
// becomes the next buffer.
func (w *Writer) take(spare []byte) (lines []byte, dropped int, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines, dropped = w.buffer, w.dropped
	w.buffer, w.dropped, w.stuck = spare, 0, false
	return lines, dropped, w.closed
}

// Close waits until everything is written, for at most a second. Lines that come later are dropped.
func (w *Writer) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	wake(w.filled)
	select {
	case <-w.done:
	case <-time.After(patience):
	}
}

// wake sends to a channel with a buffer of one, without blocking; a wake-up that is pending already
// is enough.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
