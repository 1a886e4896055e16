package outbox

import (
	"testing"
	"time"

	"pzbridge/internal/phone"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// The vendor's format has no place for a recording: an endpoint with it gets no such event.
func TestRecordingHasNoPlaceInTheVendorsFormat(t *testing.T) {
	plan, err := phone.New(phone.Options{Region: "RU", InternalDigits: 4})
	if err != nil {
		t.Fatal(err)
	}
	endpoints := []store.Endpoint{
		{Name: "vendor", URL: "http://crm", Format: store.FormatPZ, Events: store.Filter{"call.*"}},
		{Name: "standard", URL: "http://crm", Format: store.FormatStandard, Events: store.Filter{"call.*"}},
	}
	rules := Rules(RulesOptions{Endpoints: endpoints, RetrySchedule: []time.Duration{time.Second}, Numbers: plan})
	for kind, want := range map[telephony.EventType]bool{
		telephony.EventRecordingReady: false, telephony.EventCompleted: true,
	} {
		e := &store.Event{Type: kind, Call: "7"}
		if got := rules.IsFor("vendor", e, nil); got != want {
			t.Errorf("%s goes to the format pz: %v", kind, got)
		}
		if !rules.IsFor("standard", e, nil) {
			t.Errorf("%s does not go to the standard format", kind)
		}
	}
}
