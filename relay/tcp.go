package relay

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxSilence is how long a watched peer may send nothing before it counts as dead.
	maxSilence = 55 * time.Second
	// pollPeriod is the length of one read. A standstill of the process (stopped, paused, swapped
	// out) costs one such read, not the peer's whole allowance: what arrived meanwhile is still to
	// be read.
	pollPeriod = time.Second
	// stallAfter is the gap between two reads after which the data that is read next counts as
	// late.
	stallAfter = 2 * time.Second
	// minQuiet is how long a read must at least have waited for the next byte to prove that all
	// late data is read. Data that waited at the server arrives a round trip later, so the wait
	// must also span several of these.
	minQuiet = 20 * time.Millisecond
	// maxCatchUp bounds the time after a standstill during which data counts as late: a busy
	// connection may never fall quiet.
	maxCatchUp = 10 * time.Second
)

// tcp is the connection below TLS. Once it watches the peer it manages its own deadlines: it reads
// in short polls and gives up only when polls over the whole of maxSilence found nothing.
//
// It also knows which data is late: data that lay in the socket while the process stood still, or
// while the queue of events was full. A question about a call among it is not new.
type tcp struct {
	net.Conn
	watching atomic.Bool
	draining atomic.Bool // writing is over: only what the peer has already sent is read
	onFresh  func()      // called by the reader when data is no longer late; nil before watch

	drained time.Duration // the time spent on polls since draining began; only the reader touches it

	mu        sync.Mutex    // the writer asks whether the reader is behind
	polledAt  time.Time     // the end of the last poll
	lateSince time.Time     // the earliest arrival of the data being read; zero: it is not late
	lateUntil time.Time     // when data counts as new again at the latest
	quiet     time.Duration // how long a poll must have waited to prove that all late data is read
}

// watch starts the limit on the peer's silence. It must not run at the same time as Read.
func (c *tcp) watch() {
	c.onFresh = func() {}
	c.polledAt = time.Now()
	c.watching.Store(true)
}

// drain lets the reader read what the peer has already sent, for at most drainTimeout of waiting in
// all. Time while the queue of events is full does not count, since nothing is read then.
func (c *tcp) drain() { c.draining.Store(true) }

// delayedSince returns the time since which the data that was read last may have been waiting;
// false if it is not late.
func (c *tcp) delayedSince() (since time.Time, late bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lateSince.IsZero() && time.Since(c.polledAt) > stallAfter { // it has waited for space in the queue
		return c.polledAt, true
	}
	return c.lateSince, !c.lateSince.IsZero()
}

// Read waits for the next bytes. It fails with os.ErrDeadlineExceeded when the peer counts as dead.
func (c *tcp) Read(p []byte) (int, error) {
	if !c.watching.Load() {
		return c.Conn.Read(p)
	}
	for range maxSilence / pollPeriod {
		began := time.Now()
		c.detectStall(began)
		if c.drained >= drainTimeout {
			return 0, os.ErrDeadlineExceeded
		}
		if err := c.SetReadDeadline(began.Add(pollPeriod)); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		now := time.Now()
		waited := now.Sub(began)
		if c.draining.Load() {
			c.drained += min(waited, pollPeriod)
		}
		if c.endPoll(now, waited) {
			c.onFresh()
		}
		var timeout net.Error
		if n > 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
			return n, err
		}
	}
	return 0, os.ErrDeadlineExceeded
}

// endPoll records the end of a poll, and reports whether it proved that all late data is read.
func (c *tcp) endPoll(now time.Time, waited time.Duration) (fresh bool) {
	if waited > pollPeriod+stallAfter {
		c.detectStall(now)
		waited = 0 // the process stood still: nothing is proven
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.polledAt = now
	if c.lateSince.IsZero() || waited < c.quiet && !now.After(c.lateUntil) {
		return false
	}
	c.lateSince = time.Time{}
	return true
}

// detectStall marks the coming data as late if the last poll was too long ago.
func (c *tcp) detectStall(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.polledAt) > stallAfter {
		c.lateSince, c.lateUntil = c.polledAt, now.Add(maxCatchUp)
		c.quiet = max(minQuiet, 3*roundTrip(c.Conn))
	}
}
