// Package connlimit bounds the connections of an HTTP server, so that unauthenticated clients
// cannot use up the file descriptors that the program needs elsewhere.
//
// A listener that stops accepting at its bound, as netutil.LimitListener does, would let such
// clients shut out all others. Here a new connection displaces the one that has been idle for
// longest, and first among those that never carried a request with a token. Only a connection with
// an authenticated request under way is never closed.
package connlimit

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// spare is the number of connections beyond those with an authenticated request under way, so that
// an unauthenticated health check always gets a connection.
const spare = 16

// Limit bounds the connections of one server.
type Limit struct {
	maxBusy int

	mu sync.Mutex
	// idle holds, for each rank, the connections that may be closed, the last one used at the back.
	idle [2]*list.List
	busy int // connections with an authenticated request under way
}

// rank orders the connections by who is closed first.
type rank int

const (
	anonymous     rank = iota
	authenticated      // has carried an authenticated request
)

// New returns a limit of that many connections in all, at least 17, of which 16 are not available
// to authenticated requests.
func New(connections int) *Limit {
	return &Limit{maxBusy: max(1, connections-spare), idle: [2]*list.List{list.New(), list.New()}}
}

// conn is one connection.
type conn struct {
	net.Conn
	limit *Limit

	// The limit's lock guards these.
	rank   rank
	idle   *list.Element // in the list of its rank; nil while busy, and once closed
	busy   bool          // an authenticated request is under way
	closed bool
}

// Listener wraps the server's listener.
func (l *Limit) Listener(inner net.Listener) net.Listener { return listener{inner, l} }

type listener struct {
	net.Listener
	limit *Limit
}

// Accept returns the next connection, and closes another one if there are too many.
func (l listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, limit: l.limit}
	if displaced := l.limit.add(c); displaced != nil {
		_ = displaced.Close() // an error means that it is closed already
	}
	return c, nil
}

// add registers a connection, and returns the connection that it displaces; nil if it displaces
// none.
func (l *Limit) add(c *conn) (displaced *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy+l.idle[anonymous].Len()+l.idle[authenticated].Len() >= l.maxBusy+spare {
		for _, idle := range l.idle {
			if first := idle.Front(); first != nil {
				displaced = first.Value.(*conn)
				displaced.dequeue()
				displaced.closed = true // from here on no request can begin on it
				break
			}
		}
	}
	c.idle = l.idle[c.rank].PushBack(c)
	return displaced
}

// Close closes the connection and removes it from the limit.
func (c *conn) Close() error {
	c.limit.mu.Lock()
	c.dequeue()
	if c.busy {
		c.busy = false
		c.limit.busy--
	}
	c.closed = true
	c.limit.mu.Unlock()
	return c.Conn.Close()
}

// dequeue takes the connection off its idle list. The caller holds the limit's lock.
func (c *conn) dequeue() {
	if c.idle != nil {
		c.limit.idle[c.rank].Remove(c.idle)
		c.idle = nil
	}
}

// begin records a request on the connection, which is under way until done if it is authenticated.
// It returns false if too many authenticated requests are under way.
func (c *conn) begin(isAuthenticated bool) bool {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	switch {
	case c.closed:
		return true // the response cannot arrive anyway
	case !isAuthenticated:
		c.requeue()
		return true
	case c.limit.busy >= c.limit.maxBusy:
		return false
	}
	c.dequeue()
	c.rank, c.busy = authenticated, true
	c.limit.busy++
	return true
}

// done records the end of a request.
func (c *conn) done() {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	if c.busy {
		c.busy = false
		c.limit.busy--
	}
	if !c.closed {
		c.requeue()
	}
}

// requeue puts the connection at the back of its idle list. The caller holds the limit's lock.
func (c *conn) requeue() {
	c.dequeue()
	c.idle = c.limit.idle[c.rank].PushBack(c)
}

type connKey struct{}

// Context attaches the connection to the contexts of its requests. It must be the server's
// ConnContext. A TLS listener must wrap the Listener of the limit, not the other way round: then a
// connection counts from before its handshake, and can be displaced during it.
func Context(ctx context.Context, c net.Conn) context.Context {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	return context.WithValue(ctx, connKey{}, c)
}

// Handler wraps next so that the limit sees its requests; isAuthenticated reports whether a request
// carries a valid token. If too many authenticated requests are under way, it answers 503 itself.
func (l *Limit) Handler(next http.Handler, isAuthenticated func(*http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, limited := r.Context().Value(connKey{}).(*conn)
		if !limited {
			next.ServeHTTP(w, r)
			return
		}
		if !c.begin(isAuthenticated(r)) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"title":"Service Unavailable","status":503,"code":"unavailable",` +
				`"detail":"Too many requests are under way at once. Nothing was done; try again."}` + "\n"))
			return
		}
		defer c.done()
		next.ServeHTTP(w, r)
	})
}
