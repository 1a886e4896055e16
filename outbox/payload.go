package outbox

import (
	"bytes"
	"encoding/json"
	"fmt"
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
	replayed    bool
	fingerprint [16]byte
	head, tail  []byte // of the body, around the sequence; an event of no call has no tail
}

// body puts the two halves together. An event of no call has no sequence.
func (r record) body(sequence uint64) []byte {
	if r.call == "" {
		return r.head
	}
	return append(fmt.Appendf(bytes.Clone(r.head), "%d", sequence), r.tail...)
}

// details is what a webhook tells of an event beside the call and the sequence. An absent value is left out, not empty.
type details struct {
	From         string              `json:"from,omitempty"`
	To           string              `json:"to,omitempty"`
	Line         string              `json:"line,omitempty"`
	Direction    telephony.Direction `json:"direction,omitempty"`
	StartedAt    *time.Time          `json:"started_at,omitempty"`
	EndedAt      *time.Time          `json:"ended_at,omitempty"`
	Duration     *int64              `json:"duration_seconds,omitempty"`
	RecordingURL string              `json:"recording_url,omitempty"`
	Text         string              `json:"text,omitempty"`
	Status       telephony.SMSStatus `json:"status,omitempty"`
	Replayed     bool                `json:"replayed"`
	Wire         attributes          `json:"pz"`
}

// timestampFormat is RFC 3339 in UTC with milliseconds, always three digits of them.
const timestampFormat = "2006-01-02T15:04:05.000Z"

func newRecord(e telephony.Event) (record, error) {
	id, err := uuid.Parse(e.ID)
	if err != nil {
		return record{}, fmt.Errorf("its ID is no UUID: %w", err)
	}
	d, err := marshal(details{
		From: e.From, To: e.To, Line: e.Line, Direction: e.Direction,
		StartedAt: present(e.StartedAt), EndedAt: present(e.EndedAt), Duration: e.Duration,
		RecordingURL: e.RecordingURL, Text: e.Text, Status: e.Status, Replayed: e.Replayed, Wire: e.Wire,
	})
	if err != nil {
		return record{}, err
	}
	r := record{id: id, at: e.Time, kind: e.Type, call: e.CallID, replayed: e.Replayed, fingerprint: e.Fingerprint}
	r.head = fmt.Appendf(nil, `{"id":"%s","type":"%s","timestamp":"%s","data":`, e.ID, e.Type, e.Time.UTC().Format(timestampFormat))
	if r.call == "" {
		r.head = append(append(r.head, d...), '}')
		return r, nil
	}
	call, err := marshal(r.call)
	if err != nil {
		return record{}, err
	}
	r.head = fmt.Appendf(r.head, `{"call_id":%s,"sequence":`, call)
	r.tail = append(append([]byte{','}, d[1:]...), '}')
	return r, nil
}

func present(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// marshal is json.Marshal that leaves <, > and & as they are: a webhook's body is no HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), err
}

// attributes is an object in the order of the wire.
type attributes []telephony.Attr

// MarshalJSON renders the attributes as an object of strings.
func (list attributes) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	for i, a := range list {
		if i > 0 {
			out = append(out, ',')
		}
		for j, s := range [...]string{a.Name, a.Value} {
			text, err := marshal(s)
			if err != nil {
				return nil, err
			}
			if j == 1 {
				out = append(out, ':')
			}
			out = append(out, text...)
		}
	}
	return append(out, '}'), nil
}
