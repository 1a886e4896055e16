package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
)

// The session pings the peer every pingPeriod; the maximum silence leaves room for one lost ping.
const (
	pingPeriod   = 20 * time.Second
	pairedPeriod = 2 * time.Second // with a Twin
	controlWrite = 5 * time.Second
	// drainTimeout is how long the reader waits for what the server has already sent, once writing
	// is no longer possible.
	drainTimeout = 2 * time.Second
	// fallbackAfter is how long a request in one form may stay unanswered before it is sent in the
	// other.
	fallbackAfter = 2 * time.Second
)

// conn is one open connection. One goroutine reads it and another writes it; requests wait in it
// for their responses.
type conn struct {
	*Socket

	requests    chan outgoing // unbuffered: the writer takes a command now or never
	pong        chan []byte   // the payload of a ping to answer
	pendingPong []byte        // the payload of a late ping; only the reader touches it
	detected    chan struct{} // closed when the server's form is known
	gone        chan struct{} // closed when the connection has ended

	period      time.Duration // of pings
	pingPayload func() []byte // of the next one; nil: none

	mu       sync.Mutex
	waiting  map[string]chan pz.Response // by request ID
	writeErr error                       // why the writer has ended the connection
}

// outgoing is a request for the writer.
type outgoing struct {
	ctx     context.Context // the caller's; once it has ended, nothing is written
	doc     []byte
	codec   pz.Codec
	written chan error
}

func newConn(s *Socket) *conn {
	return &conn{
		Socket:   s,
		requests: make(chan outgoing),
		pong:     make(chan []byte, 1),
		detected: make(chan struct{}),
		gone:     make(chan struct{}),
		waiting:  map[string]chan pz.Response{},
		period:   pingPeriod,
	}
}

// pairWith tells a Twin of each pong, before read is called. Pings then carry the time at which
// they are sent.
func (c *conn) pairWith(twin Twin) {
	c.period = pairedPeriod
	began := time.Now()
	c.pingPayload = func() []byte { return strconv.AppendInt(nil, int64(time.Since(began)), 10) }
	c.OnPong(func(payload string) {
		if sent, err := strconv.ParseInt(payload, 10, 64); err == nil {
			twin.Ponged(began.Add(time.Duration(sent)))
		}
	})
}

// read passes each message to receive until the connection ends, and returns why it ended. A
// message is valid only during the call.
func (c *conn) read(receive func(Message)) error {
	c.below.onFresh = func() { c.answerPing(nil) } // a ping that came during a standstill
	err := c.Read(func(m Message) {
		if c.Spoken() != pz.UnknownCodec {
			c.markDetected()
		}
		receive(m)
		c.answerPing(nil)
	}, c.answerPing)
	return c.endError(err)
}

// markDetected records that the server's form is known.
func (c *conn) markDetected() {
	select {
	case <-c.detected:
	default:
		close(c.detected)
	}
}

// answerPing queues a pong for a ping, if payload is not nil, and for a pending one. One pong
// answers all pings so far. While the reader catches up with what arrived during a standstill,
// nothing is written: a server that has dropped the connection meanwhile would answer with a reset,
// which discards everything still unread.
func (c *conn) answerPing(payload []byte) {
	if payload != nil {
		c.pendingPong = payload
	}
	if _, late := c.DelayedSince(); late || c.pendingPong == nil {
		return
	}
	select {
	case c.pong <- c.pendingPong:
	default:
	}
	c.pendingPong = nil
}

// endError returns why the connection ended: the reader's error or, if the writer has ended the
// connection, the writer's.
func (c *conn) endError(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var closed *websocket.CloseError
	var timeout net.Error
	switch {
	case c.writeErr == nil || errors.As(err, &closed): // a close code explains more than a failed write
		return err
	case errors.As(c.writeErr, &timeout) && timeout.Timeout():
		return &telephony.Fault{
			Code: telephony.CodeNotReading,
			Text: "the server takes nothing, so the connection counts as dead",
			Err:  c.writeErr,
		}
	}
	return fmt.Errorf("write to the server: %w", c.writeErr)
}

// write sends requests, pings and pongs until the connection has ended.
func (c *conn) write() {
	ping := time.NewTicker(c.period)
	defer ping.Stop()
	// Half a frame may be out, so nothing can be written after an error; what the server has
	// already sent is still read. After the session's own close frame nothing is written either,
	// and Hangup closes the connection.
	broken := func(err error) bool {
		if err == nil || errors.Is(err, websocket.ErrCloseSent) {
			return false
		}
		c.mu.Lock()
		c.writeErr = err
		c.mu.Unlock()
		c.below.drain()
		return true
	}
	for last := time.Now(); ; {
		select {
		case <-c.gone:
			return
		case <-ping.C:
			stoodStill := time.Since(last) > c.period+stallAfter
			last = time.Now()
			if _, behind := c.DelayedSince(); behind || stoodStill {
				continue // the reader comes first, as for pongs
			}
			var payload []byte
			if c.pingPayload != nil {
				payload = c.pingPayload()
			}
			if broken(c.ws.WriteControl(websocket.PingMessage, payload, time.Now().Add(controlWrite))) {
				return
			}
		case payload := <-c.pong:
			if broken(c.Pong(payload, time.Now().Add(controlWrite))) {
				return
			}
		case w := <-c.requests:
			if w.ctx.Err() != nil {
				w.written <- w.ctx.Err()
				continue
			}
			deadline, _ := w.ctx.Deadline()
			err := c.Write(w.doc, w.codec, deadline)
			w.written <- err
			if broken(err) {
				return
			}
		}
	}
}

// end closes the socket and ends every wait for a response.
func (c *conn) end() {
	c.Close()
	close(c.gone)
}

// request writes a request and waits for its response, both until ctx ends.
func (c *conn) request(ctx context.Context, req pz.Request) (pz.Response, error) {
	answer, done := c.expect(req.ID)
	defer done()
	if err := c.send(ctx, req, c.codec()); err != nil {
		return pz.Response{}, err
	}
	return c.await(ctx, answer)
}

// requestEither is request for the first request of a connection: while the server neither answers
// nor sends anything that reveals its form, it sends the request in the other form, too. It must
// not be used for a command, which must not be written twice.
func (c *conn) requestEither(ctx context.Context, req pz.Request) (pz.Response, error) {
	answer, done := c.expect(req.ID)
	defer done()
	first := c.codec()
	if err := c.send(ctx, req, first); err != nil {
		return pz.Response{}, err
	}
	limited, cancel := context.WithTimeout(ctx, fallbackAfter)
	defer cancel()
	resp, err := c.await(limited, answer)
	if err == nil || limited.Err() == nil {
		return resp, err
	}
	if c.Spoken() != first {
		if err := c.send(ctx, req, first.Other()); err != nil {
			return pz.Response{}, err
		}
	}
	return c.await(ctx, answer)
}

// expect registers a request ID for a response, until done is called.
func (c *conn) expect(id string) (answer <-chan pz.Response, done func()) {
	ch := make(chan pz.Response, 1)
	c.mu.Lock()
	c.waiting[id] = ch
	c.mu.Unlock()
	return ch, func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}
}

// send passes a request to the writer and waits until it is written. It fails with
// telephony.ErrNotSent or ErrNotConnected.
func (c *conn) send(ctx context.Context, req pz.Request, codec pz.Codec) error {
	w := outgoing{
		ctx:     ctx,
		doc:     req.XML(),
		codec:   codec,
		written: make(chan error, 1),
	}
	select {
	case c.requests <- w:
	case <-ctx.Done():
		return telephony.ErrNotSent
	case <-c.gone:
		return telephony.ErrNotConnected
	}
	// The writer reports by the deadline, so there is no third case to wait for.
	if err := <-w.written; err != nil {
		return telephony.ErrNotSent
	}
	return nil
}

// await waits for a response. It fails with telephony.ErrNoAnswer.
func (c *conn) await(ctx context.Context, answer <-chan pz.Response) (pz.Response, error) {
	select {
	case resp := <-answer:
		return resp, nil
	case <-ctx.Done():
	case <-c.gone:
	}
	select {
	case resp := <-answer: // it arrived just before the end
		return resp, nil
	default:
		return pz.Response{}, telephony.ErrNoAnswer
	}
}

// deliver passes a response to the request that waits for it, and reports whether there is one.
func (c *conn) deliver(r pz.Response) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, ok := c.waiting[r.RequestID]
	if ok {
		delete(c.waiting, r.RequestID)
		answer <- r
	}
	return ok
}
