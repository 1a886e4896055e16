package bitrix24test

import (
	"net/http"
	"slices"
	"time"
)

// statusCodes are those that finish takes.
var statusCodes = []string{
	"200", "304", "603", "603-S", "403", "404", "486", "484", "503", "480", "402", "423", "OTHER",
}

// open opens the card of a call to a user.
func (c *Call) open(user int) {
	c.ShownTo = insert(c.ShownTo, user)
	c.Cards = insert(c.Cards, user)
}

// insert adds a user to a sorted list, once.
func insert(users []int, user int) []int {
	i, found := slices.BinarySearch(users, user)
	if found {
		return users
	}
	return slices.Insert(users, i, user)
}

// closeFor closes the card of a call to a user.
func (c *Call) closeFor(user int) {
	c.ShownTo = slices.DeleteFunc(c.ShownTo, func(id int) bool { return id == user })
}

// show opens the card of a call. It answers false, and no error, if the call is over or unknown.
func (p *Portal) show(q query) answer {
	call := p.call(q.params["CALL_ID"])
	if call == nil {
		return done(false)
	}
	if call.Finished {
		p.fault("The call %q is shown after its finish.", call.CallID)
		return done(false)
	}
	for _, user := range q.cardUsers(call) {
		call.open(user)
	}
	return done(true)
}

// hide closes the card of a call. It answers false, and no error, if the call is over or unknown.
func (p *Portal) hide(q query) answer {
	call := p.call(q.params["CALL_ID"])
	if call == nil || call.Finished {
		return done(false)
	}
	for _, user := range q.cardUsers(call) {
		call.closeFor(user)
	}
	return done(true)
}

// cardUsers returns the users in USER_ID, a number or a list; without it, the call's own.
func (q query) cardUsers(call *Call) (users []int) {
	switch id := q.params["USER_ID"].(type) {
	case nil:
		return []int{call.UserID}
	case []any:
		for _, user := range id {
			users = append(users, number(user))
		}
		return users
	default:
		return []int{number(id)}
	}
}

// finish ends a call: it closes the card of the user that it names, and no other, and makes a row
// of the statistics and an activity. Then register, show, and hide no longer know the call.
func (p *Portal) finish(q query) answer {
	if p.switches.appOnly && q.app == nil {
		return wrongAuthType()
	}
	user := p.employee(q)
	if user == 0 {
		return invalid("USER_ID or USER_PHONE_INNER should be set")
	}
	if _, isText := q.params["CALL_ID"].(string); !isText {
		return refused(http.StatusBadRequest, "INVALID_ARGUMENT", "CALL_ID must be a string")
	}
	call := p.call(q.params["CALL_ID"])
	if call == nil || call.Finished {
		return invalid("Call is not found (call should be registered prior to finishing")
	}
	if !p.isActive(user) {
		return invalid("User is not found or is not active")
	}

	seconds := q.params.number("DURATION")
	call.Finished, call.FinishedBy = true, user
	call.Duration = time.Duration(seconds) * time.Second
	call.ActivityID = p.next()
	call.AddToChat = q.params.on("ADD_TO_CHAT", true)
	status := 0
	call.StatusCode = "304"
	if seconds > 0 {
		status, call.StatusCode = 1, "200"
	}
	if code := q.params.text("STATUS_CODE"); code != "" {
		call.StatusCode = code
	}
	call.closeFor(user)
	for i, c := range p.clients {
		if call.Lead != 0 && c.entityType == "LEAD" && c.entityID == call.Lead {
			p.clients[i].responsible = user
		}
	}
	p.checkFinish(q, call)

	statistic := row{
		"ID": p.next(), "CALL_ID": call.CallID, "EXTERNAL_CALL_ID": call.ExternalCallID, "PORTAL_USER_ID": user,
		"PHONE_NUMBER": call.Phone, "PORTAL_NUMBER": call.Line, "INCOMING": call.Type, "CALL_DURATION": seconds,
		"CALL_START_DATE": call.Started.Format(time.RFC3339), "CALL_STATUS": status,
		"CALL_FAILED_CODE": call.StatusCode, "CALL_FAILED_REASON": q.params.text("FAILED_REASON"),
		"CRM_ACTIVITY_ID": call.ActivityID, "CRM_ENTITY_TYPE": call.EntityType,
		"CRM_ENTITY_ID": p.entityID(call.EntityID), "COST": 0, "COST_CURRENCY": nil, "CALL_RECORD_URL": "",
	}
	p.statistics = append(p.statistics, statistic)
	return done(statistic)
}

// checkFinish notes what the portal accepts but the documentation advises against.
func (p *Portal) checkFinish(q query, call *Call) {
	if q.params["ADD_TO_CHAT"] == nil {
		p.fault("The call %q is finished without ADD_TO_CHAT.", call.CallID)
	}
	if q.params["RECORD_URL"] != nil {
		p.fault("The call %q is finished with RECORD_URL, which is deprecated.", call.CallID)
	}
	if !slices.Contains(statusCodes, call.StatusCode) {
		p.fault("The call %q is finished with the unknown STATUS_CODE %q.", call.CallID, call.StatusCode)
	}
	if len(call.ShownTo) > 0 {
		p.fault("The call %q is finished while the users %v have its card open.", call.CallID, call.ShownTo)
	}
}
