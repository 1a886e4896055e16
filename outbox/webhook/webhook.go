// Package webhook sends deliveries as signed webhooks (Standard Webhooks v1).
//
// One attempt is one POST of an event in the endpoint's format, signed over exactly the bytes that
// are sent, with a fresh timestamp. A 2xx is a success; a 410 means that the endpoint is gone. Any
// other status is retried: a CRM under maintenance answers 404 for an hour, and one that has moved
// answers 301 until its administrator reads the log.
package webhook

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// maxKept is how many bytes of a response's body are stored for people.
const maxKept = 1 << 10

// Options configures a Sender.
type Options struct {
	UserAgent string
	// Questions is the largest number of questions in flight, in addition to the Concurrency of the
	// endpoint.
	Questions int
	// DialContext opens the connection below HTTP; nil dials TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Sender sends to one endpoint: see store.Sender. Questions have connections of their own, so that
// they do not wait for one.
type Sender struct {
	endpoint          store.Endpoint
	request           *http.Request // the template of every attempt; nil if the endpoint's URL is invalid
	signer            signer
	redact            *outbound.Redactor
	events, questions *outbound.Client
}

// New returns a sender for an endpoint with a URL.
func New(e store.Endpoint, opts Options) *Sender {
	s := &Sender{
		endpoint: e,
		request:  newRequest(&e, opts.UserAgent),
		signer:   newSigner(e.Secrets),
		redact:   redactor(&e),
	}
	client := func(connections int) *outbound.Client {
		return outbound.New(outbound.Options{
			Connections: connections,
			Timeout:     e.Timeout,
			TLS:         e.TLS,
			DialContext: opts.DialContext,
			Redact:      s.redact,
		})
	}
	s.events, s.questions = client(e.Concurrency), client(opts.Questions+1) // one more for a test
	return s
}

func redactor(e *store.Endpoint) *outbound.Redactor {
	secrets := slices.Clone(e.Tokens)
	for _, secret := range e.Secrets {
		secrets = append(secrets,
			string(secret), base64.StdEncoding.EncodeToString(secret), base64.RawStdEncoding.EncodeToString(secret))
	}
	return outbound.NewRedactor(e.URL, e.Headers, secrets...)
}

// newRequest returns the part of a request that all attempts at an endpoint share, or nil if its
// URL is invalid.
func newRequest(e *store.Endpoint, userAgent string) *http.Request {
	req, err := http.NewRequest(http.MethodPost, e.URL, nil)
	if err != nil {
		return nil
	}
	for name, values := range e.Headers {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", contentTypeOf(e.Format))
	req.Header.Set("User-Agent", userAgent)
	return req
}

// Close closes the connections that are not in use.
func (s *Sender) Close() {
	s.events.Close()
	s.questions.Close()
}

// Send makes one attempt: see store.Sender.
func (s *Sender) Send(ctx context.Context, j store.Job) store.Outcome {
	client := s.events
	if j.IsQuestion {
		client = s.questions
	}
	return s.send(ctx, j, client)
}

func (s *Sender) send(ctx context.Context, j store.Job, client *outbound.Client) store.Outcome {
	if s.request == nil {
		return store.Outcome{Verdict: store.Again, Err: errBadURL}
	}
	// The closure holds only what Sign needs: with the whole job, the job would escape to the heap.
	id, body := j.EventID, render(s.endpoint.Format, j.Event.Body)
	r := outbound.Request{
		HTTP:      s.request,
		Body:      body,
		Sign:      func(h http.Header, at time.Time) { s.signer.sign(h, id, at, body) },
		MayRedial: j.MayRedial,
	}
	if j.IsQuestion {
		r.Read = readUntilReply
	}
	answer, err := client.Do(ctx, r)
	switch {
	case err != nil && ctx.Err() != nil:
		return store.Outcome{}
	case err != nil:
		return store.Outcome{Verdict: store.Again, Err: err}
	}
	o := store.Outcome{
		Verdict:    classify(answer.Status),
		Status:     answer.Status,
		Response:   cut(s.redact.Replace(string(answer.Body)), maxKept),
		RetryAfter: answer.RetryAfter,
		Throttled:  answer.Status == http.StatusTooManyRequests && answer.RetryAfter > 0,
	}
	if j.IsQuestion && o.Verdict == store.Done {
		o.Reply = readReply(answer.Body)
	}
	return o
}

var errBadURL = &telephony.Fault{Code: telephony.CodeBadURL, Text: "the endpoint's URL cannot be read"}

// classify maps a status to its meaning, and is the only place that does.
func classify(status int) store.Verdict {
	switch {
	case status >= 200 && status <= 299:
		return store.Done
	case status == http.StatusGone:
		return store.Gone
	}
	return store.Again
}

func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return s
}

// Test sends an event of type pzbridge.test at once, past all deliveries that wait. The event is
// neither stored nor retried. Fails only with the error of ctx.
func (s *Sender) Test(ctx context.Context) (eventID string, made store.Attempt, err error) {
	began := time.Now()
	eventID = uuid.Must(uuid.NewV7()).String()
	body := fmt.Sprintf(`{"id":%q,"type":"pzbridge.test","timestamp":%q,`+
		`"data":{"text":"A test of the webhook. No call has happened.","pz":{"type":"test"}}}`,
		eventID, began.UTC().Format("2006-01-02T15:04:05.000Z"))
	o := s.send(ctx, store.Job{EventID: eventID, Event: store.Event{Body: []byte(body)}}, s.questions)
	if o.Verdict == store.CutOff {
		return "", store.Attempt{}, ctx.Err()
	}
	return eventID, o.Attempt(began, time.Since(began)), nil
}
