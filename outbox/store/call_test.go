package store

import (
	"testing"
	"time"

	"pzbridge/internal/telephony"
)

// TestCallIsCompleted checks when a call counts as over, by its events in the order in which they
// were stored and the seconds at which they came.
func TestCallIsCompleted(t *testing.T) {
	type at struct {
		kind    telephony.EventType
		seconds int
	}
	incoming, completed := telephony.EventIncoming, telephony.EventCompleted
	for name, c := range map[string]struct {
		events []at
		want   bool
	}{
		"its end":                          {[]at{{incoming, 0}, {completed, 9}}, true},
		"a recording after it":             {[]at{{completed, 9}, {telephony.EventRecordingReady, 20}}, true},
		"the ID is used once more":         {[]at{{incoming, 0}, {completed, 9}, {incoming, 3600}}, false},
		"an earlier event is stored later": {[]at{{completed, 9}, {incoming, 6}}, true},
		"and one after it too":             {[]at{{completed, 9}, {incoming, 6}, {incoming, 20}}, false},
		"earlier, of the call before":      {[]at{{completed, 9}, {incoming, 20}, {incoming, 6}}, false},
	} {
		var events []Event
		latest := 0
		for _, e := range c.events {
			latest = max(latest, e.seconds)
			events = append(events, Event{
				Type: e.kind, At: time.Unix(int64(e.seconds), 0), Body: []byte(`{"data":{"outcome":"missed"}}`),
			})
		}
		h := HeadOf("1", events)
		if h.Completed != c.want || (h.Outcome != "") != c.want || h.Latest.Unix() != int64(latest) {
			t.Errorf("%s: completed %t, outcome %q, latest event at %s", name, h.Completed, h.Outcome, h.Latest)
		}
	}
}
