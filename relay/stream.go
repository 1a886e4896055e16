package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"pzbridge/internal/telephony"

	"github.com/gorilla/websocket"
)

// maxHead bounds the response to the handshake, in bytes.
const maxHead = 64 << 10

// messageTimeout bounds the time of a message from its first byte to its last.
const messageTimeout = time.Minute

var (
	// errLongHead means that the response to the handshake does not end.
	errLongHead = errors.New("the answer to the handshake is longer than 64 KiB")
	// errEndlessMessage means that the peer sends parts of a message and never its end: it is
	// alive, but no message arrives.
	errEndlessMessage = &telephony.Fault{
		Code: telephony.CodeEndlessMessage,
		Args: []string{messageTimeout.String()},
		Text: fmt.Sprintf("a message of the server has not ended within %s: the connection counts as dead",
			messageTimeout),
	}
)

// stream is the connection that the WebSocket library reads, above TLS. It bounds the response to
// the handshake, which the library reads to its end however long it is, and the time that a message
// may take. It also extracts the code of a close frame, which the library returns only if all of
// the frame conforms to RFC 6455: servers write the reason in Windows-1251, and the code counts
// whatever follows it.
type stream struct {
	net.Conn
	below    *tcp
	head     int  // bytes of the response to the handshake so far
	lineEnd  bool // the last byte ended a line
	upgraded bool // the response is complete, frames follow
	frame    frame
	began    time.Time             // when the incoming message began; zero: there is none
	closed   *websocket.CloseError // nil until a close frame has come
}

// Read returns the next bytes after it has inspected them.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	rest := p[:n]
	for len(rest) > 0 && !s.upgraded {
		s.head++
		switch rest[0] {
		case '\n':
			s.upgraded, s.lineEnd = s.lineEnd, true
		case '\r':
		default:
			s.lineEnd = false
		}
		rest = rest[1:]
	}
	if !s.upgraded && s.head > maxHead {
		return 0, errLongHead
	}
	for len(rest) > 0 && s.closed == nil {
		rest = rest[s.frame.take(rest):]
		if code, complete := s.frame.closeCode(); complete {
			s.closed = &websocket.CloseError{Code: code}
		}
	}
	if s.isEndless(time.Now()) {
		return 0, errEndlessMessage
	}
	return n, err
}

// awaitCode reads on to the code of a close frame whose beginning the library has refused, for at
// most drainTimeout.
func (s *stream) awaitCode() {
	s.below.drain()
	buf := make([]byte, 64)
	for s.closed == nil && s.frame.have > 0 && s.frame.isClose() {
		if _, err := s.Read(buf); err != nil {
			return
		}
	}
}

// isEndless reports whether the incoming message has lasted too long. A standstill of the process
// does not count.
func (s *stream) isEndless(now time.Time) bool {
	_, late := s.below.delayedSince()
	switch {
	case !s.frame.inMessage:
		s.began = time.Time{}
	case s.began.IsZero() || late:
		s.began = now
	}
	return !s.began.IsZero() && now.Sub(s.began) > messageTimeout
}

// frame is the incoming frame (RFC 6455, 5.2), and whether a message is incomplete.
type frame struct {
	header    [14]byte
	have      int    // bytes of the header so far
	left      uint64 // bytes of the payload that are still missing
	code      []byte // the start of a close frame's payload
	inMessage bool   // a message is incomplete; control frames may stand between its parts
}

// take consumes as much of p as belongs to the frame and returns its length. The next call after
// the end of a frame begins the next one.
func (f *frame) take(p []byte) (n int) {
	if f.have > 0 && f.have == f.size() {
		n = int(min(f.left, uint64(len(p))))
		if f.isClose() {
			f.code = append(f.code, p[:min(n, codeSize-min(codeSize, len(f.code)))]...)
		}
		f.left -= uint64(n)
	} else {
		n = 1
		f.header[f.have] = p[0]
		f.have++
		f.inMessage = f.inMessage || !f.isControl()
		if f.have < f.size() {
			return n
		}
		f.left = f.length()
	}
	if f.left == 0 && !f.isClose() {
		f.inMessage = f.inMessage && (f.isControl() || !f.isFinal())
		f.have = 0
	}
	return n
}

const (
	opcodeClose = 8
	codeSize    = 2
)

func (f *frame) isClose() bool { return f.header[0]&0x0f == opcodeClose }

func (f *frame) isControl() bool { return f.header[0]&0x08 != 0 }

func (f *frame) isFinal() bool { return f.header[0]&0x80 != 0 }

// size returns the length of the header, as far as it is known.
func (f *frame) size() int {
	size := 2
	if f.have < size {
		return size
	}
	switch f.header[1] & 0x7f {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if f.isMasked() {
		size += 4
	}
	return size
}

func (f *frame) isMasked() bool { return f.header[1]&0x80 != 0 }

// length returns the length of the payload, from a complete header.
func (f *frame) length() uint64 {
	switch n := f.header[1] & 0x7f; n {
	case 126:
		return uint64(binary.BigEndian.Uint16(f.header[2:]))
	case 127:
		return binary.BigEndian.Uint64(f.header[2:])
	default:
		return uint64(n)
	}
}

// closeCode returns the code of a close frame once it has arrived; for a frame without a code, the
// code that RFC 6455, 7.1.5 assigns.
func (f *frame) closeCode() (code int, complete bool) {
	if f.have < 2 || f.have < f.size() || !f.isClose() || f.left > 0 && len(f.code) < codeSize {
		return 0, false
	}
	if len(f.code) < codeSize {
		return websocket.CloseNoStatusReceived, true
	}
	var key [4]byte
	if f.isMasked() { // forbidden to a server, but understood
		key = [4]byte(f.header[f.size()-4 : f.size()])
	}
	return int(f.code[0]^key[0])<<8 | int(f.code[1]^key[1]), true
}
