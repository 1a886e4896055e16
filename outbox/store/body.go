package store

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"

	"pzbridge/internal/telephony"
)

// encodeBody writes the standard body member by member, and returns the position in it of what is
// known only when the event is stored: the sequence, and the outcome of the call. It is written by
// hand because encoding a struct by reflection took most of the processor time of storing an event.
func encodeBody(e *telephony.Event, asks bool, answerWithin time.Duration) (written []byte, gap int) {
	b := body{buf: make([]byte, 0, bodySize(e))}
	b.open()
	b.text("id", e.ID)
	b.text("type", string(e.Type))
	b.timestamp("timestamp", e.Time)
	b.name("data")
	b.open()
	if e.CallID != "" {
		b.text("call_id", e.CallID)
		b.name("sequence")
		gap = len(b.buf)
	}
	// An absent value is omitted, not empty.
	b.optional("from", e.From)
	b.optional("to", e.To)
	b.optional("line", e.Line)
	b.optional("direction", string(e.Direction))
	b.optional("client_number", e.Client)
	b.optional("extension", e.Extension)
	if e.Internal {
		b.name("internal")
		b.buf = append(b.buf, "true"...)
	}
	if asks {
		b.timestamp("answer_by", e.Time.Add(answerWithin))
	}
	b.time("started_at", e.StartedAt)
	b.time("ended_at", e.EndedAt)
	if e.Duration != nil {
		b.name("duration_seconds")
		b.buf = strconv.AppendInt(b.buf, *e.Duration, 10)
	}
	b.optional("recording_url", e.RecordingURL)
	if r := e.Recording; r != nil {
		b.name("recording_size")
		b.buf = strconv.AppendInt(b.buf, r.Size, 10)
		b.text("recording_type", r.Type)
	}
	b.optional("text", e.Text)
	b.optional("status", string(e.Status))
	b.optional("endpoint", e.Endpoint)
	b.optional("delivery_id", e.DeliveryID)
	b.optional("reason", e.Reason)
	if telephony.IsAlert(e.Type) {
		b.name("recovered")
		b.buf = strconv.AppendBool(b.buf, e.Recovered)
	}
	b.name("replayed")
	b.buf = strconv.AppendBool(b.buf, e.Replayed)
	b.name("pz")
	b.open()
	for _, a := range e.Wire {
		b.text(a.Name, a.Value)
	}
	return append(b.buf, "}}}"...), gap
}

// bodySize returns an upper estimate of the length of a body in bytes.
func bodySize(e *telephony.Event) int {
	const fixed, member = 400, 8
	n := fixed + len(e.CallID) + len(e.From) + len(e.To) + len(e.Client) + len(e.Extension) +
		len(e.RecordingURL) + len(e.Text)
	for _, a := range e.Wire {
		n += member + len(a.Name) + len(a.Value)
	}
	return n
}

// body is JSON under construction.
type body struct{ buf []byte }

func (b *body) open() { b.buf = append(b.buf, '{') }

// name starts a member.
func (b *body) name(name string) {
	if last := b.buf[len(b.buf)-1]; last != '{' {
		b.buf = append(b.buf, ',')
	}
	b.buf = append(AppendString(b.buf, name), ':')
}

func (b *body) text(name, value string) {
	b.name(name)
	b.buf = AppendString(b.buf, value)
}

func (b *body) optional(name, value string) {
	if value != "" {
		b.text(name, value)
	}
}

// timestamp appends a time as RFC 3339 in UTC with milliseconds, always three digits. Package time
// formats only its own layouts quickly, so the digits are appended here.
func (b *body) timestamp(name string, t time.Time) {
	b.name(name)
	b.buf = t.UTC().AppendFormat(append(b.buf, '"'), time.RFC3339)
	ms := t.Nanosecond() / int(time.Millisecond)
	digits := [...]byte{'.', byte('0' + ms/100), byte('0' + ms/10%10), byte('0' + ms%10), 'Z', '"'}
	b.buf = append(b.buf[:len(b.buf)-1], digits[:]...)
}

func (b *body) time(name string, t time.Time) {
	if !t.IsZero() {
		b.name(name)
		b.buf = append(t.AppendFormat(append(b.buf, '"'), time.RFC3339Nano), '"')
	}
}

// AppendString appends a JSON string. Plain ASCII is copied; anything else is left to
// encoding/json, which does not escape <, > and & here: the body of a webhook is not HTML.
func AppendString(buf []byte, s string) []byte {
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
