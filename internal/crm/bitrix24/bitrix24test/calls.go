package bitrix24test

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// duplicateAge is how old, by its start, a call may be to be found again by register.
const duplicateAge = 30 * time.Minute

// The types of calls that a PBX registers. The portal takes those up to lastType.
const (
	Outgoing = 1
	Incoming = 2
	lastType = 5
)

// Call is a call that was registered.
type Call struct {
	CallID         string
	ExternalCallID string
	App            string // the ClientID of the application that registered it; empty for a webhook
	UserID         int
	Phone          string // without letters and punctuation; a plus stays
	Type           int    // Outgoing, Incoming, or 3 to 5
	Line           string
	Started        time.Time
	ShownTo        []int // the users who have its card open, sorted
	Cards          []int // the users who ever had its card, sorted
	EntityType     string
	EntityID       int
	Lead           int // the lead that was made for the call, 0 if none was

	Finished   bool
	Duration   time.Duration
	StatusCode string
	FinishedBy int
	ActivityID int
	AddToChat  bool // by the finish

	RecordName string
	Record     []byte
}

// Calls returns the calls in the order in which they were registered.
func (p *Portal) Calls() (calls []Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.calls {
		call := *c
		call.ShownTo, call.Cards = slices.Clone(c.ShownTo), slices.Clone(c.Cards)
		calls = append(calls, call)
	}
	return calls
}

// call returns the call with this identifier, nil if there is none.
func (p *Portal) call(id any) *Call {
	i := slices.IndexFunc(p.calls, func(c *Call) bool { return c.CallID == id })
	if i < 0 {
		return nil
	}
	return p.calls[i]
}

// wrongAuthType refuses the webhook where only an application will do.
func wrongAuthType() answer {
	return refused(http.StatusForbidden, "WRONG_AUTH_TYPE", "Current authorization type is denied for this method")
}

// register registers a call, or finds it again. The kind of authorization is checked first, and the
// user next, so that a request without parameters tells a client whether it may register.
func (p *Portal) register(q query) answer {
	if p.switches.appOnly && q.app == nil {
		return wrongAuthType()
	}
	call := Call{
		UserID: p.employee(q), Type: q.params.number("TYPE"), Line: strings.TrimSpace(q.params.text("LINE_NUMBER")),
		ExternalCallID: q.params.text("EXTERNAL_CALL_ID"), Started: p.Now(),
		EntityType: q.params.text("CRM_ENTITY_TYPE"), EntityID: q.params.number("CRM_ENTITY_ID"),
	}
	if q.app != nil {
		call.App = q.app.ClientID
	}
	if call.UserID == 0 {
		return invalid("USER_ID or USER_PHONE_INNER should be set")
	}
	if call.Type < Outgoing || call.Type > lastType {
		return invalid("Unknown TYPE")
	}
	if date := q.params.text("CALL_START_DATE"); date != "" {
		var ok bool
		if call.Started, ok = p.parseDate(date); !ok {
			return invalid("CALL_START_DATE should be in the ISO-8601 format")
		}
	}
	p.checkRegistration(q)
	if call.Phone = stripLetters(q.params.text("PHONE_NUMBER")); call.Phone == "" {
		return invalid("Unsupported phone number format")
	}
	if !p.isActive(call.UserID) {
		return invalid("User is not found or is not active")
	}

	registered, leadError := p.add(call, q.params.on("CRM_CREATE", false))
	if q.params.on("SHOW", true) {
		registered.open(registered.UserID)
	}
	var lead any
	created := []row{}
	if registered.Lead != 0 {
		lead = registered.Lead
		created = append(created, row{"ENTITY_TYPE": "LEAD", "ENTITY_ID": registered.Lead})
	}
	result := row{
		"CALL_ID": registered.CallID, "CRM_CREATED_LEAD": lead, "CRM_CREATED_ENTITIES": created,
		"CRM_ENTITY_TYPE": registered.EntityType, "CRM_ENTITY_ID": p.entityID(registered.EntityID),
	}
	if leadError != "" {
		result["LEAD_CREATION_ERROR"] = leadError
	}
	return done(result)
}

// add returns the unfinished call that a new one repeats, or else adds the new one, finds its CRM
// entity, and makes a lead for a number that has none, if that is wanted.
func (p *Portal) add(call Call, createLead bool) (added *Call, leadError string) {
	for _, c := range p.calls {
		if !c.Finished && p.Now().Sub(c.Started) <= duplicateAge && c.UserID == call.UserID &&
			c.Phone == call.Phone && c.Type == call.Type && c.App == call.App &&
			(call.Line == "" || c.Line == call.Line) &&
			(call.ExternalCallID == "" || c.ExternalCallID == call.ExternalCallID) {
			return c, ""
		}
	}

	call.CallID = fmt.Sprintf("externalCall.%032x.%d", p.next(), p.Now().Unix())
	p.calls = append(p.calls, &call)
	if call.EntityType != "" && call.EntityID != 0 {
		return &call, ""
	}
	call.EntityType, call.EntityID = "", 0
	if p.byExtension(call.Phone) != 0 {
		p.fault("The call %q of two employees, %d and the extension %s, is registered.",
			call.ExternalCallID, call.UserID, call.Phone)
		return &call, ""
	}
	found := p.find(call.Phone)
	switch {
	case len(found) > 0:
		call.EntityType, call.EntityID = found[0].entityType, found[0].entityID
	case createLead && p.switches.refuseLeads:
		leadError = "Lead creation is disabled for local users"
	case createLead:
		call.Lead = p.next()
		call.EntityType, call.EntityID = "LEAD", call.Lead
		p.clients = append(p.clients, client{
			phone: lastDigits(call.Phone), entityType: "LEAD", entityID: call.Lead, responsible: call.UserID,
		})
	}
	return &call, leadError
}

// checkRegistration notes what the portal accepts but the documentation advises against.
func (p *Portal) checkRegistration(q query) {
	id := q.params.text("EXTERNAL_CALL_ID")
	if id == "" {
		p.fault("A call with %q is registered without EXTERNAL_CALL_ID.", q.params.text("PHONE_NUMBER"))
	}
	if q.params["ADD_TO_CHAT"] == nil {
		p.fault("The call %q is registered without ADD_TO_CHAT.", id)
	}
	if letters.MatchString(q.params.text("PHONE_NUMBER")) {
		p.fault("The call %q has the number %q, with letters.", id, q.params.text("PHONE_NUMBER"))
	}
}

var (
	letters     = regexp.MustCompile(`\pL`)
	notOfNumber = regexp.MustCompile(`[^0-9#*+,;]`)
)

// stripLetters removes from a number what Bitrix does.
func stripLetters(phone string) string {
	return notOfNumber.ReplaceAllString(phone, "")
}

// parseDate parses a date, which is in the server's time zone if it has none.
func (p *Portal) parseDate(date string) (t time.Time, ok bool) {
	t, err := time.Parse(time.RFC3339, date)
	if err != nil {
		t, err = time.ParseInLocation("2006-01-02T15:04:05", date, p.Now().Location())
		if err == nil {
			p.fault("The CALL_START_DATE %q has no offset.", date)
		}
	}
	return t, err == nil
}
