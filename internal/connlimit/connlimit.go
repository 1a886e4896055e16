// Package connlimit bounds the connections of an HTTP server, so that strangers cannot take the descriptors that the program needs elsewhere.
//
// A listener that stops accepting at its bound, as netutil.LimitListener does, would let strangers shut everybody out. Here a new connection takes the place of
// another one: of the one that has been quiet for longest, those first from which no request with a token has ever come. Only a connection with a request of
// somebody known under way is never closed.
package connlimit

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"
)

// spare is how many connections there may be beyond those with a request of somebody known, so that a stranger's question for the program's health finds a place.
const spare = 16

// Limit bounds the connections of one server.
type Limit struct {
	max int // with a request of somebody known under way

	mu    sync.Mutex
	quiet [2]*list.List // connections that may be closed, the one that was used last at the back; the array's index is rank
	busy  int           // connections with a request of somebody known under way
}

// rank is who is closed first.
type rank int

const (
	stranger rank = iota
	known
)

// New gives a limit of so many connections in all, of which a few are for strangers.
func New(connections int) *Limit {
	return &Limit{max: max(1, connections-spare), quiet: [2]*list.List{list.New(), list.New()}}
}

// conn is one connection.
type conn struct {
	net.Conn
	limit *Limit

	// All of these are the limit's, under its lock.
	rank   rank
	place  *list.Element // in the list of its rank; nil while it has a request of somebody known, and once it is closed
	busy   bool
	closed bool
}

// Listener wraps the server's listener.
func (l *Limit) Listener(inner net.Listener) net.Listener { return listener{inner, l} }

type listener struct {
	net.Listener
	limit *Limit
}

// Accept gives the next connection, and closes another one if there are too many.
func (l listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, limit: l.limit}
	if longest := l.limit.add(c); longest != nil {
		_ = longest.Close() // whoever it was may have closed it meanwhile
	}
	return c, nil
}

// add takes a connection in, and gives the one that has to make room for it, nil if none has to.
func (l *Limit) add(c *conn) (longest *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy+l.quiet[stranger].Len()+l.quiet[known].Len() >= l.max+spare {
		for _, quiet := range l.quiet {
			if first := quiet.Front(); first != nil {
				longest = first.Value.(*conn)
				longest.unplace()
				longest.closed = true // from now on no request can begin on it
				break
			}
		}
	}
	c.place = l.quiet[c.rank].PushBack(c)
	return longest
}

// Close closes the connection and gives its place away.
func (c *conn) Close() error {
	c.limit.mu.Lock()
	c.unplace()
	if c.busy {
		c.busy = false
		c.limit.busy--
	}
	c.closed = true
	c.limit.mu.Unlock()
	return c.Conn.Close()
}

func (c *conn) unplace() {
	if c.place != nil {
		c.limit.quiet[c.rank].Remove(c.place)
		c.place = nil
	}
}

// use notes that the connection is used, and with isKnown that a request of somebody known is under way until done. It is false if there are too many of those.
func (c *conn) use(isKnown bool) bool {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	switch {
	case c.closed:
		return true // nobody will get the answer
	case !isKnown:
		c.requeue()
		return true
	case c.limit.busy >= c.limit.max:
		return false
	}
	c.unplace()
	c.rank, c.busy = known, true
	c.limit.busy++
	return true
}

// done notes that a request has ended.
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

func (c *conn) requeue() {
	c.unplace()
	c.place = c.limit.quiet[c.rank].PushBack(c)
}

type connKey struct{}

// Context is for the server's ConnContext.
func Context(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// Handler notes the requests that next answers; isKnown says whether one is of somebody known. Where too many of those are under way, it answers itself.
func (l *Limit) Handler(next http.Handler, isKnown func(*http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, limited := r.Context().Value(connKey{}).(*conn)
		if !limited {
			next.ServeHTTP(w, r)
			return
		}
		if !c.use(isKnown(r)) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"title":"Service Unavailable","status":503,"detail":"Too many requests are under way at once. Nothing was done; try again."}` + "\n"))
			return
		}
		defer c.done()
		next.ServeHTTP(w, r)
	})
}
