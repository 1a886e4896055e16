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

// kinds maps each wire type to an event type, and to the call's direction where the type determines
// it.
var kinds = map[string]struct {
	event     telephony.EventType
	direction telephony.Direction
}{
	pz.TypeTransferRequested: {telephony.EventTransferRequested, telephony.Incoming},
	pz.TypeIncoming:          {telephony.EventIncoming, telephony.Incoming},
	pz.TypeIncomingAnswered:  {telephony.EventIncomingAnswered, telephony.Incoming},
	pz.TypeOutgoing:          {telephony.EventOutgoing, telephony.Outgoing},
	pz.TypeOutgoingAnswered:  {telephony.EventOutgoingAnswered, telephony.Outgoing},
	pz.TypeCompleted:         {telephony.EventCompleted, ""}, // an attribute gives the direction
	pz.TypeSMS:               {telephony.EventSMSSent, ""},
	pz.TypeSMSStatus:         {telephony.EventSMSStatus, ""},
}

// Translate converts an event from the wire to the bridge's form. A value that cannot be parsed is
// left empty; Wire keeps all attributes as received.
func Translate(e pz.Event, now time.Time) telephony.Event {
	get := e.Attrs.Get
	kind, known := kinds[get(pz.AttrType)]
	if !known {
		kind.event = telephony.EventOther
	}
	out := telephony.Event{
		// NewV7 fails only if the system has no randomness left, and then no program can go on.
		ID:        uuid.Must(uuid.NewV7()).String(),
		Type:      kind.event,
		Time:      now.UTC(),
		CallID:    get(pz.AttrCallID),
		From:      get("from"),
		To:        get("to"),
		Line:      get("line"),
		Direction: kind.direction,
		Replayed:  get(pz.AttrMissed) == "1",
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

// fingerprint hashes an event's content. The order of attributes and white space around a value
// carry no meaning, a blank value counts as absent, and the marks of a replay are left out, so that
// a replayed event has the fingerprint of the original.
func fingerprint(attrs pz.Attrs) [16]byte {
	significant := make(pz.Attrs, 0, 16)
	for _, a := range attrs {
		a.Value = strings.TrimSpace(a.Value)
		if a.Name != pz.AttrMissed && a.Name != pz.AttrMissedFinal && a.Value != "" {
			significant = append(significant, a)
		}
	}
	slices.SortFunc(significant, func(a, b pz.Attr) int { return strings.Compare(a.Name, b.Name) })
	text := make([]byte, 0, 512)
	for _, a := range significant {
		for _, part := range [...]string{a.Name, a.Value} {
			text = append(strconv.AppendInt(text, int64(len(part)), 10), ':')
			text = append(text, part...)
		}
	}
	sum := sha256.Sum256(text)
	return [16]byte(sum[:])
}

// unixTime parses unix seconds. It returns the zero time for 0, which means that the exchange does
// not know the time, and for anything that is no number or that RFC 3339 cannot express.
func unixTime(s string) time.Time {
	const year10000 = 253402300800 // RFC 3339 ends before it
	seconds, err := strconv.ParseInt(s, 10, 64)
	if err != nil || seconds <= 0 || seconds >= year10000 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}
