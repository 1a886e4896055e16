package cli

import (
	"testing"
	"time"

	"pzbridge/internal/pz"
)

// An event is described in one line; what it lacks is left out.
func TestEventLine(t *testing.T) {
	for doc, want := range map[string]string{
		`<Event type="1" callID="5" from="7343" line="2"/>`:           "asks where to go: 7343 · line 2 · call 5",
		`<Event type="2" callID="5" from="7343" to="101"/>`:           "rings: 7343 → 101 · call 5",
		`<Event type="32" callID="5" from="7343" to="101"/>`:          "picked up: 7343 → 101 · call 5",
		`<Event type="8" callID="5" from="101" to="7343"/>`:           "rings the client: 101 → 7343 · call 5",
		`<Event type="16" callID="5" from="101" to="7343"/>`:          "the client picked up: 101 → 7343 · call 5",
		`<Event type="4" from=" " to="101" duration="0" callID="5"/>`: "over: - → 101 · no talk · call 5",
		`<Event type="64" callID="5" from="7" to="101"/>`:             "other event of type 64: 7 → 101 · call 5",
		`<Event from="7"/>`: "other event of type -: 7",
		`<Event type="128" from="1" to="2" smstext="0K8gImEi"/>`:    `SMS: 1 → 2 · "Я \"a\""`,
		`<Event type="256" from="1" to="2" result="7" missed="1"/>`: "SMS status (replayed): 1 → 2 · failed",
		`<Event type="4" callID="5" from="101" to="7343" direction="1" duration="63" start="1385035630"
			record="http://pbx/1.mp3" missed="1"/>`: "over (replayed): 101 → 7343 · outgoing · " +
			"began 2013-11-21 12:07:10 · 1m3s of talk · recording http://pbx/1.mp3 · call 5",
	} {
		events, _, err := pz.ParseServerMessage([]byte(doc))
		if err != nil || len(events) != 1 {
			t.Fatal(err, doc)
		}
		if got := eventLine(events[0], time.Now().UTC()); got != want {
			t.Errorf("%s:\n%s, want\n%s", doc, got, want)
		}
	}
}
