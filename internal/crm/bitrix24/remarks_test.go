package bitrix24

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// remarks are those of all steps, without the IDs that the portal gives out.
func (b *bench) remarks() (list []string) {
	b.t.Helper()
	for _, a := range b.attempts() {
		for _, step := range a.Steps {
			what, remarks := step.Remarks()
			words := []string{what[strings.LastIndexByte(what, '.')+1:]}
			for _, r := range remarks {
				words = append(words, r.Words)
			}
			list = append(list, strings.Join(words, ", "))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// The steps of a call say what the portal has made of it.
func TestStepsSayWhatThePortalMade(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		b.says(telephony.EventIncoming, "7", client, "101")
		b.says(telephony.EventIncoming, "7", client, "102")
		b.says(telephony.EventIncomingAnswered, "7", client, "102")
		b.says(telephony.EventCompleted, "7", client, "102", time.Minute)
		b.says(telephony.EventCompleted, "8", known, "101") // a missed call of a client
		storetest.MustAppend(b.t, b.box, old("9"))
		time.Sleep(time.Hour)
		want := []string{
			"batch, lead, entered for the user, entered as the activity",
			"finish, entered for the user, entered as the activity",
			"get", // of the statistics
			"hide, card closed for the user",
			"register, lead",
			"register, new lead, card opened for the user",
			"searchCrmEntities, responsible user",
			"show, card opened for the user",
		}
		if got := b.remarks(); !slices.Equal(got, want) {
			t.Errorf("the steps are\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// What a portal says in another form than the documented one is no error, and claims nothing.
func TestRemarksOfAnyAnswer(t *testing.T) {
	for answered, want := range map[string]string{
		`{"CALL_ID":"a","CRM_CREATED_LEAD":5,"CRM_ENTITY_TYPE":"LEAD","CRM_ENTITY_ID":"5"}`:  "new lead: 5",
		`{"CALL_ID":"a","CRM_CREATED_LEAD":"5","CRM_ENTITY_TYPE":"LEAD","CRM_ENTITY_ID":5}`:  "new lead: 5",
		`{"CALL_ID":"a","CRM_CREATED_LEAD":null,"CRM_ENTITY_TYPE":"LEAD","CRM_ENTITY_ID":5}`: "lead: 5",
		`{"CALL_ID":"a","CRM_ENTITY_TYPE":"DEAL","CRM_ENTITY_ID":"9","CRM_CREATED_ENTITIES":` +
			`[7,{"ENTITY_TYPE":"DEAL","ENTITY_ID":9}]}`: "new deal: 9",
		`{"CALL_ID":"a","CRM_ENTITY_TYPE":"CONTACT","CRM_ENTITY_ID":3,"CRM_CREATED_ENTITIES":{}}`: "contact: 3",
		`{"CALL_ID":"a","CRM_ENTITY_TYPE":false,"CRM_ENTITY_ID":false}`:                           crm.RemarkUnknown,
		`{"CALL_ID":"a","CRM_ENTITY_TYPE":"SMART_PROCESS","CRM_ENTITY_ID":3}`:                     "",

		`{"CALL_ID":"a","LEAD_CREATION_ERROR":"no right"}`: crm.RemarkNoClient + ": no right",
	} {
		var made registered
		if err := json.Unmarshal([]byte(answered), &made); err != nil {
			t.Errorf("%s: %v", answered, err)
		}
		a := answer{Outcome: store.Outcome{Steps: []store.Step{{What: "register"}}}}
		(&telling{Sender: &Sender{redact: outbound.NewRedactor("", nil)}}).remarkClient(&a, &made)
		_, remarks := a.Steps[0].Remarks()
		if got := strings.Trim(fmt.Sprint(remarks), "[]"); got != want {
			t.Errorf("%s: it is said %q, want %q", answered, got, want)
		}
	}
}
