package bitrix24

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// A portal counts the requests of one address in a bucket, and answers 503 while it is full: 50 of
// them may come at once, and two a second drain. Several programs behind one address share it, so
// a bridge takes less at once.
const (
	perSecond = 2
	atOnce    = 10
	// forQuestions is what events leave in the bucket for a question: a caller waits on the line.
	forQuestions = 1
)

// Portals are the portals that a process talks to. Endpoints with one portal share its limit.
type Portals struct {
	mu     sync.Mutex
	byHost map[string]*bucket
}

// NewPortals returns an empty list.
func NewPortals() *Portals { return &Portals{byHost: map[string]*bucket{}} }

func (p *Portals) bucketOf(host string) *bucket {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.byHost[host]
	if b == nil {
		b = &bucket{left: atOnce, at: time.Now()}
		p.byHost[host] = b
	}
	return b
}

// bucket is how many requests may be made at once.
type bucket struct {
	mu   sync.Mutex
	left float64
	at   time.Time
}

// take takes one request, if so many are left then, and returns 0; else how long to wait.
func (b *bucket) take(now time.Time, leave float64) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(atOnce, b.left+perSecond*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	if missing := 1 + leave - b.left; missing > 0 {
		return time.Duration(missing / perSecond * float64(time.Second))
	}
	b.left--
	return 0
}

// empty notes that the portal has refused a request: others use it too.
func (b *bucket) empty(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left, b.at = 0, now
}

// wait takes one request as soon as it may be made. It fails with the error of ctx.
func (b *bucket) wait(ctx context.Context, leave float64) error {
	for {
		wait := b.take(time.Now(), leave)
		if wait == 0 {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// answer is the response to a request: the outcome as far as it is one, and the result.
type answer struct {
	store.Outcome
	result json.RawMessage
	code   string    // of an error
	text   string    // of an error
	next   int       // where the next page of a list begins; 0: nowhere
	at     time.Time // by the portal's clock, or else by ours

	isUnreadable bool // the body is no JSON, or was cut off
}

// notFound is how the portal says that it does not know a call, or not any more. The text is cut
// before a bracket that the portal does not close.
const notFound = "Call is not found"

// isUnknownCall reports whether the portal does not know the call of the request.
func (a *answer) isUnknownCall() bool {
	return a.Status == http.StatusBadRequest && strings.HasPrefix(a.text, notFound)
}

// request is one that a method gets.
type request struct {
	method     string
	params     map[string]any
	isQuestion bool // a caller waits for the answer
	mayRedial  func() bool
}

// do makes a request. Its outcome is Done for a success. An application whose token has expired
// gets a new one, and makes the request once more.
func (s *Sender) do(
	ctx context.Context, method string, params map[string]any, isQuestion bool, mayRedial func() bool,
) answer {
	limited := ctx
	if isQuestion { // the time counts from here
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, searchTimeout)
		defer cancel()
	}
	a := s.authorized(limited, request{method, params, isQuestion, mayRedial})
	switch isOver := limited.Err() != nil; {
	case isOver && ctx.Err() != nil && (a.Verdict == store.CutOff || errors.Is(a.Err, errBusy)):
		return answer{}
	case isOver && a.Verdict == store.CutOff:
		return answer{Outcome: store.Outcome{Verdict: store.Again, Err: errSilent}}
	}
	return a
}

// reads are the methods of which the result counts: without it nothing is known, and there is not
// nothing.
var reads = []string{
	searchEntities, "voximplant.statistic.get", "user.get", "profile", "event.get", "event.offline.get",
}

// expiredToken is the error of a request whose token is too old.
const expiredToken = "expired_token"

// authorized makes a request with what the portal knows the bridge by.
func (s *Sender) authorized(ctx context.Context, r request) answer {
	if s.app == nil {
		return s.once(ctx, r, "")
	}
	t, _, o := s.app.read(ctx)
	if o.Verdict != store.Done {
		return answer{Outcome: o}
	}
	a := s.once(ctx, r, t.Access)
	if a.code != expiredToken {
		return a
	}
	steps := a.Steps
	if t, o = s.app.renew(ctx, t.Access); o.Verdict != store.Done {
		a = answer{Outcome: o}
	} else {
		a = s.once(ctx, r, t.Access)
	}
	a.Steps = append(steps, a.Steps...)
	return a
}

// once makes a request, with the token of an application if there is one.
func (s *Sender) once(ctx context.Context, r request, token string) answer {
	params := r.params
	if token != "" {
		params = maps.Clone(params)
		params["auth"] = token
	}
	body, err := json.Marshal(params)
	if err != nil {
		return answer{Outcome: store.Outcome{Verdict: store.Refused, Err: err}}
	}
	client, leave := s.events, float64(forQuestions)
	if r.isQuestion {
		client, leave = s.questions, 0
	}
	if s.bucket.wait(ctx, leave) != nil {
		return answer{Outcome: store.Outcome{Verdict: store.Later, RetryAfter: time.Second, Err: errBusy}}
	}
	request, err := s.request(r.method)
	if err != nil {
		return answer{Outcome: store.Outcome{Verdict: store.Again, Err: errBadURL}}
	}
	got, err := client.Do(ctx, outbound.Request{
		HTTP:      request,
		Body:      body,
		MayRedial: r.mayRedial,
		Redact:    outbound.NewRedactor("", nil, token),
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return answer{}
	case err != nil:
		return answer{Outcome: store.Outcome{Verdict: store.Again, Err: err}}
	}
	a := s.read(got, token)
	if a.Verdict == store.Done && a.isUnreadable && slices.Contains(reads, r.method) {
		a.Verdict, a.Err = store.Again, errNoResult
	}
	a.Steps = []store.Step{{What: r.method, Status: a.Status, Response: a.Response}}
	if a.code == "QUERY_LIMIT_EXCEEDED" {
		s.bucket.empty(time.Now())
	}
	return a
}

// read reads a response to a request with a token of an application, "" if it had none.
func (s *Sender) read(got outbound.Answer, token string) answer {
	var envelope struct {
		Result json.RawMessage `json:"result"`
		Error  any             `json:"error"`
		Text   string          `json:"error_description"`
		Next   int             `json:"next"`
		Time   struct {
			ResetAt int64 `json:"operating_reset_at"`
			Started text  `json:"date_start"`
		} `json:"time"`
	}
	err := json.Unmarshal(got.Body, &envelope) // a page of a proxy is none: then the status says all
	var syntax *json.SyntaxError
	code, _ := envelope.Error.(string)
	redact := func(text string) string {
		return outbound.NewRedactor("", nil, token).Replace(s.redact.Replace(text))
	}
	a := answer{
		Outcome: store.Outcome{
			Status:     got.Status,
			Response:   crm.Cut(redact(string(got.Body))),
			RetryAfter: got.RetryAfter,
		},
		result: envelope.Result,
		code:   code,
		text:   telephony.BriefText(redact(envelope.Text)),
		next:   envelope.Next,

		isUnreadable: errors.As(err, &syntax),
	}
	if a.at, err = time.Parse(time.RFC3339, string(envelope.Time.Started)); err != nil {
		a.at = time.Now()
	}
	a.Verdict, a.Err = s.meaning(got.Status, code, a.text)
	if a.Verdict == store.Pause && a.RetryAfter == 0 {
		a.RetryAfter = pauseFor(code, time.Unix(envelope.Time.ResetAt, 0))
	}
	return a
}

// pauseFor is how long to leave the portal alone that gives no time of its own.
func pauseFor(code string, resetAt time.Time) time.Duration {
	const (
		afterLimit = time.Second
		// operating is the period over which the portal counts the processing time of a method.
		operating = 10 * time.Minute
	)
	if code != "OPERATION_TIME_LIMIT" {
		return afterLimit
	}
	if wait := time.Until(resetAt); wait > 0 && wait < operating {
		return wait
	}
	return operating
}

// meaning is what a response means: see the table of errors in the documentation of the portal's
// REST interface. A method's own validation has an empty code, or ERROR_CORE, with status 400.
func (s *Sender) meaning(status int, code, text string) (store.Verdict, error) {
	switch {
	case status >= 200 && status <= 299:
		return store.Done, nil
	case code == expiredToken && s.app != nil: // that it has just given
		return store.Again, nil
	case status == http.StatusTooManyRequests, code == "QUERY_LIMIT_EXCEEDED":
		return store.Pause, nil
	case code == "insufficient_scope":
		return store.Misconfigured, fault(telephony.CodePortalScope, "it has too few rights", text)
	case code == "WRONG_AUTH_TYPE":
		return store.Misconfigured, fault(telephony.CodePortalAppOnly, "the portal lets no webhook tell of calls", text)
	case code == "ACCESS_DENIED":
		return store.Misconfigured, fault(telephony.CodePortalPlan, "the portal denies the request", text)
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusNotFound,
		code == "INVALID_REQUEST":
		if s.app != nil {
			return store.Misconfigured,
				fault(telephony.CodePortalInstall, "the portal does not know the application", text)
		}
		return store.Misconfigured, fault(telephony.CodePortalWebhook, "the portal does not know the webhook", text)
	case status == http.StatusBadRequest:
		if text == "" {
			return store.Refused, nil
		}
		return store.Refused, &telephony.Fault{
			Code: telephony.CodeCRMSays, Args: []string{text}, Text: "the CRM says «" + text + "»",
		}
	}
	return store.Again, nil
}

func fault(code telephony.Code, meaning, said string) error {
	f := &telephony.Fault{Code: code, Text: meaning}
	if said == "" {
		return f
	}
	return f.With(": it says «"+said+"»", said)
}

var (
	errBadURL = &telephony.Fault{Code: telephony.CodeBadURL, Text: "the endpoint's URL cannot be read"}
	errNoID   = errors.New("the portal's answer has no ID of the call")
	// errNoResult is of an answer that is no JSON, or was cut off.
	errNoResult = errors.New("the portal's answer cannot be read")
)

// request returns a request of a method, without a body.
func (s *Sender) request(method string) (*http.Request, error) {
	address := *s.base
	address.Path += "/" + method + ".json"
	req, err := http.NewRequest(http.MethodPost, address.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("the request of %s: %w", method, err)
	}
	for name, values := range s.endpoint.Headers {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", s.userAgent)
	return req, nil
}
