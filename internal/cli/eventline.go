package cli

import (
	"fmt"
	"strings"
	"time"

	"pzbridge/internal/dashboard"
	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
	"pzbridge/relay"
)

// eventLine describes an event of the server in words, those of the dashboard: what happened, from
// and to whom, and what else is known, with times in the time zone of now.
func eventLine(wire pz.Event, now time.Time) string {
	e := relay.Translate(wire, now)
	what := dashboard.EventName(e.Type)
	if e.Type == telephony.EventOther {
		what += " of type " + orDash(wire.Attrs.Get(pz.AttrType))
	}
	if e.Replayed {
		what += " (replayed)"
	}
	numbers := orDash(e.From)
	if e.To != "" {
		numbers += " → " + orDash(e.To)
	}
	details := []string{numbers}
	add := func(format string, args ...any) { details = append(details, fmt.Sprintf(format, args...)) }
	if e.Line != "" {
		add("line %s", telephony.Brief(e.Line))
	}
	if e.Type == telephony.EventCompleted {
		details = append(details, completedDetails(e, now.Location())...)
	}
	if e.Text != "" {
		add("%q", telephony.BriefText(e.Text))
	}
	if e.Status != "" {
		add("%s", e.Status)
	}
	if e.CallID != "" {
		add("call %s", telephony.Brief(e.CallID))
	}
	return what + ": " + strings.Join(details, " · ")
}

// completedDetails lists what only the event of a call that is over has, its time in zone.
func completedDetails(e telephony.Event, zone *time.Location) (details []string) {
	if e.Direction != "" {
		details = append(details, string(e.Direction))
	}
	if !e.StartedAt.IsZero() {
		details = append(details, "began "+e.StartedAt.In(zone).Format(time.DateTime))
	}
	switch {
	case e.Duration == nil:
	case *e.Duration == 0:
		details = append(details, "no talk")
	default:
		details = append(details, (time.Duration(*e.Duration)*time.Second).String()+" of talk")
	}
	if e.RecordingURL != "" {
		details = append(details, "recording "+telephony.BriefText(e.RecordingURL))
	}
	return details
}
