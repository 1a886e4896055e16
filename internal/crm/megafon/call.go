package megafon

import (
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// call is what the sender keeps for a call.
type call struct {
	ID       string   `json:"id,omitempty"`       // under which the CRM knows it, if that is not our own
	IsKnown  bool     `json:"known,omitempty"`    // whether ID was looked for
	Rang     []string `json:"rang,omitempty"`     // the keys of those who the CRM was told ring, the last one last
	Answered string   `json:"answered,omitempty"` // the key of who has picked up
	IsOver   bool     `json:"over,omitempty"`     // its end was told
	Talked   bool     `json:"talked,omitempty"`   // as answered
	Owner    string   `json:"owner,omitempty"`    // the key of who has it in the history
	// What was told in the history beside the owner.
	Status  string `json:"status,omitempty"`
	Start   string `json:"start,omitempty"`
	Seconds int    `json:"seconds,omitempty"`

	// Of the event that is being told: how many of its requests are made, and the key of who is
	// responsible for the client, "" for nobody; nil if that was not asked.
	Event       string  `json:"event,omitempty"`
	Made        int     `json:"made,omitempty"`
	Responsible *string `json:"responsible,omitempty"`
	// InDoubt means that a request was not answered: the CRM may have taken it.
	InDoubt bool `json:"in_doubt,omitempty"`
}

// maxRang bounds how many are kept of a call. The cards of a larger group stay open.
const maxRang = 32

// maxKey bounds a key in bytes.
const maxKey = 64

// key is what is kept of an employee: the extension, or the name of one who has none.
func key(p crm.Person) string {
	if p.Extension != "" {
		return p.Extension
	}
	return p.Name[:min(len(p.Name), maxKey)]
}

// who is the employee with a key.
func (s *Sender) who(key string) crm.Person {
	if p, known := s.settings.People.Named(key); known {
		return p
	}
	return crm.Person{Name: key}
}

// readCall reads what was kept. What cannot be read is as if nothing had been told: each request
// may be made twice.
func readCall(kept []byte) (c call) {
	if json.Unmarshal(kept, &c) != nil {
		return call{}
	}
	return c
}

func (c *call) encode() []byte {
	b, _ := json.Marshal(c) // of texts and numbers alone
	return b
}

// needsResponsible reports whether the CRM is to be asked whose a call is that nobody answered.
func needsResponsible(c *call, e *crm.Event, policy crm.Missed) bool {
	return policy == crm.MissedResponsible && c.Responsible == nil && c.Made == 0 && !c.IsOver &&
		e.Type == telephony.EventCompleted && e.Direction != telephony.Outgoing &&
		!e.Internal && e.Client != "" && c.Answered == "" && !e.IsAnswered()
}

// findResponsible asks the CRM whose a call is that nobody answered. Whatever goes wrong names
// nobody: then it is another's.
func (s *Sender) findResponsible(ctx context.Context, c call, e *crm.Event) store.Outcome {
	o, answer := s.do(ctx, s.questions, s.contact(e.Client, c.callID(e), e.Line), nil)
	if o.Verdict == store.CutOff || o.Verdict == store.Misconfigured || o.Verdict == store.Pause {
		return o
	}
	step := store.Step{What: "contact", Status: o.Status, Response: o.Response}
	owner := ""
	if o.Verdict == store.Done {
		person, _ := s.responsible(answer)
		owner = key(person)
	}
	step.Remark(crm.Responsible(owner))
	c.Responsible = &owner
	return store.Outcome{
		Verdict: store.More, Status: o.Status, Response: o.Response, Keep: c.encode(), Steps: []store.Step{step},
	}
}

// callID is the name of a call at the CRM.
func (c *call) callID(e *crm.Event) string {
	if c.ID != "" {
		return c.ID
	}
	return e.CallID
}

// request is one request of an event.
type request struct {
	what string // for people
	form url.Values
}

// plan is what is to be sent of an event: requests, one after the other, or nothing, and why. After
// is what is kept once it is done.
type plan struct {
	requests []request
	why      string
	after    call
}

// plan says what is to be sent of an event. As long as the event is being told it says the same.
func (s *Sender) plan(c *call, j store.Job, e *crm.Event) plan {
	t := &telling{Sender: s, before: c, event: e, read: j.Event.At}
	t.after = *c
	t.after.Rang = slices.Clone(c.Rang)
	t.after.Event, t.after.Made, t.after.Responsible, t.after.InDoubt = "", 0, nil, false
	isOver := slices.ContainsFunc(j.Later, func(l store.Event) bool { return l.Type == telephony.EventCompleted })
	switch {
	case e.Internal:
		t.why = "no client takes part in the call"
	case e.Client == "":
		t.why = "the client hides the number, and this CRM takes no call without one"
	case e.Type == telephony.EventCompleted:
		t.completed()
	case e.Type == telephony.EventRecordingReady:
		t.recorded()
	case e.Replayed:
		t.why = "the call is over already"
	case isOver && !c.IsOver:
		t.why = "the call is over already, and its end is sent next" // which tells all
		t.note()
	case c.IsOver:
		t.why = "the end of the call was sent already"
	default:
		t.under()
	}
	return t.plan
}

// telling is a plan under way.
type telling struct {
	*Sender
	plan
	before *call
	event  *crm.Event
	read   time.Time // when the event was read
}

// under plans an event of a call that goes on.
func (t *telling) under() {
	p := t.employee()
	if p == (crm.Person{}) {
		t.why = "it is not known who of the company takes part"
		return
	}
	switch t.event.Type {
	case telephony.EventIncoming:
		if key(p) == t.before.Answered {
			t.why = "this employee has picked up already"
			return
		}
		t.tell("INCOMING", p)
	case telephony.EventOutgoing:
		t.tell("OUTGOING", p)
	case telephony.EventIncomingAnswered, telephony.EventOutgoingAnswered:
		t.accepted(p)
	default:
		t.why = "this CRM is not told of such events"
		return
	}
	t.note()
}

// note keeps what an event says of its call.
func (t *telling) note() {
	p := t.employee()
	if p == (crm.Person{}) {
		return
	}
	switch t.event.Type {
	case telephony.EventIncoming, telephony.EventOutgoing:
		if t.why == "" || t.before.InDoubt {
			t.rings(p)
		}
	case telephony.EventIncomingAnswered, telephony.EventOutgoingAnswered:
		t.after.Answered = key(p)
	}
}

// rings keeps that the CRM was told that a telephone rings.
func (t *telling) rings(p crm.Person) {
	t.after.Rang = slices.DeleteFunc(t.after.Rang, func(x string) bool { return x == key(p) })
	if len(t.after.Rang) < maxRang {
		t.after.Rang = append(t.after.Rang, key(p))
	}
}

// employee is who takes part in the event: the default user where that is a group, a line or a
// mobile telephone. It is the zero value if there is none.
func (t *telling) employee() crm.Person {
	if t.event.Extension != "" {
		return t.settings.People.Of(t.event.Extension)
	}
	p, _ := t.settings.People.DefaultFor(t.event.Line)
	return p
}

// accepted plans that somebody has picked up. The cards of the others are closed first: a CRM that
// finds a call by its ID alone would take a CANCELLED behind ACCEPTED for the end of the call. A
// call that the CRM has not heard of begins first.
func (t *telling) accepted(p crm.Person) {
	if len(t.before.Rang) == 0 {
		t.tell(t.ringing(), p)
	}
	t.closeOthers(p)
	t.tell("ACCEPTED", p)
	t.after.Rang = []string{key(p)}
}

// closeOthers closes the cards of all but one. Who had picked up before has transferred the call.
func (t *telling) closeOthers(but crm.Person) {
	for _, other := range t.before.Rang {
		switch other {
		case key(but):
		case t.before.Answered:
			t.tell("TRANSFERRED", t.who(other))
		default:
			t.tell("CANCELLED", t.who(other))
		}
	}
}

// ringing is the event with which a call begins.
func (t *telling) ringing() string {
	if t.direction() == "out" {
		return "OUTGOING"
	}
	return "INCOMING"
}

func (t *telling) direction() string {
	switch {
	case t.event.Direction == telephony.Outgoing,
		t.event.Type == telephony.EventOutgoing, t.event.Type == telephony.EventOutgoingAnswered:
		return "out"
	}
	return "in"
}

// completed plans the end of a call: its cards are closed, and then it is entered in the history.
// Nothing rings for a call that the exchange sends again after a while: it is entered alone.
func (t *telling) completed() {
	answered := t.event.IsAnswered() || t.before.Answered != ""
	if t.before.IsOver && (t.before.Talked || t.event.Duration == 0) {
		t.why = "the end of the call was sent already"
		return
	}
	p := t.owner(answered)
	if !t.event.Replayed && !t.before.IsOver {
		t.closeCards(p, answered)
	}
	t.history(p, answered)
	t.after.IsOver, t.after.Talked, t.after.Rang, t.after.Owner = true, t.event.Duration > 0, nil, key(p)
	last := t.requests[len(t.requests)-1].form
	t.after.Status, t.after.Start, t.after.Seconds = last.Get("status"), last.Get("start"), t.seconds()
}

func (t *telling) seconds() int { return int(t.event.Duration.Seconds()) }

// recorded plans to enter a call in the history again, with its recording. All else is as it was
// told.
func (t *telling) recorded() {
	switch {
	case t.event.Recording == "":
		t.why = "the bridge has no public address"
	case t.seconds() != t.before.Seconds:
		t.why = "the recording is of another part of the call"
	default:
		t.history(t.who(t.before.Owner), false)
		form := t.requests[len(t.requests)-1].form
		form.Set("status", t.before.Status)
		form.Set("start", t.before.Start)
		t.requests[len(t.requests)-1].what = "history " + t.before.Status + " with the recording"
	}
}

// closeCards plans the events at the end of a call. A call that the CRM has not heard of begins
// first.
func (t *telling) closeCards(owner crm.Person, answered bool) {
	isUnknown := len(t.before.Rang) == 0
	if isUnknown && t.before.Made == 0 && time.Since(t.read) > t.endpoint.RingingTTL {
		return // nothing rings for a call that is long over
	}
	if isUnknown {
		t.tell(t.ringing(), owner)
	}
	switch {
	case answered:
		t.closeOthers(owner)
		t.tell("COMPLETED", owner)
	case isUnknown:
		t.tell("CANCELLED", owner)
	default: // at all that rang: the owner need not be one of them
		t.closeOthers(crm.Person{})
	}
}

// owner is the employee to whom a call belongs that is over.
func (t *telling) owner(answered bool) crm.Person {
	people := &t.settings.People
	var candidates []string
	switch {
	case answered:
		candidates = []string{t.before.Answered, t.event.Extension}
	case t.direction() == "out":
		candidates = []string{t.event.Extension}
	case people.Missed == crm.MissedResponsible:
		if t.before.Responsible != nil {
			candidates = append(candidates, *t.before.Responsible)
		}
		candidates = append(candidates, t.lastToRing())
	case people.Missed == crm.MissedLast:
		candidates = append(candidates, t.lastToRing())
	}
	for _, candidate := range candidates {
		if candidate != "" {
			return t.who(candidate)
		}
	}
	if p, known := people.DefaultFor(t.event.Line); known {
		return p
	}
	if last := t.lastToRing(); last != "" {
		return t.who(last)
	}
	return crm.Person{Name: "pbx"} // as the operators' exchanges have it
}

func (t *telling) lastToRing() string {
	if n := len(t.before.Rang); n > 0 {
		return t.before.Rang[n-1]
	}
	return t.event.Extension
}

// tell plans a cmd=event.
func (t *telling) tell(kind string, p crm.Person) {
	form := t.form("event", p)
	form.Set("type", kind)
	form.Set("direction", t.direction())
	t.requests = append(t.requests, request{kind + " " + p.Name, form})
}

// history plans the cmd=history.
func (t *telling) history(p crm.Person, answered bool) {
	status := "Success"
	switch {
	case answered:
	case t.direction() == "out":
		status = "Cancel"
	default:
		status = "Missed"
	}
	form := t.form("history", p)
	form.Set("type", t.direction())
	form.Set("status", status)
	form.Set("start", t.event.Began(t.read).UTC().Format(timeFormat))
	form.Set("duration", strconv.Itoa(int(t.event.Duration.Seconds())))
	// The bridge's own link comes later, and the exchange's would lead into the office.
	isLate := t.servesRecordings && t.event.Type == telephony.EventCompleted
	if link := t.event.Recording; isWeb(link) && !isLate {
		form.Set("link", link)
	}
	t.requests = append(t.requests, request{"history " + status + " " + p.Name, form})
}

// timeFormat is the form of a time, in UTC.
const timeFormat = "20060102T150405Z"

// form is what cmd=event and cmd=history have in common.
func (t *telling) form(cmd string, p crm.Person) url.Values {
	form := url.Values{
		"cmd":       {cmd},
		"phone":     {plain(t.event.Client)},
		"user":      {t.login(p)},
		"callid":    {t.before.callID(t.event)},
		"diversion": {t.line(t.event.Line)},
	}
	if p.Extension != "" {
		form.Set("ext", p.Extension)
	}
	return form
}

// plain is a number in digits alone: some CRMs take no plus.
func plain(number string) string { return strings.TrimPrefix(number, "+") }

// isWeb reports whether a recording can be opened in a browser.
func isWeb(link string) bool {
	u, err := url.Parse(link)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}
