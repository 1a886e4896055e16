package bitrix24

import (
	"encoding/json"
	"strings"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
)

// remark adds a remark to the last step.
func (a *answer) remark(words, value string) {
	if n := len(a.Steps); n > 0 {
		a.Steps[n-1].Remark(words, telephony.BriefText(value))
	}
}

// remarkEntity says who the client is.
func (a *answer) remarkEntity(kind, id text, isNew bool) {
	if words := crm.RemarkEntity(strings.ToUpper(string(kind)), isNew); words != "" && id.isID() {
		a.remark(words, string(id))
	}
}

// isID reports whether a value is the ID of something: for nothing, the portal also has 0.
func (t text) isID() bool { return t != "" && t != "0" }

// registered is what the portal answers to registerCall.
type registered struct {
	ID          string          `json:"CALL_ID"`
	Kind        text            `json:"CRM_ENTITY_TYPE"`
	EntityID    text            `json:"CRM_ENTITY_ID"`
	CreatedLead text            `json:"CRM_CREATED_LEAD"`
	Created     json.RawMessage `json:"CRM_CREATED_ENTITIES"`
	// LeadError is why no client was made of an unknown number, which is no error of the call.
	LeadError text `json:"LEAD_CREATION_ERROR"`
}

// made reports whether the portal has made a client for the call.
func (r *registered) made(kind, id text) bool {
	for _, e := range elements[struct {
		Kind text `json:"ENTITY_TYPE"`
		ID   text `json:"ENTITY_ID"`
	}](r.Created) {
		if e.Kind == kind && e.ID == id {
			return true
		}
	}
	return kind == "LEAD" && r.CreatedLead == id
}

// remarkClient says who the client of a call is that was registered, or why there is none.
func (t *telling) remarkClient(a *answer, r *registered) {
	switch {
	case r.LeadError != "":
		a.remark(crm.RemarkNoClient, t.redact.Replace(string(r.LeadError)))
	case !r.EntityID.isID():
		a.remark(crm.RemarkUnknown, "")
	default:
		a.remarkEntity(r.Kind, r.EntityID, r.made(r.Kind, r.EntityID))
	}
}

// remarkEnd says whose a call is that was finished, and where it stands.
func (a *answer) remarkEnd(result json.RawMessage) {
	var end struct {
		User     text `json:"PORTAL_USER_ID"`
		Activity text `json:"CRM_ACTIVITY_ID"`
	}
	_ = json.Unmarshal(result, &end) // what cannot be read says nothing
	if end.User.isID() {
		a.remark(crm.RemarkUser, string(end.User))
	}
	if end.Activity.isID() {
		a.remark(crm.RemarkActivity, string(end.Activity))
	}
}

// remarkFile says what became of a recording.
func (a *answer) remarkFile() {
	var file struct {
		ID text `json:"FILE_ID"`
	}
	_ = json.Unmarshal(a.result, &file) // likewise
	if file.ID.isID() {
		a.remark(crm.RemarkFile, string(file.ID))
	}
}
