package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"pzbridge/outbox/store"
)

// Formatter gives events in the formats of webhooks: an outbox.Formatter.
type Formatter struct{}

// Object gives the JSON object of a standard body.
func (Formatter) Object(f store.Format, body []byte) []byte { return object(f, body) }

// Render gives the bytes that are sent, and their content type.
func (Formatter) Render(f store.Format, body []byte) (contentType string, sent []byte) {
	return contentTypeOf(f), render(f, body)
}

// contentTypeOf is the header that goes with a format.
func contentTypeOf(f store.Format) string {
	if f == store.FormatForm {
		return "application/x-www-form-urlencoded"
	}
	return "application/json"
}

// render makes of a standard body the bytes that are sent. The same body always makes the same
// bytes.
func render(f store.Format, body []byte) []byte {
	if f != store.FormatForm {
		return object(f, body)
	}
	// url.Values would sort; the members stay in their order.
	var form []string
	for _, m := range flatten(body) {
		form = append(form, url.QueryEscape(m.name)+"="+url.QueryEscape(m.text()))
	}
	return []byte(strings.Join(form, "&"))
}

// object makes of a standard body the JSON object of the format, as the API gives it.
func object(f store.Format, body []byte) []byte {
	switch f {
	case store.FormatFlat, store.FormatForm:
		return write(flatten(body))
	case store.FormatPZ:
		return write(vendors(body))
	}
	return body
}

// member is one member of a JSON object; raw is its value as it stands there.
type member struct {
	name string
	raw  json.RawMessage
}

// text is the value as a form has it.
func (m member) text() string {
	var s string
	if json.Unmarshal(m.raw, &s) == nil {
		return s
	}
	return string(m.raw)
}

// members takes an object apart, in its order.
func members(object []byte) (list []member) {
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return list
		}
		var raw json.RawMessage
		if d.Decode(&raw) != nil {
			return list
		}
		list = append(list, member{fmt.Sprint(name), raw})
	}
	return list
}

// flatten puts what stands in data beside the members around it. What the exchange sent beside that
// gets the prefix pz_.
func flatten(body []byte) (flat []member) {
	for _, m := range members(body) {
		if m.name != "data" {
			flat = append(flat, m)
			continue
		}
		for _, d := range members(m.raw) {
			if d.name != "pz" {
				flat = append(flat, d)
				continue
			}
			for _, a := range members(d.raw) {
				flat = append(flat, member{"pz_" + a.name, a.raw})
			}
		}
	}
	return flat
}

// vendorsFields are the members of the array that the vendor's PHP library gives for an event.
var vendorsFields = []string{"type", "callID", "from", "to", "start", "end", "duration", "direction", "record"}

// vendors gives exactly those, as strings, as they came; empty where the exchange sent none.
func vendors(body []byte) (list []member) {
	var event struct {
		Data struct {
			PZ map[string]string `json:"pz"`
		} `json:"data"`
	}
	_ = json.Unmarshal(body, &event) // store.Encode has written it
	for _, name := range vendorsFields {
		list = append(list, member{name, store.AppendString(nil, event.Data.PZ[name])})
	}
	return list
}

func write(list []member) []byte {
	buf := []byte{'{'}
	for i, m := range list {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = append(append(store.AppendString(buf, m.name), ':'), m.raw...)
	}
	return append(buf, '}')
}
