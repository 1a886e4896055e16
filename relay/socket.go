package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
)

// Socket is an open connection to a server. It reads and writes documents in the form that the
// server uses. One goroutine reads; the caller must serialise the writes.
type Socket struct {
	ws       *websocket.Conn
	below    *tcp
	stream   *stream
	expected pz.Codec     // by the address's scheme
	spoken   atomic.Int32 // the pz.Codec of the last message read
}

// Message is a message from the server: a document, or the reason why there is none.
type Message struct {
	Doc     []byte // valid until the next message is read
	Payload []byte // as received
	Err     error  // the payload is in no known form, or too long
}

// Read passes each message to receive until the connection ends, and returns why it ended, as a
// sentence; if the server has closed the connection, the error wraps a *websocket.CloseError. It
// calls ping with the payload of each ping; the reader itself never writes, since two ends that
// each wait for the other to read would hang.
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
		// SetReadLimit would end the connection at a message that is too long. NextReader skips the
		// rest of such a message.
		message.Reset()
		if _, err := message.ReadFrom(io.LimitReader(r, pz.MaxMessage+1)); err != nil {
			return s.readError(err)
		}
		receive(s.unpack(message.Bytes()))
	}
}

// OnPong sets what is called by Read with the payload of each pong.
func (s *Socket) OnPong(pong func(payload string)) {
	s.ws.SetPongHandler(func(payload string) error {
		pong(payload)
		return nil
	})
}

// errLongMessage means that a message exceeds pz.MaxMessage.
var errLongMessage = errors.New("a message over 1 MiB is left out")

// unpack extracts the document from a payload and records the form that the server uses.
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

// Spoken returns the form that the server uses; pz.UnknownCodec until a document was read.
func (s *Socket) Spoken() pz.Codec { return pz.Codec(s.spoken.Load()) }

// codec returns the form to write in.
func (s *Socket) codec() pz.Codec {
	if spoken := s.Spoken(); spoken != pz.UnknownCodec {
		return spoken
	}
	return s.expected
}

// DelayedSince returns the time since which the message just read may have been waiting to be read;
// false if it was read at once.
func (s *Socket) DelayedSince() (since time.Time, late bool) { return s.below.delayedSince() }

// Write writes a document until the deadline; the zero time is none. After an error half a frame
// may be out, so nothing more can be written.
func (s *Socket) Write(doc []byte, codec pz.Codec, deadline time.Time) error {
	_ = s.ws.SetWriteDeadline(deadline)
	return s.ws.WriteMessage(websocket.TextMessage, codec.Pack(doc))
}

// Pong answers a ping until the deadline. It may be called at the same time as Write.
func (s *Socket) Pong(payload []byte, deadline time.Time) error {
	return s.ws.WriteControl(websocket.PongMessage, payload, deadline)
}

// Hangup closes the connection with a close frame. The server counts everything as sent that it
// sends before it reads that frame, so reading goes on until the server closes the connection (gone
// must be closed then), for patience at most.
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

// Close closes the socket at once, below TLS, whose closing message would block for seconds on a
// peer that reads nothing.
func (s *Socket) Close() {
	_ = s.below.Close()
	_ = s.ws.Close()
}

// CloseCode returns the code with which the server has closed the connection, from Read's error; 0
// if the server has not closed it.
func CloseCode(err error) int {
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		return closed.Code
	}
	return 0
}

// readError returns why the connection ended, as a sentence. The server's close code takes
// precedence over the library's objections to the frame around it.
func (s *Socket) readError(err error) error {
	s.stream.awaitCode()
	var timeout net.Error
	switch {
	case s.stream.closed != nil:
		return closeError{s.stream.closed}
	case errors.Is(err, errEndlessMessage):
		return err
	case errors.As(err, &timeout) && timeout.Timeout():
		return &telephony.Fault{
			Code: telephony.CodeSilent,
			Args: []string{maxSilence.String()},
			Text: fmt.Sprintf("the server has been silent for %s: the connection counts as dead", maxSilence),
		}
	}
	return fmt.Errorf("read from the server: %w", err)
}

// closeError is the server's close frame as an error with a readable text.
type closeError struct{ frame *websocket.CloseError }

func (e closeError) Error() string {
	return fmt.Sprintf("connection closed with code %d: %s", e.frame.Code, pz.CloseMeaning(e.frame.Code))
}

func (e closeError) Unwrap() error { return e.frame }

// Cause returns the cause of the close code.
func (e closeError) Cause() telephony.Cause { return closeCause(e.frame.Code) }

// closeCause returns the cause of a close code.
func closeCause(code int) telephony.Cause {
	if c, ok := closeCauses[code]; ok {
		return telephony.Cause{Code: c}
	}
	return telephony.Cause{Code: telephony.CodeClosedUnknown, Args: []string{strconv.Itoa(code)}}
}

var closeCauses = map[int]telephony.Code{
	websocket.CloseNormalClosure:     telephony.CodeEnded,
	websocket.CloseGoingAway:         telephony.CodeGoingAway,
	websocket.CloseNoStatusReceived:  telephony.CodeEndedSilently,
	websocket.CloseAbnormalClosure:   telephony.CodeBrokeOff,
	websocket.CloseInternalServerErr: telephony.CodeServerError,
	websocket.CloseServiceRestart:    telephony.CodeRestarting,
	pz.CloseLicenceUnchecked:         telephony.CodeLicenceUnchecked,
	pz.CloseLicenceInvalid:           telephony.CodeLicenceInvalid,
	pz.CloseLicenceExpired:           telephony.CodeLicenceExpired,
	pz.CloseLicenceKind:              telephony.CodeLicenceKind,
	pz.CloseLicenceVersion:           telephony.CodeLicenceVersion,
	pz.CloseLicenceClient:            telephony.CodeLicenceClient,
	pz.CloseTooManyUsers:             telephony.CodeTooManyUsers,
	pz.CloseInvalidPassword:          telephony.CodeWrongPassword,
	pz.CloseSameGUID:                 telephony.CodeSameGUID,
}
