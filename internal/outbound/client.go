// Package outbound is the HTTP client of all senders: it bounds what an answer may take, renews its
// connections, dials again where a connection has failed, and takes what is secret out of errors
// and answers.
//
//	Do ─► go-retryablehttp: two quick redials
//	        ─► renewed: connections of at most three minutes
//	            ─► net/http
package outbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

// Within one Do a transport error (a refused or broken connection) is redialled at once, twice at
// most: a CRM that restarts drops connections which work a moment later. Every longer wait is the
// caller's.
const (
	maxRedials = 2
	redialWait = 200 * time.Millisecond

	// maxBody is how much of an answer is read, in bytes: so that its connection can be used again,
	// and for what it says.
	maxBody = 64 << 10
	// maxHead is how long an answer's head may be, in bytes; net/http's own bound would let the
	// answers of one endpoint take all memory.
	maxHead = 64 << 10
	// maxRetryAfter bounds a Retry-After: a date may be of a clock that goes wrong.
	maxRetryAfter = time.Hour
)

// Options says how a client connects.
type Options struct {
	// Connections is how many it has to one host; all may wait to be used again, since to make one
	// takes longer than most CRMs take to answer.
	Connections int
	Timeout     time.Duration // of one Do
	TLS         *tls.Config   // nil trusts the system's certificates
	// DialContext opens the connection below HTTP; nil dials TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Redact takes what is secret out of errors and answers.
	Redact *Redactor
}

// Client makes requests to one endpoint, with connections of its own.
type Client struct {
	opts   Options
	client *retryablehttp.Client
}

// New gives a client.
func New(opts Options) *Client {
	transport := &renewed{make: func() *http.Transport {
		return &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            opts.DialContext,
			ForceAttemptHTTP2:      true,
			TLSClientConfig:        opts.TLS.Clone(), // the transport writes into it
			MaxIdleConnsPerHost:    opts.Connections,
			MaxConnsPerHost:        opts.Connections,
			IdleConnTimeout:        90 * time.Second,
			TLSHandshakeTimeout:    10 * time.Second,
			MaxResponseHeaderBytes: maxHead,
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: h2Silence, PingTimeout: h2Patience},
		}
	}}
	return &Client{opts: opts, client: &retryablehttp.Client{
		HTTPClient: &http.Client{
			Transport: transport,
			// A redirected POST would reach, without a signature, any address that the CRM points
			// at.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Logger:       nil, // its lines quote the URL's query, where a token may stand
		RetryMax:     maxRedials,
		RetryWaitMin: redialWait,
		RetryWaitMax: redialWait,
		CheckRetry: func(ctx context.Context, _ *http.Response, err error) (bool, error) {
			return mayRedial(ctx, err), nil
		},
		// The library's own backoff obeys a Retry-After of any length; that header is the caller's
		// business.
		Backoff:      func(wait, _ time.Duration, _ int, _ *http.Response) time.Duration { return wait },
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
		PrepareRetry: func(req *http.Request) error {
			if sign := exchangeOf(req.Context()).req.Sign; sign != nil {
				sign(req.Header, time.Now())
			}
			return nil
		},
	}}
}

// Close ends the connections that are not in use.
func (c *Client) Close() { c.client.HTTPClient.CloseIdleConnections() }

// Request is one request.
type Request struct {
	HTTP *http.Request // without a body; it is not changed
	Body []byte
	// Sign sets the headers that are to be fresh whenever the request is sent. May be nil.
	Sign func(h http.Header, at time.Time)
	// MayRedial is asked before the request is sent once more. Nil allows it.
	MayRedial func() bool
	// Read reads the body of an answer, of which it gets no more than 64 KiB; giveUp ends the
	// reading. Nil reads it to its end.
	Read func(body io.Reader, giveUp func()) []byte
}

// Answer is what a request was answered.
type Answer struct {
	Status     int
	Body       []byte        // the first 64 KiB
	RetryAfter time.Duration // what the answer asks for; 0 if nothing, an hour at most
}

// Do sends a request, quick redials included, and reads the answer. It fails with ctx's error if
// ctx ended: how the request would have been answered is then unknown. Any other error says why
// there was no answer, without secrets.
func (c *Client) Do(ctx context.Context, r Request) (Answer, error) {
	limited, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	x := &exchange{req: &r}
	req := &retryablehttp.Request{Request: r.HTTP.WithContext(x.watch(limited))}
	if err := req.SetBody(r.Body); err != nil {
		return Answer{}, c.redact(err)
	}
	req.Header = r.HTTP.Header.Clone()
	if r.Sign != nil {
		r.Sign(req.Header, time.Now())
	}
	resp, err := c.client.Do(req)
	switch {
	case ctx.Err() != nil:
		if resp != nil {
			_ = resp.Body.Close()
		}
		return Answer{}, ctx.Err()
	case limited.Err() != nil && err != nil:
		return Answer{}, fmt.Errorf("no answer within %s", c.opts.Timeout)
	case err != nil:
		return Answer{}, c.redact(err)
	}
	read := r.Read
	if read == nil {
		read = readAll
	}
	body := read(io.LimitReader(resp.Body, maxBody), cancel)
	_ = resp.Body.Close()
	if resp.StatusCode < 100 { // net/http takes any three digits
		return Answer{}, fmt.Errorf("the answer has the status %03d, which is none", resp.StatusCode)
	}
	return Answer{
		Status:     resp.StatusCode,
		Body:       body,
		RetryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}, nil
}

// readAll reads a body as far as it comes.
func readAll(body io.Reader, _ func()) []byte {
	var read bytes.Buffer
	_, _ = read.ReadFrom(body)
	return read.Bytes()
}

// mayRedial reports whether to dial again: after a transport error that is no timeout, while
// nothing of an answer has come. An answer that cannot be read is an error of net/http's, but an
// answer all the same.
func mayRedial(ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	x := exchangeOf(ctx)
	var timeout net.Error
	isTimeout := errors.As(err, &timeout) && timeout.Timeout()
	return ctx.Err() == nil && !x.answered.Load() && !isTimeout &&
		(x.req.MayRedial == nil || x.req.MayRedial())
}

// isBadLocation reports whether an error of net/http's says that a redirect's address cannot be
// read. There is no sentinel for it; a test pins the words.
func isBadLocation(err error) bool { return strings.Contains(err.Error(), "Location header") }

// redact takes the address out of an error, whose path and query may hold a token, and what is
// secret out of the rest: net/http quotes answers that it cannot read.
func (c *Client) redact(err error) error {
	var urlErr *url.Error
	for errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	if isBadLocation(err) {
		return errors.New("the answer redirects to an address that cannot be read")
	}
	return errors.New(c.opts.Redact.Replace(err.Error()))
}

// parseRetryAfter reads the header: seconds, or a date (RFC 9110, 10.2.3), maxRetryAfter at most.
// It is 0 for none, and for what cannot be read.
func parseRetryAfter(header string, now time.Time) time.Duration {
	if header == "" {
		return 0
	}
	seconds, err := strconv.ParseUint(header, 10, 32)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return maxRetryAfter
	case err == nil:
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	if date, err := http.ParseTime(header); err == nil {
		return min(max(0, date.Sub(now)), maxRetryAfter)
	}
	return 0
}
