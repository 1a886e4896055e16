package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/gorilla/websocket"
)

// maxHead is how long the answer to the handshake may be, in bytes.
const maxHead = 64 << 10

// messageTimeout is how long a message may take from its first byte to its last.
const messageTimeout = time.Minute

var (
	// errLongHead means that what answers the handshake goes on and on.
	errLongHead = errors.New("the answer to the handshake is longer than 64 KiB")
	// errEndlessMessage means that the peer sends parts of a message and never its end: it lives, but
	// nothing of it arrives.
	errEndlessMessage = fmt.Errorf("a message of the server has not ended within %s: the connection counts as dead", messageTimeout)
)

// stream is what the WebSocket library reads, above TLS. It bounds the answer to the handshake, which
// the library reads to its end however long it is, and the time that a message may take. And it sees the code of a close frame, which the
// library gives only where all of the frame is as RFC 6455 wants it: servers write the reason in
// Windows-1251, and the code counts whatever follows it.
type stream struct {
	net.Conn
	below    *tcp
	head     int  // bytes of the answer to the handshake so far
	lineEnd  bool // the last of them ended a line
	upgraded bool // frames follow
	frame    frame
	began    time.Time             // when the message on its way in began; zero: there is none
	closed   *websocket.CloseError // nil until a close frame has come
}

// Read hands on what has come, once it was looked at.
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
		if code, whole := s.frame.closeCode(); whole {
			s.closed = &websocket.CloseError{Code: code}
		}
	}
	if s.isEndless(time.Now()) {
		return 0, errEndlessMessage
	}
	return n, err
}

// awaitCode reads on to the code of a close frame of which the library has refused the beginning, for
// no longer than lastLook.
func (s *stream) awaitCode() {
	s.below.finish()
	buf := make([]byte, 64)
	for s.closed == nil && s.frame.have > 0 && s.frame.isClose() {
		if _, err := s.Read(buf); err != nil {
			return
		}
	}
}

// isEndless says whether the message on its way in has lasted too long. While the process stood still
// the message did not last.
func (s *stream) isEndless(now time.Time) bool {
	_, late := s.below.cameAt()
	switch {
	case !s.frame.inMessage:
		s.began = time.Time{}
	case s.began.IsZero() || late:
		s.began = now
	}
	return !s.began.IsZero() && now.Sub(s.began) > messageTimeout
}

// frame is one frame on its way in (RFC 6455, 5.2), and the message that it belongs to.
type frame struct {
	header    [14]byte
	have      int    // bytes of the header that have come
	left      uint64 // bytes of the payload that are still to come
	code      []byte // of a close frame: the beginning of its payload
	inMessage bool   // a message has begun and not ended; control frames may come between its parts
}

// take takes as much of p as belongs to the frame, and begins the next one when it is over.
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

// size is how long the header is, as far as that is known.
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

// length is how long the payload is, by a header that is whole.
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

// closeCode gives the code of a close frame once that has come; one without a code has the code that
// RFC 6455, 7.1.5 gives it.
func (f *frame) closeCode() (code int, whole bool) {
	if f.have < 2 || f.have < f.size() || !f.isClose() || f.left > 0 && len(f.code) < codeSize {
		return 0, false
	}
	if len(f.code) < codeSize {
		return websocket.CloseNoStatusReceived, true
	}
	var key [4]byte
	if f.isMasked() { // which a server must not do
		key = [4]byte(f.header[f.size()-4 : f.size()])
	}
	return int(f.code[0]^key[0])<<8 | int(f.code[1]^key[1]), true
}
