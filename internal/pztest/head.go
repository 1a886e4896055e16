package pztest

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"strings"

	"pzbridge/internal/pz"
)

// maxHead is how long a handshake's head may be, in bytes.
const maxHead = 64 << 10

// headListener keeps the head of what each connection sends as it came: the server tells apart how
// the names of headers are written, which net/http forgets.
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

// headConn is a connection whose head is kept. It is read by one goroutine at a time.
type headConn struct {
	net.Conn
	log     func(format string, args ...any)
	started bool
	head    []byte // what was read up to the empty line, or so far
	whole   bool
}

// Read keeps what it reads until the head is whole. The first one makes the TLS handshake, if there
// is one: net/http does not see it behind this type, and would not log one that fails.
func (c *headConn) Read(p []byte) (int, error) {
	if secure, ok := c.Conn.(*tls.Conn); ok && !c.started {
		if err := secure.Handshake(); err != nil {
			c.log("TLS handshake error from %s: %v", c.RemoteAddr(), err)
			return 0, err
		}
	}
	c.started = true
	n, err := c.Conn.Read(p)
	if !c.whole {
		c.head = append(c.head, p[:n]...)
		text := bytes.ReplaceAll(c.head, []byte("\r\n"), []byte("\n")) // net/http takes either for a line's end
		end := bytes.Index(text, []byte("\n\n"))
		if c.whole = end >= 0 || len(c.head) > maxHead; end >= 0 {
			c.head = text[:end]
		}
	}
	return n, err
}

// headKey is where a request's context has its connection.
type headKey struct{}

// headers gives the headers of a handshake with the names of the wire.
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
