package relay

import (
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
)

// kinds says what each wire type is to a CRM, and which way the call goes where the type alone tells.
var kinds = map[string]struct {
	event     telephony.EventType
	direction telephony.Direction
}{
	pz.TypeTransferRequested: {telephony.EventTransferRequested, telephony.Incoming},
	pz.TypeIncoming:          {telephony.EventIncoming, telephony.Incoming},
	pz.TypeIncomingAnswered:  {telephony.EventIncomingAnswered, telephony.Incoming},
	pz.TypeOutgoing:          {telephony.EventOutgoing, telephony.Outgoing},
	pz.TypeOutgoingAnswered:  {telephony.EventOutgoingAnswered, telephony.Outgoing},
	pz.TypeCompleted:         {telephony.EventCompleted, ""}, // the event says it
	pz.TypeSMS:               {telephony.EventSMSSent, ""},
	pz.TypeSMSStatus:         {telephony.EventSMSStatus, ""},
}

// translate makes the bridge's event of the wire's. Whatever cannot be understood is left out, and is still among
// Wire as it came.
func translate(e pz.Event, now time.Time) telephony.Event {
	get := e.Attrs.Get
	kind, known := kinds[get(pz.AttrType)]
	if !known {
		kind.event = telephony.EventOther
	}
	out := telephony.Event{
		// NewV7 fails only when the system has no randomness left, where no program can go on.
		ID: uuid.Must(uuid.NewV7()).String(), Type: kind.event, Time: now.UTC(), CallID: get(pz.AttrCallID),
		From: get("from"), To: get("to"), Line: get("line"), Direction: kind.direction,
		Replayed: get(pz.AttrMissed) == "1",
	}
	switch kind.event {
	case telephony.EventCompleted:
		out.StartedAt, out.EndedAt = unixTime(get("start")), unixTime(get("end"))
		out.RecordingURL = get("record")
		if seconds, err := strconv.ParseInt(get("duration"), 10, 64); err == nil && seconds >= 0 {
			out.Duration = &seconds
		}
		switch get("direction") {
		case "0":
			out.Direction = telephony.Incoming
		case "1":
			out.Direction = telephony.Outgoing
		}
	case telephony.EventSMSSent:
		out.Text = pz.ParseSMSText(get("smstext"))
	case telephony.EventSMSStatus:
		out.Text = pz.ParseSMSText(get("smstext"))
		switch result := get("result"); result {
		case "":
		case "0":
			out.Status = telephony.SMSSending
		case "1":
			out.Status = telephony.SMSSent
		default:
			out.Status = telephony.SMSFailed
		}
	}
	out.Wire = make([]telephony.Attr, len(e.Attrs))
	for i, a := range e.Attrs {
		out.Wire[i] = telephony.Attr(a)
	}
	out.Fingerprint = fingerprint(e.Attrs)
	return out
}

// fingerprint hashes what an event says. Neither order nor white space around a value carries any
// meaning, blank is absent, and whether it is a replay is not part of it.
func fingerprint(attrs pz.Attrs) [16]byte {
	said := make(pz.Attrs, 0, 16)
	for _, a := range attrs {
		a.Value = strings.TrimSpace(a.Value)
		if a.Name != pz.AttrMissed && a.Name != pz.AttrMissedFinal && a.Value != "" {
			said = append(said, a)
		}
	}
	slices.SortFunc(said, func(a, b pz.Attr) int { return strings.Compare(a.Name, b.Name) })
	text := make([]byte, 0, 512)
	for _, a := range said {
		for _, part := range [...]string{a.Name, a.Value} {
			text = append(strconv.AppendInt(text, int64(len(part)), 10), ':')
			text = append(text, part...)
		}
	}
	sum := sha256.Sum256(text)
	return [16]byte(sum[:])
}

// unixTime reads unix seconds. No call happened in 1970: 0 means that the exchange did not know.
func unixTime(s string) time.Time {
	const year10000 = 253402300800 // RFC 3339 ends before it
	seconds, err := strconv.ParseInt(s, 10, 64)
	if err != nil || seconds <= 0 || seconds >= year10000 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}
