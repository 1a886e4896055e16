package pztest

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"strings"

	"pzbridge/internal/pz"
)

// maxHead bounds the head of a handshake, in bytes.
const maxHead = 64 << 10

// headListener keeps the raw head of each connection: the server compares header names
// case-sensitively, and net/http does not keep their case.
type headListener struct {
	net.Listener
	log func(format string, args ...any)
}

// Accept waits for the next connection.
func (l headListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &headConn{Conn: c, log: l.log}, nil
}

// headConn is a connection that keeps its head. One goroutine at a time may read it.
type headConn struct {
	net.Conn
	log      func(format string, args ...any)
	started  bool
	head     []byte // up to the empty line, as far as it was read
	complete bool
}

// Read keeps what it reads until the head is complete. The first call makes the TLS handshake, if
// there is one: net/http does not see the TLS connection behind this type, and would not log a
// failed handshake.
func (c *headConn) Read(p []byte) (int, error) {
	if secure, ok := c.Conn.(*tls.Conn); ok && !c.started {
		if err := secure.Handshake(); err != nil {
			c.log("TLS handshake error from %s: %v", c.RemoteAddr(), err)
			return 0, err
		}
	}
	c.started = true
	n, err := c.Conn.Read(p)
	if !c.complete {
		c.head = append(c.head, p[:n]...)
		text := bytes.ReplaceAll(c.head, []byte("\r\n"), []byte("\n")) // net/http accepts either line end
		end := bytes.Index(text, []byte("\n\n"))
		if c.complete = end >= 0 || len(c.head) > maxHead; end >= 0 {
			c.head = text[:end]
		}
	}
	return n, err
}

// headKey is the key of the connection in a request's context.
type headKey struct{}

// headers returns the headers of a handshake with their names as sent.
func headers(ctx context.Context) (list pz.Attrs) {
	c := ctx.Value(headKey{}).(*headConn)
	_, lines, _ := strings.Cut(string(c.head), "\n")
	for line := range strings.SplitSeq(lines, "\n") {
		if name, value, found := strings.Cut(line, ":"); found {
			list = append(list, pz.Attr{Name: name, Value: strings.Trim(value, " \t")})
		}
	}
	return list
}
