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
	// connectionLife is how long connections are used at most, however much traffic there is: a
	// name that has moved to another machine is looked up only when a connection is made, and the
	// old machine may go on to answer 200.
	connectionLife = 3 * time.Minute
	// Over HTTP/2 all requests share a connection, and one that has died silently takes all of
	// them. One on which nothing has come for h2Silence is sent a ping, and is given up after
	// h2Patience without an answer. HTTP/1.1 needs no such thing: there a request without an answer
	// ends its connection.
	h2Silence  = 10 * time.Second
	h2Patience = 5 * time.Second
)

// renewed is a transport that replaces its connections after connectionLife. The old ones end when
// nothing is under way on them any more.
type renewed struct {
	make func() *http.Transport

	mu      sync.Mutex
	current *http.Transport
	since   time.Time
}

// RoundTrip sends a request on a connection that is not too old.
func (r *renewed) RoundTrip(req *http.Request) (*http.Response, error) {
	return r.transport(time.Now()).RoundTrip(req)
}

// CloseIdleConnections closes what is not in use.
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
			old.CloseIdleConnections() // those in use now close by their idle time-out
		}
		r.current, r.since = r.make(), now
	}
	return r.current
}

// exchange is a request under way, with what go-retryablehttp has to know of it. Once anything of
// an answer has come, the endpoint got the request, and it is not sent again, however little can be
// made of the answer.
type exchange struct {
	req      *Request
	answered atomic.Bool
}

type exchangeKey struct{}

// watch gives a context for a request, from which exchangeOf gives the exchange.
func (x *exchange) watch(ctx context.Context) context.Context {
	ctx = context.WithValue(ctx, exchangeKey{}, x)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotFirstResponseByte: func() { x.answered.Store(true) },
	})
}

// exchangeOf gives the exchange of a context that watch has made.
func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }
