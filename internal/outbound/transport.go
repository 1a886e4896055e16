package outbound

import (
	"context"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// connectionLife is how long a connection is used at most, however busy it is. A host name is
	// resolved only when a connection is opened, so after a CRM has moved to another machine, the
	// old machine could go on receiving requests and answer 200.
	connectionLife = 3 * time.Minute
	// Over HTTP/2 all requests share a connection, and all of them fail if it dies silently. After
	// h2Silence without a frame a ping is sent, and after h2Patience without an answer to it the
	// connection is closed. HTTP/1.1 does not need this: there each request that times out closes
	// its connection.
	h2Silence  = 10 * time.Second
	h2Patience = 5 * time.Second
)

// renewed is a transport that replaces its connections after connectionLife. Old connections close
// when their requests have ended.
type renewed struct {
	open func() *http.Transport

	mu      sync.Mutex
	current *http.Transport
	since   time.Time
}

// RoundTrip sends a request on a connection that is younger than connectionLife, or a new one.
func (r *renewed) RoundTrip(req *http.Request) (*http.Response, error) {
	return r.transport(time.Now()).RoundTrip(req)
}

// CloseIdleConnections closes the connections that are not in use.
func (r *renewed) CloseIdleConnections() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		r.current.CloseIdleConnections()
	}
}

func (r *renewed) transport(now time.Time) *http.Transport {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil || now.Sub(r.since) >= connectionLife {
		if old := r.current; old != nil {
			old.CloseIdleConnections() // those in use close later, by the idle timeout
		}
		r.current, r.since = r.open(), now
	}
	return r.current
}

// exchange is the state of a request in flight that go-retryablehttp needs for its decisions. Once
// a byte of a response has come, the endpoint has got the request, and it is not sent again, even
// if the response cannot be parsed.
type exchange struct {
	req      *Request
	answered atomic.Bool
}

type exchangeKey struct{}

// watch returns a context that carries the exchange, for exchangeOf, and that sets answered on the
// first byte of a response.
func (x *exchange) watch(ctx context.Context) context.Context {
	ctx = context.WithValue(ctx, exchangeKey{}, x)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotFirstResponseByte: func() { x.answered.Store(true) },
	})
}

// exchangeOf returns the exchange that a context of watch carries.
func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }
