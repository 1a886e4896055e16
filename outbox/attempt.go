package outbox

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"golang.org/x/time/rate"
)

// Within one attempt a transport error (a refused or broken connection) is redialled at once, twice at most: a CRM that restarts
// drops connections which work a moment later. Every longer wait is the schedule's.
const (
	redials    = 2
	redialWait = 200 * time.Millisecond

	// maxResponse is how much of an answer is read, in bytes: so that its connection can be used again, and for what it says about a call.
	maxResponse = 64 << 10
	// maxHead is how long an answer's head may be, in bytes; net/http's own bound would let the answers of one endpoint take all memory.
	maxHead = 64 << 10
	// answerEnds is how long the end of an answer to a question is waited for that says all already: a program may work on before it ends what it has sent, and
	// a person waits on the line.
	answerEnds = 100 * time.Millisecond
)

// sender makes attempts at one endpoint, with connections of its own.
type sender struct {
	endpoint Endpoint
	request  *http.Request // what every attempt begins with; nil if the endpoint's URL is none
	client   *retryablehttp.Client
	signer   signer
	limit    *rate.Limiter     // of the endpoint's lane; nil: none
	stopping atomic.Bool       // nothing new is sent
	asks     bool              // it asks questions, whose answers matter
	hide     *strings.Replacer // takes what is secret out of an answer
}

// newSender makes a sender that has up to so many connections, all of which may wait to be used again:
// to make one takes longer than most CRMs take to answer.
func newSender(e Endpoint, connections int, opts Options) *sender {
	transport := &renewed{make: func() *http.Transport {
		return &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: opts.DialContext, ForceAttemptHTTP2: true,
			TLSClientConfig:     e.TLS.Clone(), // the transport writes into it
			MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections,
			IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: maxHead,
			HTTP2: &http.HTTP2Config{SendPingTimeout: h2Silence, PingTimeout: h2Patience},
		}
	}}
	s := &sender{endpoint: e, request: newRequest(e, opts.UserAgent), signer: newSigner(e.Secrets), hide: hider(e)}
	s.client = &retryablehttp.Client{
		HTTPClient: &http.Client{
			Transport: transport,
			// A redirected POST would reach, unsigned for, whoever the CRM points at.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Logger:   nil, // its lines quote the URL's query, where a token may stand
		RetryMax: redials, RetryWaitMin: redialWait, RetryWaitMax: redialWait,
		CheckRetry: func(ctx context.Context, _ *http.Response, err error) (bool, error) {
			return redialable(ctx, err) && !s.stopping.Load() && (s.limit == nil || s.limit.Allow()), nil
		},
		// The library's own backoff obeys a Retry-After of any length; that header is the schedule's business.
		Backoff:      func(wait, _ time.Duration, _ int, _ *http.Response) time.Duration { return wait },
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
		PrepareRetry: func(req *http.Request) error {
			body, err := req.GetBody()
			if err != nil {
				return err
			}
			sent, err := io.ReadAll(body)
			if err != nil {
				return err
			}
			s.signer.sign(req.Header, req.Header.Get(headerID), time.Now(), sent)
			return nil
		},
	}
	return s
}

// newRequest makes the part of a request that is the same for every attempt at an endpoint.
func newRequest(e Endpoint, userAgent string) *http.Request {
	req, err := http.NewRequest(http.MethodPost, e.URL, nil)
	if err != nil {
		return nil
	}
	for name, values := range e.Headers {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", e.Format.contentType())
	req.Header.Set("User-Agent", userAgent)
	return req
}

// redialable says whether to dial again within the attempt: after a transport error that is no
// timeout, while nothing of an answer has come. One that cannot be read is an error of net/http's, but
// an answer all the same.
func redialable(ctx context.Context, err error) bool {
	var timeout net.Error
	isTimeout := errors.As(err, &timeout) && timeout.Timeout()
	return err != nil && ctx.Err() == nil && !isAnswered(ctx) && !isTimeout
}

// attempt POSTs an event once, quick redials included. It fails, with ctx's error, only when ctx ended: how the attempt would have
// gone is then unknown.
func (s *sender) attempt(ctx context.Context, j job) (outcome, error) {
	limited, cancel := context.WithTimeout(ctx, s.endpoint.Timeout)
	defer cancel()
	if s.request == nil {
		return outcome{err: errors.New("the endpoint's URL cannot be read")}, nil
	}
	body := s.endpoint.Format.render(j.body)
	req := &retryablehttp.Request{Request: s.request.WithContext(watchAnswer(limited))}
	if err := req.SetBody(body); err != nil {
		return outcome{err: err}, nil
	}
	req.Header = s.request.Header.Clone()
	s.signer.sign(req.Header, j.eventID, time.Now(), body)

	resp, err := s.client.Do(req)
	switch {
	case ctx.Err() != nil:
		if resp != nil {
			_ = resp.Body.Close()
		}
		return outcome{}, ctx.Err()
	case limited.Err() != nil && err != nil:
		return outcome{err: fmt.Errorf("no answer within %s", s.endpoint.Timeout)}, nil
	case err != nil:
		return outcome{err: s.plain(err)}, nil
	}
	// The status has said how it went; the rest is for people, but for a question, and read so that the connection can be used again.
	answer := readResponse(io.LimitReader(resp.Body, maxResponse), s.asks, cancel)
	_ = resp.Body.Close()
	if resp.StatusCode < 100 { // net/http takes any three digits
		return outcome{err: fmt.Errorf("the answer has the status %03d, which is none", resp.StatusCode)}, nil
	}
	return outcome{
		status: resp.StatusCode, body: answer, response: cut(s.hide.Replace(string(answer)), keptResponse),
		retryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}, nil
}

// hider makes what takes an endpoint's secrets out of an answer: error pages like to repeat the address that was asked for, and in its path and
// its query stand tokens.
func hider(e Endpoint) *strings.Replacer {
	const shortest = 6 // characters; what is shorter is no secret and stands everywhere
	var secrets []string
	add := func(list ...string) {
		for _, s := range list {
			if len(s) >= shortest {
				secrets = append(secrets, s)
			}
		}
	}
	addUser := func(user *url.Userinfo) {
		if password, set := user.Password(); set {
			add(password, base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
		}
		add(user.Username())
	}
	if u, err := url.Parse(e.URL); err == nil {
		add(u.RequestURI(), u.RawQuery)
		add(strings.Split(u.EscapedPath(), "/")...)
		add(strings.Split(u.Path, "/")...)
		for _, values := range u.Query() {
			add(values...)
		}
		for pair := range strings.SplitSeq(u.RawQuery, "&") {
			_, value, _ := strings.Cut(pair, "=")
			add(value)
		}
		addUser(u.User)
		if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); err == nil && proxy != nil {
			addUser(proxy.User)
		}
	}
	add(e.Tokens...)
	for _, values := range e.Headers {
		add(values...)
		for _, v := range values {
			add(strings.Fields(v)...)
		}
	}
	for _, secret := range e.Secrets {
		add(string(secret), base64.StdEncoding.EncodeToString(secret), base64.RawStdEncoding.EncodeToString(secret))
	}
	for _, s := range slices.Clone(secrets) {
		secrets = append(secrets, written(s)...)
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // the first that fits is taken
	var pairs []string
	for _, s := range secrets {
		pairs = append(pairs, s, "(hidden)")
	}
	return strings.NewReplacer(pairs...)
}

// written gives the ways in which an answer may write a secret that it repeats: in JSON, in HTML and in an address, as PHP and others do it.
func written(secret string) (ways []string) {
	inJSON := strings.Trim(string(appendString(nil, secret)), `"`)
	inAddress := url.QueryEscape(secret)
	for _, way := range []string{
		inJSON, strings.ReplaceAll(inJSON, "/", `\/`), html.EscapeString(secret),
		inAddress, strings.ReplaceAll(inAddress, "+", "%20"), lowerEscapes(inAddress), lowerEscapes(secret),
	} {
		if way != secret && !slices.Contains(ways, way) {
			ways = append(ways, way)
		}
	}
	return ways
}

// lowerEscapes writes the hexadecimal digits of an address's escapes small.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

func isBadLocation(err error) bool { return strings.Contains(err.Error(), "Location header") }

// plain takes the address out of an error, whose path and query may hold a CRM's token, and what is secret out of the rest: net/http quotes answers that it
// cannot read.
func (s *sender) plain(err error) error {
	var urlErr *url.Error
	for errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	if isBadLocation(err) {
		return errors.New("the answer redirects to an address that cannot be read")
	}
	return errors.New(s.hide.Replace(err.Error()))
}
