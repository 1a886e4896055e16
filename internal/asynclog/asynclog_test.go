package asynclog

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// reader is a log that is read only when the test reads it.
type reader struct {
	*bufio.Scanner
	writer *Writer
}

// open returns a Writer and the reader of its log.
func open(t *testing.T) reader {
	t.Helper()
	out, in := io.Pipe()
	w := New(in, func(out io.Writer, lines int) { fmt.Fprintf(out, "left out: %d\n", lines) })
	t.Cleanup(func() { _ = out.Close(); w.Close() })
	return reader{bufio.NewScanner(out), w}
}

// write writes numbered lines of 1 KiB and returns how long that took.
func (r reader) write(t *testing.T, from, to int) time.Duration {
	t.Helper()
	began := time.Now()
	for i := from; i < to; i++ {
		line := fmt.Sprintf("%-1023d\n", i)
		if n, err := r.writer.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	return time.Since(began)
}

// expect reads numbered lines and checks their numbers.
func (r reader) expect(t *testing.T, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		r.expectLine(t, fmt.Sprint(i))
	}
}

func (r reader) expectLine(t *testing.T, want string) {
	t.Helper()
	r.Scan()
	if got := strings.TrimSpace(r.Text()); got != want {
		t.Fatalf("line %.40q, want %q", got, want)
	}
}

func TestLinesKeepTheirOrderWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		for i := range 100 {
			if took := r.write(t, i, i+1); took > 0 {
				t.Fatalf("line %d took %s", i, took)
			}
			r.expect(t, i, i+1)
		}
	})
}

func TestUnreadLogBlocksForOneSecondInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		r.write(t, 0, 1)
		synctest.Wait() // the line has left the buffer
		const lines = maxBuffered >> 10
		if took := r.write(t, 1, lines+1); took > 0 {
			t.Errorf("the lines that fit took %s", took)
		}
		if took := r.write(t, lines+1, lines+101); took != patience {
			t.Errorf("100 lines that do not fit took %s together, want %s", took, patience)
		}
		r.expect(t, 0, lines+1)
		r.expectLine(t, "left out: 100")
		if took := r.write(t, 5000, 5010); took > 0 {
			t.Errorf("lines took %s after the log was read again", took)
		}
		r.expect(t, 5000, 5010)
	})
}

func TestSlowReaderGetsEveryLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		const lines = 5 * maxBuffered >> 10
		done := make(chan bool)
		go func() {
			defer close(done)
			for i := range lines {
				time.Sleep(100 * time.Microsecond)
				r.expect(t, i, i+1)
			}
		}()
		const slowly = lines * 100 * time.Microsecond
		if took := r.write(t, 0, lines); took > slowly {
			t.Errorf("to write took %s, to read %s", took, slowly)
		}
		<-done
	})
}

func TestLineLargerThanTheBufferIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out, in := io.Pipe()
		w := New(in, nil)
		long := strings.Repeat("x", maxBuffered+1) + "\n"
		_, _ = w.Write([]byte(long))
		got := make([]byte, len(long))
		if _, err := io.ReadFull(out, got); err != nil || string(got) != long {
			t.Error("the line did not come as it was written: ", err)
		}
		w.Close()
	})
}

func TestCloseWaitsForTheLastLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		r.write(t, 0, 500)
		closed := make(chan bool)
		go func() { r.writer.Close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close has returned before the lines were read")
		default:
		}
		r.expect(t, 0, 500)
		<-closed
		r.write(t, 0, 1) // is dropped, without a panic
	})
}

func TestCloseGivesUpAfterOneSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		r.write(t, 0, 500)
		began := time.Now()
		r.writer.Close()
		if took := time.Since(began); took != patience {
			t.Errorf("Close of a log that is not read took %s, want %s", took, patience)
		}
	})
}
