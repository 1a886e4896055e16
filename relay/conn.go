package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
)

// We ask the peer for a sign of life every pingPeriod, which leaves room in silence for a lost ping.
const (
	pingPeriod   = 20 * time.Second
	controlWrite = 5 * time.Second
	// lastLook is how long it is waited for what the server has sent once nothing can be written any more.
	lastLook = 2 * time.Second
	// answerIn is how long a request in one form may stay unanswered before it is sent in the other.
	answerIn = 2 * time.Second
)

// conn is one open connection: one goroutine reads it, one writes it, and requests wait in it for their responses.
type conn struct {
	*Socket

	requests chan write    // unbuffered: a command is taken by the writer now or by nobody
	pong     chan []byte   // the payload of a ping that is to be answered
	owed     []byte        // likewise, of one that came late; the reader's
	heard    chan struct{} // closed when something was read, by which the form is known
	gone     chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	waiting map[string]chan pz.Response // by request ID
	// unwritten is what the writer has ended the connection for.
	unwritten error
}

// write is one request on its way to the socket.
type write struct {
	ctx     context.Context // of whoever waits for it; when it has ended, nothing is written
	doc     []byte
	codec   pz.Codec
	written chan error
}

func newConn(s *Socket) *conn {
	return &conn{
		Socket: s, requests: make(chan write), pong: make(chan []byte, 1), heard: make(chan struct{}), gone: make(chan struct{}),
		waiting: map[string]chan pz.Response{},
	}
}

// read hands each message to receive until the connection ends, and says why it ended. A message is receive's until it returns.
func (c *conn) read(receive func(Message)) error {
	c.below.fresh = func() { c.answerPing(nil) } // a ping that came during a standstill
	err := c.Read(func(m Message) {
		if c.Spoken() != pz.UnknownCodec {
			c.isHeard()
		}
		receive(m)
		c.answerPing(nil)
	}, c.answerPing)
	return c.endError(err)
}

// isHeard notes that something was read.
func (c *conn) isHeard() {
	select {
	case <-c.heard:
	default:
		close(c.heard)
	}
}

// answerPing has a ping answered, and one that is owed. One pong answers all pings so far. While the
// reader catches up with what came during a standstill nothing is written: a server that has given
// the connection up meanwhile would answer with a reset, which throws away what is still unread.
func (c *conn) answerPing(payload []byte) {
	if payload != nil {
		c.owed = payload
	}
	if _, late := c.CameAt(); late || c.owed == nil {
		return
	}
	select {
	case c.pong <- c.owed:
	default:
	}
	c.owed = nil
}

// endError says why the connection ended, by what reading it has failed with: it may be the writer that has ended it.
func (c *conn) endError(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var closed *websocket.CloseError
	var timeout net.Error
	switch {
	case c.unwritten == nil || errors.As(err, &closed): // why the server has closed it says more than that nothing can be written then
		return err
	case errors.As(c.unwritten, &timeout) && timeout.Timeout():
		return fmt.Errorf("the server takes nothing, so the connection counts as dead: %w", c.unwritten)
	}
	return fmt.Errorf("write to the server: %w", c.unwritten)
}

// write sends requests, pings and pongs until the connection has ended.
func (c *conn) write() {
	ping := time.NewTicker(pingPeriod)
	defer ping.Stop()
	// Half a frame may be out: nothing can be written after it. What the server has sent already is
	// still read. After our own close frame nothing is written either, and Hangup sees to the rest.
	broken := func(err error) bool {
		if err == nil || errors.Is(err, websocket.ErrCloseSent) {
			return false
		}
		c.mu.Lock()
		c.unwritten = err
		c.mu.Unlock()
		c.below.finish()
		return true
	}
	for last := time.Now(); ; {
		select {
		case <-c.gone:
			return
		case <-ping.C:
			late := time.Since(last) > pingPeriod+away
			last = time.Now()
			if late {
				continue // the process stood still: the reader comes first, as for pongs
			}
			if broken(c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(controlWrite))) {
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

// end closes the socket and sends home whoever waits for a response.
func (c *conn) end() {
	c.Close()
	close(c.gone)
}

// request writes a request and waits for its response. The context's deadline holds for both.
func (c *conn) request(ctx context.Context, req pz.Request) (pz.Response, error) {
	answer, done := c.expect(req.ID)
	defer done()
	if err := c.send(ctx, req, c.codec()); err != nil {
		return pz.Response{}, err
	}
	return c.await(ctx, answer)
}

// requestEither is request for the first one of a connection: while the server is silent to it, and
// nothing else tells which form it speaks, it goes out in the other form too. Not for a command,
// which must not be written twice.
func (c *conn) requestEither(ctx context.Context, req pz.Request) (pz.Response, error) {
	answer, done := c.expect(req.ID)
	defer done()
	first := c.codec()
	if err := c.send(ctx, req, first); err != nil {
		return pz.Response{}, err
	}
	limited, cancel := context.WithTimeout(ctx, answerIn)
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

// expect takes the response to a request ID, until done is called.
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

// send has the writer write a request. It fails with telephony.ErrNotSent or ErrNotConnected.
func (c *conn) send(ctx context.Context, req pz.Request, codec pz.Codec) error {
	w := write{ctx: ctx, doc: req.XML(), codec: codec, written: make(chan error, 1)}
	select {
	case c.requests <- w:
	case <-ctx.Done():
		return telephony.ErrNotSent
	case <-c.gone:
		return telephony.ErrNotConnected
	}
	// From here on the writer has it. It answers by the deadline, so there is no third case to wait for.
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
	case resp := <-answer: // it came just before the end
		return resp, nil
	default:
		return pz.Response{}, telephony.ErrNoAnswer
	}
}

// answered hands a response to the request that waits for it, if one does.
func (c *conn) answered(r pz.Response) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, ok := c.waiting[r.RequestID]
	if ok {
		delete(c.waiting, r.RequestID)
		answer <- r
	}
	return ok
}
