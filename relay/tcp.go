package relay

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"
)

const (
	// silence is how long a peer that is listened to may give no sign of life before it counts as dead.
	silence = 55 * time.Second
	// look is how long one look at the socket lasts. A process that stood still (stopped, paused,
	// swapped out) loses one look by that, not its patience: what came meanwhile is still to be read.
	look = time.Second
	// away is how long nobody may have looked at the socket before what is read then counts as old.
	away = 2 * time.Second
	// dry is how long a look must at least have waited for the next byte to show that nothing old is
	// left. What was waiting at the server follows a round trip later, so it is some of these too.
	dry = 20 * time.Millisecond
	// catchUp is how long after the standstill what is read is taken for old at most: on a busy line
	// there is never a gap.
	catchUp = 10 * time.Second
)

// tcp is the connection below TLS. Once it listens it has its own way with deadlines: it looks at the
// socket again and again, and gives up only when it has looked for the whole of silence in vain.
//
// It knows, too, what it reads late. That had been lying in the socket while nobody looked: the
// process stood still, or there was no room for events. A question among it is not new.
type tcp struct {
	net.Conn
	listening atomic.Bool
	ending    atomic.Bool // nothing will be written any more: only what was sent already is read
	fresh     func()      // is called by the reader when what comes is new again; nil before listen

	// The reader alone touches these.
	waited   time.Duration // looking in vain, since it has been ending
	lookedAt time.Time     // when it last had a look at the socket
	since    time.Time     // what is read now may have come at any time after; zero: it is new
	until    time.Time     // when it is taken for new at the latest
	gap      time.Duration // how long a look must have waited to show that nothing old is left
}

// listen begins the watch over a peer that may be silent. Nothing may be read meanwhile.
func (c *tcp) listen() {
	c.fresh = func() {}
	c.lookedAt = time.Now()
	c.listening.Store(true)
}

// finish lets what was sent already be read: reading ends once it has waited for lastLook in all. While
// there is no room for what comes nobody looks, and no time is lost.
func (c *tcp) finish() { c.ending.Store(true) }

// cameAt gives the time since which what was read last may have been waiting to be read; false where
// it is new. Only the reader may call it.
func (c *tcp) cameAt() (since time.Time, late bool) {
	if c.since.IsZero() && time.Since(c.lookedAt) > away { // it was read, and waited for room
		return c.lookedAt, true
	}
	return c.since, !c.since.IsZero()
}

// Read waits for the next bytes. It fails with os.ErrDeadlineExceeded when the peer counts as dead.
func (c *tcp) Read(p []byte) (int, error) {
	if !c.listening.Load() {
		return c.Conn.Read(p)
	}
	for range silence / look {
		began := time.Now()
		c.noticeGap(began)
		if c.waited >= lastLook {
			return 0, os.ErrDeadlineExceeded
		}
		if err := c.SetReadDeadline(began.Add(look)); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		now := time.Now()
		waited := now.Sub(began)
		if c.ending.Load() {
			c.waited += min(waited, look)
		}
		switch {
		case waited > look+away:
			c.noticeGap(now)
		case !c.since.IsZero() && (waited >= c.gap || now.After(c.until)):
			c.since = time.Time{}
			c.lookedAt = now
			c.fresh()
		}
		c.lookedAt = now
		var timeout net.Error
		if n > 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
			return n, err
		}
	}
	return 0, os.ErrDeadlineExceeded
}

// noticeGap notes what it means that nobody has looked at the socket since the last look.
func (c *tcp) noticeGap(now time.Time) {
	if now.Sub(c.lookedAt) > away {
		c.since, c.until = c.lookedAt, now.Add(catchUp)
		c.gap = max(dry, 3*roundTrip(c.Conn))
	}
}
