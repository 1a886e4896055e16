// Package megafon speaks the interface of MegaFon's virtual PBX, which many CRMs know: those of
// which the settings ask for the address of such a PBX. The bridge plays the PBX: it tells the CRM
// of calls (Sender), and takes calls from it (PBX).
//
//	call.transfer_requested  cmd=contact: whom does the client belong to?
//	call.incoming …          cmd=event with INCOMING, ACCEPTED, TRANSFERRED, OUTGOING
//	call.completed           cmd=event with COMPLETED or CANCELLED, then cmd=history
//	call.recording_ready     cmd=history again, with the link
//
// The operators publish no common description of this interface. What stands here was read from the
// code of CRMs that take it; where they differ, it is what the pickiest of them accepts.
package megafon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/crm"
	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// contactTimeout bounds a question. A caller is waiting on the line, and a CRM that is slower
// than this has no answer that is worth the wait.
const contactTimeout = 2 * time.Second

// Options configures a Sender.
type Options struct {
	Settings crm.Settings
	Notes    store.Notes
	// ServesRecordings means that the bridge has links of its own for recordings.
	ServesRecordings bool
	Strangers        *crm.Strangers // is told of extensions that nobody has; may be nil
	UserAgent        string
	// Questions is the largest number of questions in flight.
	Questions int
	// DialContext opens the connection below HTTP; nil dials TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Sender tells one CRM of calls: see store.Sender.
type Sender struct {
	endpoint          store.Endpoint
	settings          crm.Settings
	key               string // of the CRM
	clicks            crm.Clicks
	request           *http.Request // the template of every request; nil if the endpoint's URL is invalid
	redact            *outbound.Redactor
	servesRecordings  bool
	strangers         *crm.Strangers
	events, questions *outbound.Client
}

// New returns a sender for an endpoint. The endpoint's one secret is the key of the CRM.
func New(e store.Endpoint, opts Options) *Sender {
	key := string(e.Secrets[0])
	s := &Sender{
		endpoint:         e,
		settings:         opts.Settings,
		key:              key,
		clicks:           crm.Clicks{Notes: opts.Notes, Endpoint: e.Name},
		servesRecordings: opts.ServesRecordings,
		strangers:        opts.Strangers,

		request: newRequest(&e, key, opts.UserAgent),
		redact:  outbound.NewRedactor(e.URL, e.Headers, append([]string{key}, e.Tokens...)...),
	}
	client := func(connections int, timeout time.Duration) *outbound.Client {
		return outbound.New(outbound.Options{
			Connections: connections,
			Timeout:     timeout,
			TLS:         e.TLS,
			DialContext: opts.DialContext,
			Redact:      s.redact,
		})
	}
	s.events = client(e.Concurrency, e.Timeout)
	s.questions = client(opts.Questions+1, min(contactTimeout, e.Timeout)) // one more for a test
	return s
}

// newRequest returns what all requests share, or nil if the endpoint's URL is invalid. Some CRMs
// look for the key in a header, the others in the form.
func newRequest(e *store.Endpoint, key, userAgent string) *http.Request {
	req, err := http.NewRequest(http.MethodPost, e.URL, nil)
	if err != nil {
		return nil
	}
	for name, values := range e.Headers {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("X-Api-Key", key)
	return req
}

// NeedsCall makes it a store.CallSender.
func (s *Sender) NeedsCall() {}

// Close closes the connections that are not in use.
func (s *Sender) Close() {
	s.events.Close()
	s.questions.Close()
}

var errBadURL = &telephony.Fault{Code: telephony.CodeBadURL, Text: "the endpoint's URL cannot be read"}

// Send makes one attempt: see store.Sender.
func (s *Sender) Send(ctx context.Context, j store.Job) store.Outcome {
	if s.request == nil {
		return store.Outcome{Verdict: store.Again, Err: errBadURL}
	}
	e, err := crm.Read(j.Event)
	if err != nil {
		return store.Outcome{Verdict: store.Refused, Err: err}
	}
	if j.IsQuestion {
		return s.ask(ctx, &e, j.MayRedial)
	}
	if e.Type == telephony.EventTransferRequested {
		return crm.Nothing("the question where the call goes is over")
	}
	return s.tell(ctx, j, &e)
}

// patience is how long a recording waits until the CRM has got the end of its call.
const patience = 72 * time.Hour

var errNotEnded = errors.New("the CRM has not got the end of the call")

// tell tells the CRM of an event, one request in each attempt.
func (s *Sender) tell(ctx context.Context, j store.Job, e *crm.Event) store.Outcome {
	c := readCall(j.Kept)
	if !c.IsKnown {
		var err error
		if c.ID, err = s.clicks.OfCall(ctx, e, j.Event.At); err != nil {
			return store.Outcome{Verdict: store.Later, RetryAfter: time.Second, Err: err}
		}
		c.IsKnown = true
	}
	if s.strangers != nil && len(s.Unknown(ctx, []string{e.Extension})) > 0 {
		s.strangers.Met(s.endpoint.Name, e.Extension)
	}
	if c.Event != j.EventID {
		c.Event, c.Made, c.Responsible, c.InDoubt = j.EventID, 0, nil, false
	}
	if needsResponsible(&c, e, s.settings.People.Missed) {
		return s.findResponsible(ctx, c, e)
	}
	if age := time.Since(j.Event.At); e.Type == telephony.EventRecordingReady && !c.IsOver && !e.Internal &&
		e.Client != "" && age < patience { // the CRM may be away when a call ends
		return store.Outcome{Verdict: store.Later, RetryAfter: max(time.Minute, age/20), Err: errNotEnded}
	}
	p := s.plan(&c, j, e)
	if p.why != "" {
		o := crm.Nothing(p.why)
		o.Keep = p.after.encode()
		return o
	}
	r := p.requests[min(c.Made, len(p.requests)-1)]
	o, _ := s.do(ctx, s.events, r.form, j.MayRedial)
	o.Steps = []store.Step{{What: r.what, Status: o.Status, Response: o.Response}}
	isLast := c.Made+1 >= len(p.requests)
	switch {
	case o.Verdict == store.Done && isLast:
		o.Keep = p.after.encode()
	case o.Verdict == store.Done, o.Verdict == store.Refused && !isLast: // a card less: the call counts
		c.Made++
		o.Verdict, o.Err, o.Keep = store.More, nil, c.encode()
	case o.Verdict == store.Again:
		c.InDoubt = true
		o.Keep = c.encode()
	}
	return o
}

// Unknown returns those of some extensions that have no name in the configuration, if any has: the
// CRM gets the extension itself as the name then.
func (s *Sender) Unknown(_ context.Context, extensions []string) (list []string) {
	users := s.settings.People.Users
	for _, extension := range extensions {
		if len(users) > 0 && extension != "" && users[extension] == "" {
			list = append(list, extension)
		}
	}
	return list
}

// do makes a request, and reads from the response what it means. Body is that of the response.
func (s *Sender) do(
	ctx context.Context, c *outbound.Client, form url.Values, mayRedial func() bool,
) (o store.Outcome, body []byte) {
	form.Set("crm_token", s.key)
	answer, err := c.Do(ctx, outbound.Request{HTTP: s.request, Body: []byte(form.Encode()), MayRedial: mayRedial})
	switch {
	case err != nil && ctx.Err() != nil:
		return store.Outcome{}, nil
	case err != nil:
		return store.Outcome{Verdict: store.Again, Err: err}, nil
	}
	o = store.Outcome{
		Status:     answer.Status,
		Response:   crm.Cut(s.redact.Replace(string(answer.Body))),
		RetryAfter: answer.RetryAfter,
	}
	o.Verdict, o.Err = meaning(answer, s.redact.Replace)
	if o.Verdict == store.Pause && o.RetryAfter == 0 {
		o.RetryAfter = pauseForTooMany
	}
	return o, answer.Body
}

// testClient is a number that nobody has, for a question without a call.
const testClient = "70000000000"

// Test asks the CRM who a number belongs to that nobody has: that changes nothing there, and shows
// whether it is reached and takes the key. Fails only with the error of ctx.
func (s *Sender) Test(ctx context.Context) (eventID string, made store.Attempt, err error) {
	began := time.Now()
	eventID = uuid.Must(uuid.NewV7()).String()
	if s.request == nil {
		return eventID, store.Outcome{Verdict: store.Again, Err: errBadURL}.Attempt(began, 0), nil
	}
	o, _ := s.do(ctx, s.questions, s.contact(testClient, eventID, ""), nil)
	if o.Verdict == store.CutOff {
		return "", store.Attempt{}, ctx.Err()
	}
	o.Steps = []store.Step{{What: "contact " + testClient, Status: o.Status, Response: o.Response}}
	return eventID, o.Attempt(began, time.Since(began)), nil
}

// Check is that of a crm.Checker: whether the CRM takes the key, and what it can do with these
// settings.
func (s *Sender) Check(ctx context.Context) []crm.Finding {
	_, made, err := s.Test(ctx)
	switch {
	case err != nil:
		return []crm.Finding{{Err: err}}
	case made.Status == 0:
		return []crm.Finding{{
			Text: "no answer to a request: check its URL, its certificate and the proxy between",
			Err:  made.Failure(),
		}}
	case made.Error != "" || made.Status < 200 || made.Status > 299:
		return []crm.Finding{{Text: "it was asked who a number belongs to", Err: made.Failure()}}
	}
	list := []crm.Finding{{Text: fmt.Sprintf("it takes the key, and answers whom a number belongs to, in %d ms",
		made.Took.Milliseconds())}}
	people := &s.settings.People
	if people.Default == "" && len(people.DefaultByLine) == 0 {
		list = append(list, crm.Warning("calls that are nobody's, such as missed ones of a group, are entered for "+
			"the user pbx: set its DEFAULT_USER"))
	}
	if len(s.endpoint.Tokens) == 0 {
		return append(list, crm.Warning("nobody can call from this CRM: for that set its TOKEN, and give it to the "+
			"CRM as the key of the PBX, with the address of this bridge's API and "+Path))
	}
	return append(list, crm.Finding{Text: fmt.Sprintf("it may have employees call: the address of the PBX in its "+
		"settings is that of this bridge's API and %s, and the key its TOKEN; %d of its users have a name in USERS",
		Path, len(people.Users))})
}

// Forget makes it a store.Forgetter: it removes the clicks on a number.
func (s *Sender) Forget(ctx context.Context, key string) error { return s.clicks.Forget(ctx, key) }

// LastClick is that of a crm.Checker.
func (s *Sender) LastClick(ctx context.Context) (crm.LastClick, error) { return s.clicks.Last(ctx) }

// Try is that of a crm.Checker: the call has just ended.
func (s *Sender) Try(ctx context.Context, number string) (callID string, err error) {
	if s.request == nil {
		return "", errBadURL
	}
	client, err := s.settings.People.ClientToTry(number)
	if err != nil {
		return "", err
	}
	e := crm.Event{
		Type:      telephony.EventCompleted,
		CallID:    uuid.Must(uuid.NewV7()).String(),
		Client:    client,
		Direction: telephony.Incoming,
	}
	p := s.plan(&call{}, store.Job{Event: store.Event{At: time.Now()}}, &e)
	for _, r := range p.requests {
		switch o, _ := s.do(ctx, s.events, r.form, nil); o.Verdict {
		case store.Done:
		case store.CutOff:
			return "", ctx.Err()
		default:
			return "", o.Failure()
		}
	}
	return e.CallID, nil
}

// contact is the question to whom a client belongs.
func (s *Sender) contact(client, callID, line string) url.Values {
	return url.Values{
		"cmd":       {"contact"},
		"phone":     {plain(client)},
		"callid":    {callID},
		"diversion": {s.line(line)},
	}
}

// line is the company's own number as the interface has it.
func (s *Sender) line(line string) string {
	own := s.settings.People.Plan.Client(line)
	if own == "" { // none, or the name of a trunk
		own = s.settings.People.Plan.Client(s.settings.DefaultLine)
	}
	return plain(own)
}

// login is the user of the interface: some CRMs take what stands before the @, and nothing where
// there is none.
func (s *Sender) login(p crm.Person) string {
	if strings.Contains(p.Name, "@") {
		return p.Name
	}
	return p.Name + "@" + s.settings.Domain
}
