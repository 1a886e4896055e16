package webhook

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"pzbridge/internal/telephony"
)

// said is what a sentence about an event is made of.
type said struct {
	Type telephony.EventType `json:"type"`
	Data struct {
		CallID    string              `json:"call_id"`
		From      string              `json:"from"`
		To        string              `json:"to"`
		Outcome   telephony.Outcome   `json:"outcome"`
		Direction telephony.Direction `json:"direction"`
		Duration  int64               `json:"duration_seconds"`
		Recording string              `json:"recording_url"`
		Text      string              `json:"text"`
		Status    string              `json:"status"`
		Endpoint  string              `json:"endpoint"`
		Reason    string              `json:"reason"`
	} `json:"data"`
}

// sentence says in one sentence what an event in the standard format tells. An alert has one of its
// own.
func sentence(body []byte) string {
	var e said
	_ = json.Unmarshal(body, &e) // store.Encode has written the body, so it is valid
	d := &e.Data
	from, to := name(d.From), name(d.To)
	switch e.Type {
	case telephony.EventTransferRequested:
		return fmt.Sprintf("%s calls and asks where to go.", from)
	case telephony.EventIncoming:
		return fmt.Sprintf("%s calls %s.", from, to)
	case telephony.EventIncomingAnswered:
		return fmt.Sprintf("%s has picked up the call of %s.", to, from)
	case telephony.EventOutgoing:
		return fmt.Sprintf("%s calls %s.", from, to)
	case telephony.EventOutgoingAnswered:
		return fmt.Sprintf("%s has picked up the call of %s.", to, from)
	case telephony.EventCompleted:
		return fmt.Sprintf("The call of %s to %s is over: %s.", from, to, ending(&e))
	case telephony.EventRecordingReady:
		return strings.TrimSpace(fmt.Sprintf("The call of %s to %s has a recording. %s", from, to, d.Recording))
	case telephony.EventSMSSent:
		return strings.TrimSpace(fmt.Sprintf("%s has sent an SMS to %s: %s", from, to, d.Text))
	case telephony.EventSMSStatus:
		return fmt.Sprintf("The SMS of %s to %s: %s.", from, to, cmp.Or(d.Status, "no status"))
	case telephony.EventConnected:
		return "The bridge is connected to the phone system."
	case telephony.EventDisconnected:
		return fmt.Sprintf("The bridge is not connected to the phone system: %s.", d.Reason)
	case telephony.EventEndpointFailing:
		return fmt.Sprintf("%s does not take its webhooks: %s.", d.Endpoint, d.Reason)
	case telephony.EventEndpointRecovered:
		return fmt.Sprintf("%s takes its webhooks again.", d.Endpoint)
	case telephony.EventDeliveryDead:
		return fmt.Sprintf("A webhook to %s is not tried any more: %s.", d.Endpoint, d.Reason)
	}
	return cmp.Or(d.Text, "The phone system reports "+string(e.Type)+".")
}

// name is a number in a sentence.
func name(number string) string {
	return cmp.Or(telephony.Brief(strings.TrimSpace(number)), "somebody")
}

// ending says how a call ended.
func ending(e *said) string {
	switch talk := time.Duration(e.Data.Duration) * time.Second; {
	case e.Data.Outcome == telephony.OutcomeMissed:
		return "missed"
	case e.Data.Outcome == telephony.OutcomeNoAnswer:
		return "no answer"
	case talk > 0:
		return "they talked for " + talk.String()
	case e.Data.Outcome == telephony.OutcomeAnswered:
		return "answered"
	}
	return "it is not known how"
}
