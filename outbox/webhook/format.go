package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"pzbridge/outbox/store"
)

// Formatter converts events to the formats of webhooks: see outbox.Formatter.
type Formatter struct{}

// Object returns the JSON object in a format for a body in the standard format.
func (Formatter) Object(f store.Format, body []byte) []byte { return object(f, body) }

// Render returns the bytes to send for a body in the standard format, and their content type.
func (Formatter) Render(f store.Format, body []byte) (contentType string, sent []byte) {
	return contentTypeOf(f), render(f, body)
}

// contentTypeOf returns the Content-Type of a format.
func contentTypeOf(f store.Format) string {
	if f == store.FormatForm {
		return "application/x-www-form-urlencoded"
	}
	return "application/json"
}

// render converts a body in the standard format to the bytes to send. The result depends on its
// arguments alone, so that every attempt sends the same bytes.
func render(f store.Format, body []byte) []byte {
	if f != store.FormatForm {
		return object(f, body)
	}
	// Not url.Values, which would sort the members by name.
	var form []string
	for _, m := range flatten(body) {
		form = append(form, url.QueryEscape(m.name)+"="+url.QueryEscape(m.text()))
	}
	return []byte(strings.Join(form, "&"))
}

// object converts a body in the standard format to the JSON object of another, which the API
// returns for every format, the form too.
func object(f store.Format, body []byte) []byte {
	switch f {
	case store.FormatFlat, store.FormatForm:
		return marshal(flatten(body))
	case store.FormatPZ:
		return marshal(vendorMembers(body))
	case store.FormatText:
		return marshal([]member{{"text", store.AppendString(nil, sentence(body))}})
	}
	return body
}

// member is one member of a JSON object; raw is its value, unchanged.
type member struct {
	name string
	raw  json.RawMessage
}

// text returns the value for a form: a string without its quotes, any other value as JSON.
func (m member) text() string {
	var s string
	if json.Unmarshal(m.raw, &s) == nil {
		return s
	}
	return string(m.raw)
}

// members splits an object into its members, in their order. It returns those before the first
// error.
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

// flatten moves the members of data to the top level, and those of data.pz, which are the
// attributes that the exchange sent, with the prefix pz_.
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

// vendorFields are the members of the array that the vendor's PHP library returns for an event.
var vendorFields = []string{"type", "callID", "from", "to", "start", "end", "duration", "direction", "record"}

// vendorMembers returns these members, as the strings that the exchange sent; those it did not send
// are empty.
func vendorMembers(body []byte) (list []member) {
	var event struct {
		Data struct {
			PZ map[string]string `json:"pz"`
		} `json:"data"`
	}
	_ = json.Unmarshal(body, &event) // store.Encode has written the body, so it is valid
	for _, name := range vendorFields {
		list = append(list, member{name, store.AppendString(nil, event.Data.PZ[name])})
	}
	return list
}

// marshal writes a JSON object of members in their order.
func marshal(list []member) []byte {
	buf := []byte{'{'}
	for i, m := range list {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = append(append(store.AppendString(buf, m.name), ':'), m.raw...)
	}
	return append(buf, '}')
}
