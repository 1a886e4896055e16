package bitrix24

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// call is what the sender keeps for a call.
type call struct {
	ID string `json:"id,omitempty"` // at the portal; empty: not registered
	// Params are those with which it is registered, until its ID is known: the portal answers with
	// the same call only if they are the same.
	Params    map[string]any `json:"params,omitempty"`
	IsClick   bool           `json:"click,omitempty"`    // the portal has registered it itself
	IsKnown   bool           `json:"known,omitempty"`    // whether a click was looked for
	Shown     []int          `json:"shown,omitempty"`    // users with its card
	Last      int            `json:"last,omitempty"`     // the user whose telephone rang last
	Answered  int            `json:"answered,omitempty"` // the user who has picked up
	Owner     *int           `json:"owner,omitempty"`    // responsible for the client, 0: nobody; nil: not asked
	IsRenewed bool           `json:"renewed,omitempty"`  // the portal had forgotten it, and it was registered anew
	IsOver    bool           `json:"over,omitempty"`
}

// maxID bounds the portal's ID of a call in bytes.
const maxID = 256

// maxShown bounds how many users see the card of a call.
const maxShown = 64

// readCall reads what was kept. What cannot be read is as if nothing had been told: the portal
// knows a call by our ID.
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

// dedupWindow is how long the portal knows a call that is registered again, by when it began: half
// an hour, of which some is left for clocks that differ.
const dedupWindow = 25 * time.Minute

// telling is an event that is being told.
type telling struct {
	*Sender
	ctx   context.Context
	job   store.Job
	event *crm.Event
	call  call
	user  int  // who takes part, or the default user
	isDry bool // no client is made of an unknown number
}

// tell tells the portal of an event. Each attempt makes one request that changes something; after
// it, what is left to do is decided anew from what is kept.
func (s *Sender) tell(ctx context.Context, j store.Job, e *crm.Event) store.Outcome {
	t := &telling{Sender: s, ctx: ctx, job: j, event: e, call: readCall(j.Kept)}
	if o, isDone := t.prepare(); isDone {
		return o
	}
	o := t.step()
	if o.Verdict != store.CutOff { // also of a failure: the portal may have done it, and its answer was lost
		o.Keep = t.call.encode()
	}
	return o
}

// prepare finds out what a step needs to know. IsDone means that the outcome is that of the event.
func (t *telling) prepare() (o store.Outcome, isDone bool) {
	e := t.event
	isOver := slices.ContainsFunc(t.job.Later, func(l store.Event) bool { return l.Type == telephony.EventCompleted })
	switch {
	case e.Internal:
		return crm.Nothing("no client takes part in the call"), true
	case e.Client == "":
		return crm.Nothing("the client hides the number, and this CRM takes no call without one"), true
	case e.Type == telephony.EventRecordingReady:
		return t.attach(), true
	case e.Type != telephony.EventCompleted && e.Replayed:
		return crm.Nothing("the call is over already"), true
	case t.call.IsOver:
		return crm.Nothing("the end of the call was sent already"), true
	}
	var a answer
	if t.user, a = t.userOf(t.ctx, e.Extension); t.user == 0 && a.Verdict == store.Done {
		if e.Extension != "" && t.strangers != nil {
			t.strangers.Met(t.endpoint.Name, e.Extension)
		}
		t.user, a = t.defaultUser(t.ctx, e.Line)
	}
	if a.Verdict != store.Done {
		return a.Outcome, true
	}
	if !t.call.IsKnown {
		id, err := t.clicks.OfCall(t.ctx, e, t.job.Event.At)
		if err != nil {
			return store.Outcome{Verdict: store.Later, RetryAfter: time.Second, Err: err}, true
		}
		if t.call.IsKnown = true; id != "" {
			t.call.ID, t.call.IsClick = id, true
		}
	}
	if e.Type != telephony.EventCompleted && isOver && t.call.ID == "" {
		o := crm.Nothing("the call is over already, and its end is sent next")
		t.note()
		o.Keep = t.call.encode()
		return o, true
	}
	return store.Outcome{}, false
}

// note keeps what an event says of its call.
func (t *telling) note() {
	switch t.event.Type {
	case telephony.EventIncoming, telephony.EventOutgoing:
		t.call.Last = t.user
	case telephony.EventIncomingAnswered, telephony.EventOutgoingAnswered:
		t.call.Answered = t.user
	}
}

// step makes the next request of an event.
func (t *telling) step() store.Outcome {
	if t.event.Type == telephony.EventCompleted {
		return t.end()
	}
	defer t.note()
	c := &t.call
	isShown := slices.Contains(c.Shown, t.user)
	isPickedUp := t.event.Type == telephony.EventIncomingAnswered
	others := slices.DeleteFunc(slices.Clone(c.Shown), func(id int) bool { return id == t.user })
	switch {
	case c.ID == "":
		return t.register(true)
	case isPickedUp && len(others) > 0:
		o := t.change(hideCard, others)
		if o.Verdict == store.Done {
			c.Shown = slices.DeleteFunc(c.Shown, func(id int) bool { return id != t.user })
			if !isShown {
				o.Verdict = store.More
			}
		}
		return o
	case !isShown && !c.IsClick && t.event.Type != telephony.EventOutgoingAnswered && len(c.Shown) < maxShown:
		o := t.change(showCard, []int{t.user})
		if o.Verdict == store.Done {
			c.Shown = append(c.Shown, t.user)
		}
		return o
	}
	return crm.Nothing("the portal knows that already")
}

// change shows or hides the card. The portal answers false for a call that it does not know any
// more: then there is no card.
func (t *telling) change(method string, users []int) store.Outcome {
	params := map[string]any{"CALL_ID": t.call.ID, "USER_ID": users}
	a := t.do(t.ctx, method, params, false, t.job.MayRedial)
	if a.Verdict == store.Done {
		for _, id := range users {
			a.remark(cardRemarks[method], strconv.Itoa(id))
		}
	}
	if a.Verdict == store.Refused { // a user who is gone has no card, and the call counts
		a.Verdict, a.Err = store.Done, nil
	}
	return a.Outcome
}

// showCard and hideCard are the methods that open and close a call's card.
const (
	showCard = "telephony.externalCall.show"
	hideCard = "telephony.externalCall.hide"
)

var cardRemarks = map[string]string{showCard: crm.RemarkShown, hideCard: crm.RemarkHidden}

// registerCall is the method that makes a call known.
const registerCall = "telephony.externalCall.register"

// register makes the call known to the portal.
func (t *telling) register(show bool) store.Outcome {
	if t.call.Params == nil {
		t.call.Params = t.params()
		if show {
			t.call.Shown = append(t.call.Shown, t.user)
		}
	}
	params := maps.Clone(t.call.Params)
	params["SHOW"] = number(show)
	a := t.do(t.ctx, registerCall, params, false, t.job.MayRedial)
	if a.Verdict != store.Done {
		return a.Outcome
	}
	var made registered
	if json.Unmarshal(a.result, &made) != nil || made.ID == "" || len(made.ID) > maxID {
		a.Verdict, a.Err = store.Again, errNoID
		return a.Outcome
	}
	t.call.ID, t.call.Params = made.ID, nil
	t.remarkClient(&a, &made)
	if show {
		a.remark(crm.RemarkShown, fmt.Sprint(params["USER_ID"]))
	} else {
		a.Verdict = store.More // to finish it
	}
	return a.Outcome
}

// params are what the portal is told of a call.
func (t *telling) params() map[string]any {
	e := t.event
	isOutgoing := e.Direction == telephony.Outgoing ||
		e.Type == telephony.EventOutgoing || e.Type == telephony.EventOutgoingAnswered
	kind := 2
	if isOutgoing {
		kind = 1
	}
	began := t.job.Event.At
	if e.Type == telephony.EventCompleted {
		began = e.Began(began)
	}
	params := map[string]any{
		"USER_ID":          t.user,
		"PHONE_NUMBER":     e.Client,
		"TYPE":             kind,
		"CALL_START_DATE":  began.Local().Format(time.RFC3339),
		"CRM_CREATE":       number(!t.isDry && t.settings.Create.Of(isOutgoing)),
		"ADD_TO_CHAT":      0,
		"EXTERNAL_CALL_ID": e.CallID,
	}
	if line := t.settings.People.Plan.Client(e.Line); line != "" {
		params["LINE_NUMBER"] = line
	}
	return params
}

func number(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// end tells that the call is over.
func (t *telling) end() store.Outcome {
	c := &t.call
	isOld := time.Since(t.event.Began(t.job.Event.At)) > dedupWindow
	switch {
	case c.ID == "" && !isOld:
		return t.register(false)
	case t.needsOwner():
		return t.findOwner()
	case c.ID == "":
		return t.enter()
	}
	owner := t.owns()
	others := slices.DeleteFunc(slices.Clone(c.Shown), func(id int) bool { return id == owner })
	if len(others) > 0 { // the portal closes the card of the one for whom the call is finished, and no other
		o := t.change(hideCard, others)
		if o.Verdict == store.Done {
			c.Shown = slices.DeleteFunc(c.Shown, func(id int) bool { return id != owner })
			o.Verdict = store.More
		}
		return o
	}
	return t.finish()
}

// lookUp looks for a call in the portal's statistics, where it stands once it is finished. A
// webhook that may not read them gets unreadable as the answer: whether it is there.
func (t *telling) lookUp(filter map[string]any, unreadable bool) store.Outcome {
	a := t.do(t.ctx, "voximplant.statistic.get", map[string]any{"FILTER": filter}, false, t.job.MayRedial)
	isUnreadable := a.code == "ACCESS_DENIED" || a.code == "insufficient_scope"
	if a.Verdict != store.Done && !isUnreadable {
		return a.Outcome
	}
	rows := elements[struct {
		ID text `json:"CALL_ID"`
	}](a.result)
	a.Verdict, a.Err = store.More, nil
	if len(rows) > 0 && t.call.ID == "" && len(rows[0].ID) <= maxID {
		t.call.ID = string(rows[0].ID) // for the recording
	}
	if len(rows) > 0 || isUnreadable && unreadable {
		a.Verdict, t.call.IsOver = store.Done, true
	}
	return a.Outcome
}

// needsOwner reports whether it is to be asked whose a call is that nobody answered.
func (t *telling) needsOwner() bool {
	return t.settings.People.Missed == crm.MissedResponsible && t.call.Owner == nil && t.isMissed()
}

func (t *telling) isMissed() bool {
	return t.event.Direction != telephony.Outgoing && !t.event.IsAnswered() && t.call.Answered == 0
}

// findOwner asks who is responsible for the client. Whatever goes wrong names nobody.
func (t *telling) findOwner() store.Outcome {
	list, a := t.search(t.ctx, t.event.Client, false, t.job.MayRedial)
	if a.Verdict == store.CutOff || a.Verdict == store.Misconfigured || a.Verdict == store.Pause {
		return a.Outcome
	}
	owner, name := 0, ""
	for _, found := range list {
		if owner, _ = strconv.Atoi(string(found.AssignedByID)); owner > 0 {
			name = strconv.Itoa(owner)
			break
		}
	}
	t.call.Owner = &owner
	a.remark(crm.Responsible(name))
	a.Verdict, a.Err = store.More, nil
	return a.Outcome
}

// finishCall is the method that ends a call.
const finishCall = "telephony.externalCall.finish"

// ending are the parameters of finishCall.
func (t *telling) ending(id string) map[string]any {
	return map[string]any{
		"CALL_ID":     id,
		"USER_ID":     t.owns(),
		"DURATION":    int(t.event.Duration.Seconds()),
		"STATUS_CODE": t.status(),
		"ADD_TO_CHAT": 0,
	}
}

// finish ends the call at the portal, which takes that once. If it does not know the call, its
// answer to the first time was lost, or it has forgotten the call: the statistics tell which. One
// that it has forgotten is registered anew, once.
func (t *telling) finish() store.Outcome {
	c := &t.call
	a := t.do(t.ctx, finishCall, t.ending(c.ID), false, t.job.MayRedial)
	if a.Verdict == store.Done {
		c.IsOver = true
		a.remarkEnd(a.result)
	}
	if !a.isUnknownCall() {
		return a.Outcome
	}
	o := t.lookUp(map[string]any{"CALL_ID": c.ID}, true) // it was registered, so it was finished
	o.Steps = append(a.Steps, o.Steps...)
	switch {
	case o.Verdict != store.More: // it is there, or that could not be asked
		return o
	case c.IsRenewed:
		return a.Outcome
	}
	c.ID, c.IsClick, c.IsRenewed = "", false, true
	return o
}

// owns is the user to whom a call belongs that is over.
func (t *telling) owns() int {
	c, policy := &t.call, t.settings.People.Missed
	switch {
	case c.Answered != 0:
		return c.Answered
	case !t.isMissed():
		return t.user
	case policy == crm.MissedResponsible && c.Owner != nil && *c.Owner != 0:
		return *c.Owner
	case policy != crm.MissedDefault && c.Last != 0:
		return c.Last
	}
	if id, a := t.defaultUser(t.ctx, t.event.Line); a.Verdict == store.Done {
		return id
	}
	return t.user
}

// status is how a call ended, in the codes of SIP that the portal knows: 304 makes a missed call
// of it, and 603-S one that the client did not take.
func (t *telling) status() string {
	switch {
	case t.event.IsAnswered() || t.call.Answered != 0 && t.event.Duration > 0:
		return "200"
	case t.event.Direction == telephony.Outgoing:
		return "603-S"
	}
	return "304"
}
