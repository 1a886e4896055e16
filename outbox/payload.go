package outbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
)

// record is an event on its way into the store: its webhook body but for the sequence, which only the store can know, and what the
// store looks at. The body is fixed here, once: every attempt at every endpoint sends the same bytes, after an upgrade too.
type record struct {
	id          uuid.UUID
	at          time.Time
	kind        telephony.EventType
	call        string // empty for an event of no call
	from        string
	replayed    bool
	endedAt     time.Time // when the call was over; zero if the event does not say it
	fingerprint [16]byte
	body        []byte
	gap         int // where in the body the sequence goes; an event of no call has none
}

// newRecord writes the body member by member: it is the one thing done for every event that is worth writing out.
// A question says until when an answer is of use: routing after it came.
func newRecord(e *telephony.Event, routing time.Duration) (record, error) {
	id, err := uuid.Parse(e.ID)
	if err != nil {
		return record{}, fmt.Errorf("its ID is no UUID: %w", err)
	}
	r := record{id: id, at: e.Time, kind: e.Type, call: e.CallID, from: e.From, replayed: e.Replayed, endedAt: e.EndedAt, fingerprint: e.Fingerprint}
	b := body{buf: make([]byte, 0, bodySize(e))}
	b.open()
	b.text("id", e.ID)
	b.text("type", string(e.Type))
	b.timestamp("timestamp", e.Time)
	b.name("data")
	b.open()
	if r.call != "" {
		b.text("call_id", e.CallID)
		b.name("sequence")
		r.gap = len(b.buf)
	}
	// An absent value is left out, not empty.
	b.optional("from", e.From)
	b.optional("to", e.To)
	b.optional("line", e.Line)
	b.optional("direction", string(e.Direction))
	if r.asks() {
		b.timestamp("answer_by", e.Time.Add(routing))
	}
	b.time("started_at", e.StartedAt)
	b.time("ended_at", e.EndedAt)
	if e.Duration != nil {
		b.name("duration_seconds")
		b.buf = strconv.AppendInt(b.buf, *e.Duration, 10)
	}
	b.optional("recording_url", e.RecordingURL)
	b.optional("text", e.Text)
	b.optional("status", string(e.Status))
	b.optional("endpoint", e.Endpoint)
	b.optional("delivery_id", e.DeliveryID)
	b.optional("reason", e.Reason)
	b.name("replayed")
	b.buf = strconv.AppendBool(b.buf, e.Replayed)
	b.name("pz")
	b.open()
	for _, a := range e.Wire {
		b.text(a.Name, a.Value)
	}
	b.buf = append(b.buf, "}}}"...)
	r.body = b.buf
	return r, nil
}

// bodySize is about how many bytes an event's body takes, rather more.
func bodySize(e *telephony.Event) int {
	const fixed, member = 352, 8
	n := fixed + len(e.CallID) + len(e.From) + len(e.To) + len(e.RecordingURL) + len(e.Text)
	for _, a := range e.Wire {
		n += member + len(a.Name) + len(a.Value)
	}
	return n
}

// body is JSON that is being written. In the profile, encoding a struct by reflection stood before everything else that storing an event takes.
type body struct{ buf []byte }

func (b *body) open() { b.buf = append(b.buf, '{') }

// name begins a member.
func (b *body) name(name string) {
	if last := b.buf[len(b.buf)-1]; last != '{' {
		b.buf = append(b.buf, ',')
	}
	b.buf = append(appendString(b.buf, name), ':')
}

func (b *body) text(name, value string) {
	b.name(name)
	b.buf = appendString(b.buf, value)
}

func (b *body) optional(name, value string) {
	if value != "" {
		b.text(name, value)
	}
}

// timestamp adds a time as RFC 3339 in UTC with milliseconds, always three digits of them. The package time is quick with its own formats only.
func (b *body) timestamp(name string, t time.Time) {
	b.name(name)
	b.buf = t.UTC().AppendFormat(append(b.buf, '"'), time.RFC3339)
	ms := t.Nanosecond() / int(time.Millisecond)
	b.buf = append(b.buf[:len(b.buf)-1], '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z', '"')
}

func (b *body) time(name string, t time.Time) {
	if !t.IsZero() {
		b.name(name)
		b.buf = append(t.AppendFormat(append(b.buf, '"'), time.RFC3339Nano), '"')
	}
}

// appendString adds a JSON string. Plain ASCII is copied, everything else is left to encoding/json, which leaves <, > and & as they are: a webhook's
// body is no HTML.
func appendString(buf []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return appendEncoded(buf, s)
		}
	}
	return append(append(append(buf, '"'), s...), '"')
}

func appendEncoded(buf []byte, s string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string can always be encoded
	return append(buf, bytes.TrimSuffix(b.Bytes(), []byte{'\n'})...)
}
