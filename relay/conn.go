package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
)

// A peer that has given no sign of life for silence is dead. We ask for one every pingPeriod, which leaves room for a lost ping.
const (
	silence      = 55 * time.Second
	pingPeriod   = 20 * time.Second
	controlWrite = 5 * time.Second
)

// conn is one open connection: one goroutine reads it, one writes it, and requests wait in it for their responses.
type conn struct {
	ws    *websocket.Conn
	codec pz.Codec

	requests chan write    // unbuffered: a command is taken by the writer now or by nobody
	pong     chan []byte   // the payload of a ping that is to be answered
	gone     chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	waiting map[string]chan pz.Response // by request ID
	// unwritten is what the writer has ended the connection for.
	unwritten error
}

// write is one request on its way to the socket.
type write struct {
	ctx     context.Context // of whoever waits for it; when it has ended, nothing is written
	payload []byte
	written chan error
}

func newConn(ws *websocket.Conn, codec pz.Codec) *conn {
	return &conn{
		ws: ws, codec: codec, requests: make(chan write), pong: make(chan []byte, 1), gone: make(chan struct{}), waiting: map[string]chan pz.Response{},
	}
}

// read hands each message to receive until the connection ends, and says why it ended. A message is receive's until it returns.
func (c *conn) read(receive func([]byte), logger *slog.Logger) error {
	c.ws.SetPongHandler(func(string) error { c.alive(); return nil })
	c.ws.SetPingHandler(func(payload string) error {
		c.alive()
		// The reader never writes: two ends that each wait for the other to read would hang. One pong answers all pings so far.
		select {
		case c.pong <- []byte(payload):
		default:
		}
		return nil
	})
	var message bytes.Buffer
	for {
		// A new deadline before each read, since receive may have paused for long: what has come meanwhile waits to be read.
		c.alive()
		_, r, err := c.ws.NextReader()
		if err != nil {
			return c.endError(err)
		}
		// SetReadLimit would end the connection at a message that is too long. NextReader skips the rest of it.
		message.Reset()
		if _, err := message.ReadFrom(io.LimitReader(r, pz.MaxMessage+1)); err != nil {
			return c.endError(err)
		}
		payload := message.Bytes()
		if len(payload) > pz.MaxMessage {
			logger.Warn("a message over 1 MiB is left out", "starts_with", firstRunes(string(payload[:1024]), 200))
			continue
		}
		receive(payload)
	}
}

// alive moves the moment at which the peer counts as dead.
func (c *conn) alive() { _ = c.ws.SetReadDeadline(time.Now().Add(silence)) }

// endError says why the connection ended, by what reading it has failed with: it may be the writer that has ended it.
func (c *conn) endError(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var closed *websocket.CloseError
	var timeout net.Error
	switch {
	case c.unwritten == nil || errors.As(err, &closed): // why the server has closed it says more than that nothing can be written then
		return readError(err)
	case errors.As(c.unwritten, &timeout) && timeout.Timeout():
		return fmt.Errorf("the server takes nothing, so the connection counts as dead: %w", c.unwritten)
	}
	return fmt.Errorf("write to the server: %w", c.unwritten)
}

// readError says in plain words why the connection ended; a *websocket.CloseError stays within it.
func readError(err error) error {
	var closed *websocket.CloseError
	var timeout net.Error
	switch {
	case errors.As(err, &closed):
		return closeError{closed}
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("the server has been silent for %s: the connection counts as dead", silence)
	}
	return fmt.Errorf("read from the server: %w", err)
}

// closeError is the server's close frame in plain words.
type closeError struct{ frame *websocket.CloseError }

func (e closeError) Error() string {
	return fmt.Sprintf("connection closed with code %d: %s", e.frame.Code, pz.CloseMeaning(e.frame.Code))
}

func (e closeError) Unwrap() error { return e.frame }

// write sends requests, pings and pongs until the connection has ended.
func (c *conn) write() {
	ping := time.NewTicker(pingPeriod)
	defer ping.Stop()
	// Half a frame may be out: nothing can be written after it. The reader hears of it from the socket. But after our own close frame, behind which nothing is
	// written, the reader takes what the server still has on its way: see goodbye.
	broken := func(err error) bool {
		if err == nil || errors.Is(err, websocket.ErrCloseSent) {
			return false
		}
		c.mu.Lock()
		c.unwritten = err
		c.mu.Unlock()
		_ = c.ws.Close()
		return true
	}
	for {
		select {
		case <-c.gone:
			return
		case <-ping.C:
			if broken(c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(controlWrite))) {
				return
			}
		case payload := <-c.pong:
			if broken(c.ws.WriteControl(websocket.PongMessage, payload, time.Now().Add(controlWrite))) {
				return
			}
		case w := <-c.requests:
			if w.ctx.Err() != nil {
				w.written <- w.ctx.Err()
				continue
			}
			deadline, _ := w.ctx.Deadline()
			_ = c.ws.SetWriteDeadline(deadline)
			err := c.ws.WriteMessage(websocket.TextMessage, w.payload)
			w.written <- err
			if broken(err) {
				return
			}
		}
	}
}

// goodbye ends the connection from our side. What the server has sent before it reads our close frame counts for it as sent, so reading goes
// on until it closes too, but for no longer than patience.
func (c *conn) goodbye(patience time.Duration) {
	deadline := time.Now().Add(patience)
	frame := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = c.ws.WriteControl(websocket.CloseMessage, frame, deadline)
	select {
	case <-c.gone:
	case <-time.After(time.Until(deadline)):
	}
	_ = c.ws.Close()
}

// end closes the socket and sends home whoever waits for a response.
func (c *conn) end() {
	_ = c.ws.Close()
	close(c.gone)
}

// request writes a request and waits for its response. The context's deadline holds for both.
func (c *conn) request(ctx context.Context, req pz.Request) (pz.Response, error) {
	answer := make(chan pz.Response, 1)
	c.mu.Lock()
	c.waiting[req.ID] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, req.ID)
		c.mu.Unlock()
	}()

	w := write{ctx: ctx, payload: c.codec.Pack(req.XML()), written: make(chan error, 1)}
	select {
	case c.requests <- w:
	case <-ctx.Done():
		return pz.Response{}, telephony.ErrNotSent
	case <-c.gone:
		return pz.Response{}, telephony.ErrNotConnected
	}
	// From here on the writer has it. It answers by the deadline, so there is no third case to wait for.
	if err := <-w.written; err != nil {
		return pz.Response{}, telephony.ErrNotSent
	}
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
