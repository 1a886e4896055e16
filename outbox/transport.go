package outbox

import (
	"context"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// connectionLife is how long connections are used at most, however much traffic there is: a name
	// that has moved to another machine is looked up only when a connection is made, and the old
	// machine may go on to say 200.
	connectionLife = 3 * time.Minute
	// Over HTTP/2 all attempts share a connection, and one that has died silently takes all of them.
	// One on which nothing has come for h2Silence is asked for a sign of life, and is given up after
	// h2Patience without one. HTTP/1.1 needs no such thing: there an attempt without an answer ends its
	// connection.
	h2Silence  = 10 * time.Second
	h2Patience = 5 * time.Second
)

// renewed is a transport that makes its connections anew after connectionLife. Those of before end
// when nothing is under way on them any more.
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

// answerWatch notes whether anything has come back of a request. Once something has, the endpoint got it,
// and it is not sent again in the same attempt, however little can be made of the answer.
type answerWatch struct{ began atomic.Bool }

type answerKey struct{}

// watchAnswer gives a context for a request whose answer isAnswered knows of.
func watchAnswer(ctx context.Context) context.Context {
	a := &answerWatch{}
	ctx = context.WithValue(ctx, answerKey{}, a)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotFirstResponseByte: func() { a.began.Store(true) },
	})
}

// isAnswered says whether an answer to the request of a context has begun.
func isAnswered(ctx context.Context) bool {
	a, ok := ctx.Value(answerKey{}).(*answerWatch)
	return ok && a.began.Load()
}
