package outbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// Format is the shape in which an endpoint gets its events.
type Format string

// The formats. The signature covers the bytes that are sent, whatever the format.
const (
	FormatStandard Format = "standard" // the JSON that the outbox keeps
	FormatFlat     Format = "flat"     // one level of JSON, for programs that cannot look into objects
	FormatForm     Format = "form"     // the flat one as application/x-www-form-urlencoded
	FormatPZ       Format = "pz"       // the array of the vendor's PHP library
)

// Formats lists them.
var Formats = []Format{FormatStandard, FormatFlat, FormatForm, FormatPZ}

// contentType is the header that goes with it.
func (f Format) contentType() string {
	if f == FormatForm {
		return "application/x-www-form-urlencoded"
	}
	return "application/json"
}

// render makes of a standard body the bytes that are sent. The same body always makes the same bytes.
func (f Format) render(body []byte) []byte {
	if f != FormatForm {
		return f.object(body)
	}
	// url.Values would sort; the members stay in their order.
	var form []string
	for _, m := range flatten(body) {
		form = append(form, url.QueryEscape(m.name)+"="+url.QueryEscape(m.text()))
	}
	return []byte(strings.Join(form, "&"))
}

// object makes of a standard body the JSON object of the format.
func (f Format) object(body []byte) []byte {
	switch f {
	case FormatFlat, FormatForm:
		return write(flatten(body))
	case FormatPZ:
		return write(vendors(body))
	}
	return body
}

// Sent gives what an endpoint is sent of an event: the content type and the body. It fails with ErrNotFound.
func (o *Outbox) Sent(endpoint, eventID string) (contentType string, body []byte, err error) {
	e, _ := o.store.endpoint(endpoint) // one that is configured no longer has the standard format
	err = o.store.view(func(tx *txn) error {
		n, known := tx.numberOf(eventID)
		event, err := decodeEvent(tx.events.Get(number(n)))
		if !known || err != nil {
			return ErrNotFound
		}
		body = event.body
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	return e.Format.contentType(), e.Format.render(body), nil
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

// flatten puts what stands in data beside the members around it. What the exchange sent beside that gets the prefix pz_.
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
	_ = json.Unmarshal(body, &event) // the outbox has written it
	for _, name := range vendorsFields {
		list = append(list, member{name, appendString(nil, event.Data.PZ[name])})
	}
	return list
}

func write(list []member) []byte {
	b := body{buf: []byte{'{'}}
	for _, m := range list {
		b.name(m.name)
		b.buf = append(b.buf, m.raw...)
	}
	return append(b.buf, '}')
}
