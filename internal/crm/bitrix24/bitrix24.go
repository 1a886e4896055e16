// Package bitrix24 tells a portal of Bitrix24 of calls over its REST interface, with the address of
// an inbound webhook, or with the tokens of a local application.
//
//	call.transfer_requested  searchCrmEntities: whom does the client belong to?
//	call.incoming, .outgoing register, and show for each later telephone
//	call.incoming_answered   hide for all others
//	call.completed           finish, and register before if the portal does not know the call
//	call.recording_ready     attachRecord
//	sms.sent                 crm.timeline.comment.add
//
// All but the last are methods of telephony.externalCall.
//
// Each call is registered once, with our ID of it: while it goes on, the portal answers a register
// that is the same with the same call. One that is over the portal knows in its statistics.
package bitrix24

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/crm"
	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// searchTimeout bounds a question: a caller is waiting on the line.
const searchTimeout = 2 * time.Second

// maxList bounds a response in bytes: a page of 50 users may be larger than 64 KiB.
const maxList = 2 << 20

// maxClicking bounds the clicks of a portal that are under way.
const maxClicking = 64

// Options configures a Sender.
type Options struct {
	Settings crm.Settings
	Notes    store.Notes
	Portals  *Portals // shared by all senders of the process
	// Recordings are attached to the calls at the portal; nil if the bridge fetches none.
	Recordings crm.Recordings
	Strangers  *crm.Strangers // is told of extensions that nobody has; may be nil
	UserAgent  string
	// Questions is the largest number of questions in flight.
	Questions int
	// HookURL is where the portal reaches the hook of the endpoint; "" if it reaches the bridge
	// nowhere. It is for an application, which has the portal send clicks there.
	HookURL string
	// DialContext opens the connection below HTTP; nil dials TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Sender tells one portal of calls: see store.Sender.
type Sender struct {
	endpoint          store.Endpoint
	settings          crm.Settings
	base              *url.URL     // of the REST interface
	app               *application // nil: the address is that of an inbound webhook
	owner             int          // the user whose webhook it is
	hookURL           string
	userAgent         string
	bucket            *bucket
	clicks            crm.Clicks
	users             users
	redact            *outbound.Redactor
	recordings        crm.Recordings
	strangers         *crm.Strangers
	uploading         chan struct{} // holds one while a recording is uploaded
	clicking          chan struct{} // holds one for each click under way
	events, questions *outbound.Client
	uploads           *outbound.Client
}

// New returns a sender for an endpoint, of which the URL is that of an inbound webhook, or that of
// a portal which has a local application.
func New(e store.Endpoint, opts Options) *Sender {
	base, owner := parseAddress(e.URL, opts.Settings.Application.ID != "")
	secrets := slices.Clone(e.Tokens)
	for _, secret := range e.Secrets {
		secrets = append(secrets, string(secret))
	}
	s := &Sender{
		endpoint:  e,
		settings:  opts.Settings,
		base:      base,
		owner:     owner,
		hookURL:   opts.HookURL,
		userAgent: opts.UserAgent,
		bucket:    opts.Portals.bucketOf(base.Host),
		users:     newUsers(),
		clicks:    crm.Clicks{Notes: opts.Notes, Endpoint: e.Name},

		recordings: opts.Recordings,
		strangers:  opts.Strangers,
		uploading:  make(chan struct{}, 1),
		clicking:   make(chan struct{}, maxClicking),
		redact:     outbound.NewRedactor(e.URL, e.Headers, secrets...),
	}
	client := func(connections int, timeout time.Duration) *outbound.Client {
		return outbound.New(outbound.Options{
			Connections: connections,
			Timeout:     timeout,
			TLS:         e.TLS,
			DialContext: opts.DialContext,
			Redact:      s.redact,
			MaxBody:     maxList,
		})
	}
	s.events = client(e.Concurrency, e.Timeout)
	s.questions = client(opts.Questions+1, min(searchTimeout, e.Timeout)) // one more for a test
	s.uploads = client(1, uploadTime)
	if e.Concurrency < 2 {
		s.uploads = client(1, shortUpload)
	}
	if with := opts.Settings.Application; with.ID != "" {
		s.app = &application{
			Application: with,
			host:        base.Host,
			endpoint:    e.Name,
			notes:       opts.Notes,
			own:         rand.Text(),
			renewing:    make(chan struct{}, 1),
			client: func(secrets ...string) *outbound.Client {
				return outbound.New(outbound.Options{
					Connections: 1,
					Timeout:     exchangeTime,
					DialContext: opts.DialContext,
					Redact:      outbound.NewRedactor("", nil, secrets...),
				})
			},
		}
	}
	return s
}

// parseAddress returns the base of the REST interface, and the user whose webhook it is: the
// address is /rest/<user ID>/<code>/. For an application it is that of the portal, with or without
// /rest/. An address that cannot be read has no host.
func parseAddress(address string, isApplication bool) (base *url.URL, owner int) {
	u, err := url.Parse(address)
	if err != nil {
		return &url.URL{}, 0
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	if isApplication {
		u.Path = strings.TrimSuffix(u.Path, "/rest") + "/rest"
		return u, 0
	}
	parts := strings.Split(u.Path, "/")
	if i := slices.Index(parts, "rest"); i >= 0 && i+1 < len(parts) {
		owner, _ = strconv.Atoi(parts[i+1])
	}
	return u, owner
}

// NeedsCall makes it a store.CallSender.
func (s *Sender) NeedsCall() {}

// Close closes the connections that are not in use. An exchange of tokens ends before: what it
// brings must be stored.
func (s *Sender) Close() {
	if s.app != nil {
		s.app.close()
	}
	s.events.Close()
	s.questions.Close()
	s.uploads.Close()
}

// Send makes one attempt: see store.Sender.
func (s *Sender) Send(ctx context.Context, j store.Job) store.Outcome {
	e, err := crm.Read(j.Event)
	if err != nil {
		return store.Outcome{Verdict: store.Refused, Err: err}
	}
	if j.IsQuestion {
		return s.ask(ctx, &e, j.MayRedial)
	}
	switch e.Type {
	case telephony.EventTransferRequested:
		return crm.Nothing("the question where the call goes is over")
	case telephony.EventSMSSent:
		return s.comment(ctx, j, &e)
	case telephony.EventSMSStatus:
		return crm.Nothing("an SMS is entered when it is sent")
	}
	return s.tell(ctx, j, &e)
}

// entity is a client whom the portal knows.
type entity struct {
	Kind       text `json:"CRM_ENTITY_TYPE"`
	ID         text `json:"CRM_ENTITY_ID"`
	AssignedBy struct {
		Extension text `json:"USER_PHONE_INNER"`
	} `json:"ASSIGNED_BY"`
	AssignedByID text `json:"ASSIGNED_BY_ID"`
}

// text is a value that the portal gives as a text, as a number, or as false or null for none.
type text string

// UnmarshalJSON takes any of them.
func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	switch {
	case json.Unmarshal(b, &s) == nil:
		*t = text(strings.TrimSpace(s))
	case len(b) > 0 && (b[0] == '-' || b[0] >= '0' && b[0] <= '9'):
		*t = text(b)
	}
	return nil
}

// searchEntities is the method that looks for a client.
const searchEntities = "telephony.externalCall.searchCrmEntities"

// search looks for a client by number; the portal gives contacts first, then leads and companies.
func (s *Sender) search(ctx context.Context, client string, isQuestion bool, mayRedial func() bool) ([]entity, answer) {
	a := s.do(ctx, searchEntities,
		map[string]any{"PHONE_NUMBER": client}, isQuestion, mayRedial)
	if a.Verdict != store.Done {
		return nil, a
	}
	return elements[entity](a.result), a
}

// elements reads those of a list that can be read: one that cannot must not cost the others.
func elements[T any](list json.RawMessage) (read []T) {
	var raw []json.RawMessage
	_ = json.Unmarshal(list, &raw) // what is no list has none
	for _, one := range raw {
		var element T
		if json.Unmarshal(one, &element) == nil {
			read = append(read, element)
		}
	}
	return read
}

// ask asks the portal whom the client belongs to. No answer, or one that names nobody with an
// extension, declines the call.
func (s *Sender) ask(ctx context.Context, e *crm.Event, mayRedial func() bool) store.Outcome {
	if e.Client == "" {
		o := crm.Nothing("the caller hides the number")
		o.Reply = &store.RouteReply{}
		return o
	}
	list, a := s.search(ctx, e.Client, true, mayRedial)
	if a.Verdict == store.CutOff {
		return a.Outcome
	}
	a.Reply = &store.RouteReply{}
	for _, found := range list {
		if a.Reply.To = s.telephoneOf(&found); a.Reply.To != "" {
			break
		}
	}
	return a.Outcome
}

// telephoneOf returns the extension of who is responsible for a client: that of the configuration,
// or of the portal. It is "" if there is none. It makes no request.
func (s *Sender) telephoneOf(found *entity) string {
	id := string(found.AssignedByID)
	for _, extension := range s.settings.People.Extensions() {
		name := s.settings.People.Users[extension]
		isNamed := slices.ContainsFunc(s.users.known(), func(u User) bool {
			return strconv.Itoa(u.ID) == id && strings.EqualFold(u.Email, name)
		})
		if name == id || isNamed {
			return extension
		}
	}
	return s.extension(string(found.AssignedBy.Extension))
}

// extension returns what stands in a user's field if it is an extension, else "": people write
// other numbers there too.
func (s *Sender) extension(field string) string {
	if field = strings.TrimSpace(field); !s.settings.People.Plan.IsInternal(field) {
		return ""
	}
	return field
}

var errBusy = &telephony.Fault{
	Code: telephony.CodePortalBusy, Text: "the portal takes two requests a second, and others wait for it",
}

// errSilent means that a question was not answered in time.
var errSilent = &telephony.Fault{
	Code: telephony.CodeNoResponse, Args: []string{searchTimeout.String()},
	Text: "no answer within " + searchTimeout.String(),
}

// testClient is a number that nobody has.
const testClient = "+70000000000"

// Test asks the portal whom a number belongs to that nobody has: that changes nothing there, and
// shows whether it is reached and knows the webhook. Fails only with the error of ctx.
func (s *Sender) Test(ctx context.Context) (eventID string, made store.Attempt, err error) {
	began := time.Now()
	eventID = uuid.Must(uuid.NewV7()).String()
	_, a := s.search(ctx, testClient, true, nil)
	if a.Verdict == store.CutOff {
		return "", store.Attempt{}, ctx.Err()
	}
	return eventID, a.Attempt(began, time.Since(began)), nil
}
