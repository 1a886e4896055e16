// Package outbound is the HTTP client of all senders. It bounds the size of responses, renews its
// connections, redials after a connection error, and removes secrets from errors and responses.
//
//	Do ─► go-retryablehttp: two quick redials
//	        ─► renewed: connections of at most three minutes
//	            ─► net/http
package outbound

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

// Do redials at once after a transport error (a refused or broken connection), twice at most: a CRM
// that restarts drops connections, and accepts new ones a moment later. Longer waits are left to
// the caller.
const (
	maxRedials = 2
	redialWait = 200 * time.Millisecond

	// defaultMaxBody is how many bytes of a response are read: for its content, and so that the
	// connection can be used again.
	defaultMaxBody = 64 << 10
	// maxHead is how many bytes the header of a response may have. With the default of net/http,
	// the responses of one endpoint could exhaust the memory.
	maxHead = 64 << 10
	// maxRetryAfter bounds a Retry-After, since a date may come from a wrong clock.
	maxRetryAfter = time.Hour
)

// Options configures a Client.
type Options struct {
	// Connections is the largest number of connections to one host. All of them are kept while
	// idle, since opening one takes longer than most CRMs take to respond.
	Connections int
	Timeout     time.Duration // of one Do
	TLS         *tls.Config   // nil trusts the system's certificates
	// DialContext opens the connection below HTTP; nil dials TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Redact removes secrets from errors.
	Redact *Redactor
	// MaxBody is how many bytes of a response are read; 0: 64 KiB.
	MaxBody int64
}

// Client makes requests to one endpoint, with connections of its own.
type Client struct {
	opts   Options
	client *retryablehttp.Client
}

// New returns a client.
func New(opts Options) *Client {
	transport := &renewed{open: func() *http.Transport {
		return &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            opts.DialContext,
			ForceAttemptHTTP2:      true,
			TLSClientConfig:        opts.TLS.Clone(), // the transport modifies it
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
			// A redirect could send the POST, unsigned, to any address that the CRM names.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Logger:       nil, // its lines contain the URL's query, which may hold a token
		RetryMax:     maxRedials,
		RetryWaitMin: redialWait,
		RetryWaitMax: redialWait,
		CheckRetry: func(ctx context.Context, _ *http.Response, err error) (bool, error) {
			return mayRedial(ctx, err), nil
		},
		// The backoff of the library waits for a Retry-After of any length. That header is left to
		// the caller.
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

// Close closes the connections that are not in use.
func (c *Client) Close() { c.client.HTTPClient.CloseIdleConnections() }

// Request is one request.
type Request struct {
	HTTP *http.Request // without a body; Do does not modify it
	Body []byte
	// Stream is sent in place of Body, once: such a request is not sent again. May be nil.
	Stream *Stream
	// Sign sets the headers that must be fresh each time the request is sent. May be nil.
	Sign func(h http.Header, at time.Time)
	// MayRedial is called before the request is sent once more, and reports whether it may be. Nil
	// always allows it.
	MayRedial func() bool
	// Read reads the body of a response, Options.MaxBody at most; giveUp ends the reading. Nil
	// reads the body to its end.
	Read func(body io.Reader, giveUp func()) []byte
	// Redact removes secrets from errors that this request alone has. May be nil.
	Redact *Redactor
}

// Stream is a body that is read while it is sent.
type Stream struct {
	io.Reader
	Size int64 // bytes
}

// Answer is the response to a request.
type Answer struct {
	Status     int
	Body       []byte        // the first Options.MaxBody bytes
	RetryAfter time.Duration // from the header; 0 if there is none, an hour at most
}

// Do sends a request, quick redials included, and reads the response. Fails with the error of ctx
// if ctx ends: the outcome of the request is then unknown. Any other error is the reason why there
// was no response, without secrets.
func (c *Client) Do(ctx context.Context, r Request) (Answer, error) {
	limited, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	x := &exchange{req: &r}
	req := &retryablehttp.Request{Request: r.HTTP.WithContext(x.watch(limited))}
	if err := setBody(req, &r); err != nil {
		return Answer{}, c.redact(err, r.Redact)
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
		return Answer{}, coded(codeNoResponse, c.opts.Timeout.String(), "no answer within %s")
	case err != nil:
		return Answer{}, c.redact(err, r.Redact)
	}
	read := r.Read
	if read == nil {
		read = readAll
	}
	body := read(io.LimitReader(resp.Body, cmp.Or(c.opts.MaxBody, defaultMaxBody)), cancel)
	_ = resp.Body.Close()
	if resp.StatusCode < 100 { // net/http accepts any three digits
		return Answer{}, coded(codeBadStatus, fmt.Sprintf("%03d", resp.StatusCode),
			"the answer has the status %s, which is none")
	}
	return Answer{
		Status:     resp.StatusCode,
		Body:       body,
		RetryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}, nil
}

// setBody gives a request its body.
func setBody(req *retryablehttp.Request, r *Request) error {
	if r.Stream == nil {
		return req.SetBody(r.Body)
	}
	// Not by SetBody, which would read all of it first.
	req.Body, req.ContentLength = io.NopCloser(r.Stream.Reader), r.Stream.Size
	r.MayRedial = func() bool { return false }
	return nil
}

// readAll reads a body to its end or the first error.
func readAll(body io.Reader, _ func()) []byte {
	var read bytes.Buffer
	_, _ = read.ReadFrom(body)
	return read.Bytes()
}

// mayRedial reports whether to dial again: after a transport error that is not a timeout, as long
// as no byte of a response has come. net/http returns an error for a response that it cannot parse,
// but the request has reached the endpoint then.
func mayRedial(ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	x := exchangeOf(ctx)
	var netErr net.Error
	isTimeout := errors.As(err, &netErr) && netErr.Timeout()
	return ctx.Err() == nil && !x.answered.Load() && !isTimeout &&
		(x.req.MayRedial == nil || x.req.MayRedial())
}

// parseRetryAfter reads the header: seconds or a date (RFC 9110, 10.2.3), bounded by maxRetryAfter.
// It returns 0 if the header is missing or invalid.
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
