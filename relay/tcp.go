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
	// minQuiet is the length of a read of late data, at the least: see quietFor.
	minQuiet = 20 * time.Millisecond
	// maxCatchUp bounds the time after a standstill during which data counts as late: a busy
	// connection may never fall quiet.
	maxCatchUp = 10 * time.Second
)

// tcp is the connection below TLS. It manages its own deadlines for reading: it reads in short
// polls, and gives up when they have taken dialTimeout in all or, once it watches the peer, when
// those over the whole of maxSilence found nothing.
//
// It also knows which data is late: data that lay in the socket while the process stood still, or
// while the queue of events was full. A question about a call among it is not new.
type tcp struct {
	net.Conn
	watching atomic.Bool
	draining atomic.Bool // writing is over: only what the peer has already sent is read
	onFresh  func()      // called by the reader when data is no longer late

	dialled time.Duration // the time spent before watch; only the reader touches it
	drained time.Duration // the time spent on polls since draining began; only the reader touches it

	mu        sync.Mutex    // the writer asks whether the reader is behind
	polledAt  time.Time     // the end of the last poll
	lateSince time.Time     // the earliest arrival of the data being read; zero: it is not late
	lateUntil time.Time     // when data counts as new again at the latest
	quiet     time.Duration // the length of a poll while data is late
	idle      int           // polls in a row that found nothing while data is late
}

// newTCP returns a connection that has taken a time to open, which is a part of dialTimeout.
func newTCP(c net.Conn, took time.Duration) *tcp {
	return &tcp{Conn: c, onFresh: func() {}, dialled: took, polledAt: time.Now()}
}

// watch starts the limit on the peer's silence, in place of that on the handshake.
func (c *tcp) watch() { c.watching.Store(true) }

// SetDeadline limits the writes. The WebSocket library sets it for the handshake; to the reader it
// would end a handshake during which the process stands still.
func (c *tcp) SetDeadline(t time.Time) error { return c.SetWriteDeadline(t) }

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
	for silence := time.Duration(0); silence < maxSilence; {
		began := time.Now()
		c.detectStall(began)
		if c.drained >= drainTimeout || !c.watching.Load() && c.dialled >= dialTimeout {
			return 0, os.ErrDeadlineExceeded
		}
		period := c.period()
		if err := c.SetReadDeadline(began.Add(period)); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		now := time.Now()
		waited := now.Sub(began)
		switch {
		case c.draining.Load():
			c.drained += min(waited, period)
		case !c.watching.Load():
			c.dialled += min(waited, period)
		}
		if c.endPoll(now, waited > period+stallAfter, n) {
			c.onFresh()
		}
		var timeout net.Error
		if n > 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
			return n, err
		}
		silence += period
	}
	return 0, os.ErrDeadlineExceeded
}

// period returns the length of the next poll. During the handshake it is not beyond its limit.
func (c *tcp) period() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	period := pollPeriod
	if !c.lateSince.IsZero() {
		period = c.quiet
	}
	if !c.watching.Load() {
		period = min(period, dialTimeout-c.dialled)
	}
	return period
}

// quietFor returns the length of a poll while data is late. Data that waited at the server arrives
// a round trip later, so it spans several of these, but it is no longer than other polls: the
// kernel may have measured a standstill, and a longer poll would look like one.
func quietFor(roundTrip time.Duration) time.Duration {
	return min(max(minQuiet, 3*roundTrip), pollPeriod)
}

// endPoll records the end of a poll that has read n bytes, or in which the process stood still, and
// reports whether it proved that all late data is read. That takes two polls in a row that found
// nothing: on a busy machine one may run out of time with data at hand, which the next one finds as
// it begins. How long a read took proves nothing there.
func (c *tcp) endPoll(now time.Time, stalled bool, n int) (fresh bool) {
	if stalled {
		c.detectStall(now)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.polledAt = now
	c.idle++
	if n > 0 || stalled {
		c.idle = 0
	}
	if c.lateSince.IsZero() || c.idle < 2 && !now.After(c.lateUntil) {
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
		c.lateSince, c.lateUntil, c.idle = c.polledAt, now.Add(maxCatchUp), 0
		c.quiet = quietFor(roundTrip(c.Conn))
	}
}
