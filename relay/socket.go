package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
)

// Socket is an open connection to a server: frames in, frames out, in the form that the server speaks.
// One goroutine reads it; writes are the caller's to put in order.
type Socket struct {
	ws       *websocket.Conn
	below    *tcp
	stream   *stream
	expected pz.Codec     // at an address of this scheme
	spoken   atomic.Int32 // the pz.Codec of what was read last
}

// Message is what was read: a document, or why there is none.
type Message struct {
	Doc     []byte // valid until the next message is read
	Payload []byte // as it came
	Err     error  // the payload is in no form that is known, or too long
}

// Read hands each message to receive until the connection ends, and says in plain words why it
// ended: a *websocket.CloseError is within the error where the server has closed it. Ping is called
// with the payload of each ping; the reader itself never writes, since two ends that each wait for the
// other to read would hang.
func (s *Socket) Read(receive func(Message), ping func(payload []byte)) error {
	s.ws.SetPingHandler(func(payload string) error {
		ping([]byte(payload))
		return nil
	})
	var message bytes.Buffer
	for {
		_, r, err := s.ws.NextReader()
		if err != nil {
			return s.readError(err)
		}
		// SetReadLimit would end the connection at a message that is too long. NextReader skips the rest of it.
		message.Reset()
		if _, err := message.ReadFrom(io.LimitReader(r, pz.MaxMessage+1)); err != nil {
			return s.readError(err)
		}
		receive(s.unpack(message.Bytes()))
	}
}

// errLongMessage means that a message is longer than any that makes sense.
var errLongMessage = errors.New("a message over 1 MiB is left out")

// unpack takes the document out of a payload, and learns from it which form the server speaks.
func (s *Socket) unpack(payload []byte) Message {
	if len(payload) > pz.MaxMessage {
		return Message{Payload: payload, Err: errLongMessage}
	}
	doc, codec, err := pz.Unpack(payload)
	if codec != pz.UnknownCodec {
		s.spoken.Store(int32(codec))
	}
	return Message{Doc: doc, Payload: payload, Err: err}
}

// Spoken is the form that the server speaks; pz.UnknownCodec until something was read.
func (s *Socket) Spoken() pz.Codec { return pz.Codec(s.spoken.Load()) }

// codec is the form to write in.
func (s *Socket) codec() pz.Codec {
	if spoken := s.Spoken(); spoken != pz.UnknownCodec {
		return spoken
	}
	return s.expected
}

// CameAt gives the time since which the message just read may have been waiting to be read; false
// where it is new. Only the reader may call it.
func (s *Socket) CameAt() (since time.Time, late bool) { return s.below.cameAt() }

// Write writes a document until the deadline; the zero time is none. Whatever it fails with, half a
// frame may be out, and nothing can be written after it.
func (s *Socket) Write(doc []byte, codec pz.Codec, deadline time.Time) error {
	_ = s.ws.SetWriteDeadline(deadline)
	return s.ws.WriteMessage(websocket.TextMessage, codec.Pack(doc))
}

// Pong answers a ping until the deadline. It may be called beside Write.
func (s *Socket) Pong(payload []byte, deadline time.Time) error {
	return s.ws.WriteControl(websocket.PongMessage, payload, deadline)
}

// Hangup ends the connection from our side. What the server has sent before it reads our close frame
// counts for it as sent, so reading goes on until it closes too, which gone tells, but for no longer
// than patience.
func (s *Socket) Hangup(gone <-chan struct{}, patience time.Duration) {
	deadline := time.Now().Add(patience)
	frame := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = s.ws.WriteControl(websocket.CloseMessage, frame, deadline)
	select {
	case <-gone:
	case <-time.After(time.Until(deadline)):
	}
	s.Close()
}

// Close closes the socket at once: TLS would take seconds to say goodbye to a peer that takes nothing.
func (s *Socket) Close() {
	_ = s.below.Close()
	_ = s.ws.Close()
}

// CloseCode gives the code with which the server has closed a connection, from what reading it has
// failed with; 0 where the server has not.
func CloseCode(err error) int {
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		return closed.Code
	}
	return 0
}

// readError says in plain words why the connection ended. The server's code counts before whatever
// the library found wrong with the frame that it came in.
func (s *Socket) readError(err error) error {
	s.stream.awaitCode()
	var timeout net.Error
	switch {
	case s.stream.closed != nil:
		return closeError{s.stream.closed}
	case errors.Is(err, errEndlessMessage):
		return err
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
