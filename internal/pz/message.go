package pz

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// The event types that the vendor documents, and 64, which was only observed. A type's number is
// also its bit in a client's mask.
const (
	TypeTransferRequested = "1"   // a call came in, and the exchange requests its destination
	TypeIncoming          = "2"   // the call rings a manager
	TypeCompleted         = "4"   // a call is over
	TypeOutgoing          = "8"   // an outgoing call rings
	TypeOutgoingAnswered  = "16"  // the client answered an outgoing call
	TypeIncomingAnswered  = "32"  // the manager answered an incoming call
	TypeUndocumented      = "64"  // seen on the wire
	TypeSMS               = "128" // an SMS was handed to the user's phone
	TypeSMSStatus         = "256" // an SMS's status
)

// Names of attributes that the program interprets.
const (
	AttrType        = "type"
	AttrCallID      = "callID"
	AttrMissed      = "missed"      // "1" on a replayed event
	AttrMissedFinal = "missedFinal" // "1" on the last event of a replay
)

// Attr is a name and its value: an attribute of an event, or an element of a request's data.
type Attr struct{ Name, Value string }

// Attrs is a list of attributes in the order of the wire.
type Attrs []Attr

// Lookup returns the value of the first attribute of that name, untrimmed, and whether there is
// one.
func (a Attrs) Lookup(name string) (string, bool) {
	for _, attr := range a {
		if attr.Name == name {
			return attr.Value, true
		}
	}
	return "", false
}

// Get returns the value of the first attribute of that name, trimmed of white space as the vendor's
// own clients do; empty if it is missing or blank, which both mean "absent".
func (a Attrs) Get(name string) string {
	v, _ := a.Lookup(name)
	return strings.TrimSpace(v)
}

// Event is one event of the exchange; attributes hold all of its data.
type Event struct{ Attrs Attrs }

// The codes of a Response.
const (
	CodeDone  = "0"
	CodeError = "2" // any error except authentication, which is 1
)

// Response is the answer to the request of the same ID. A server that cannot parse a frame answers
// with the ID of another request or with an arbitrary one, so match a response only to a request
// that is waiting.
type Response struct {
	Code      string   `xml:"Code"`
	RequestID string   `xml:"RequestID"`
	Details   string   `xml:"Details"` // text for a person, usually empty
	Version   string   `xml:"Data>Version"`
	Clients   []Client `xml:"Data>Client"`
}

// Client is one entry of the answer to GetClients.
type Client struct {
	ID          string `xml:"id,attr"`
	IP          string `xml:"ip,attr"`
	Type        string `xml:"type,attr"`
	GUID        string `xml:"GUID,attr"`
	Connected   string `xml:"Connected,attr"` // "1" or "0"
	PhoneNumber string `xml:"PhoneNumber,attr"`
}

// The methods of a Request.
const (
	MethodCall       = "Call"
	MethodTransfer   = "Transfer"
	MethodGenerate   = "Generate"
	MethodGetVersion = "GetVersion"
	MethodGetClients = "GetClients"
	MethodSimulation = "Simulation"
)

// Request is a client's request to a server. Data keeps the order of its elements and distinguishes
// an empty one from a missing one: to a Transfer, an empty destination means "do not redirect", and
// a missing one is an error.
type Request struct {
	Method string
	ID     string
	Data   Attrs
}

// SMSText packs the text of an SMS for a Generate request or an event: base64 of UTF-8.
func SMSText(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// ParseSMSText unpacks the text of an SMS, which old connectors pack from Windows-1251. It is empty
// if the input is not base64.
func ParseSMSText(packed string) string {
	text, err := base64.StdEncoding.DecodeString(packed)
	if err != nil {
		return ""
	}
	return string(toUTF8(text))
}

// ParseServerMessage parses a server's message: one or more root elements, each an Event or a
// Response. Together with an error it returns the elements that it could parse.
func ParseServerMessage(doc []byte) (events []Event, responses []Response, err error) {
	if e, ok := plainEvent(doc); ok {
		return []Event{e}, nil, nil
	}
	return parseXML(doc)
}

// parseXML parses any message. If one of several elements is broken, it parses each of the others
// by itself: the server sends them only once.
func parseXML(doc []byte) (events []Event, responses []Response, err error) {
	events, responses, err = parseElements(doc)
	parts := splitElements(doc)
	if err == nil || len(parts) < 2 {
		return events, responses, err
	}
	events, responses = nil, nil
	for _, part := range parts {
		e, r, _ := parseElements(part)
		events, responses = append(events, e...), append(responses, r...)
	}
	return events, responses, err
}

// splitElements cuts a message before each Event and each Response. A Response with an end tag
// stays whole, with the events in it.
func splitElements(doc []byte) (parts [][]byte) {
	begin := 0
	for i := 0; i < len(doc); i++ {
		isResponse := bytes.HasPrefix(doc[i:], []byte("<Response"))
		if !isResponse && !bytes.HasPrefix(doc[i:], []byte("<Event")) {
			continue
		}
		if i > begin {
			parts, begin = append(parts, doc[begin:i]), i
		}
		if isResponse {
			i += max(0, responseLength(doc[i:])-1)
		}
	}
	return append(parts, doc[begin:])
}

// responseLength returns the length of the Response at the start of a document; 0 if it has no end
// tag before the next Response.
func responseLength(doc []byte) int {
	const end = "</Response>"
	at := bytes.Index(doc, []byte(end))
	if next := bytes.Index(doc[1:], []byte("<Response")); at < 0 || next >= 0 && next+1 < at {
		return 0
	}
	return at + len(end)
}

// parseElements parses a message up to its first syntax error. Events count at any depth, as in the
// vendor's library: a connector was seen to send them within the data of a Response.
func parseElements(doc []byte) (events []Event, responses []Response, err error) {
	var unknown error
	err = eachRoot(doc, func(d *xml.Decoder, root xml.StartElement) error {
		if root.Name.Local == "Response" {
			r, within, err := parseResponse(d, root)
			if err != nil {
				return err
			}
			events, responses = append(events, within...), append(responses, r)
			return nil
		}
		within, err := eventsWithin(d)
		switch {
		case err != nil:
			return err
		case root.Name.Local == "Event":
			events = append(events, Event{Attrs: attributes(root.Attr)})
		case len(within) == 0:
			// Not fatal: the other elements of the message are still valid.
			unknown = fmt.Errorf("<%s> is neither an Event nor a Response", root.Name.Local)
		}
		events = append(events, within...)
		return nil
	})
	return events, responses, errors.Join(err, unknown)
}

// parseResponse parses a Response after its start tag, and the events in it.
func parseResponse(d *xml.Decoder, root xml.StartElement) (_ Response, within []Event, err error) {
	var r struct {
		Response
		Inner []byte `xml:",innerxml"`
	}
	if err := d.DecodeElement(&r, &root); err != nil {
		return Response{}, nil, err
	}
	r.Code, r.RequestID = strings.TrimSpace(r.Code), strings.TrimSpace(r.RequestID)
	r.Version = strings.TrimSpace(r.Version)
	if bytes.Contains(r.Inner, []byte("<Event")) {
		inner := newDecoder(slices.Concat([]byte("<Data>"), r.Inner, []byte("</Data>")))
		_, _ = inner.Token()
		within, _ = eventsWithin(inner) // well-formed: DecodeElement has parsed it
	}
	return r.Response, within, nil
}

// eventsWithin reads to the end tag of the current element and returns the events in it. An element
// named Event without attributes is no event: it is a field of a Generate request.
func eventsWithin(d *xml.Decoder) (events []Event, err error) {
	for depth := 1; depth > 0; {
		token, err := d.Token()
		if err != nil {
			return events, err
		}
		switch token := token.(type) {
		case xml.StartElement:
			depth++
			if token.Name.Local == "Event" && len(token.Attr) > 0 {
				events = append(events, Event{Attrs: attributes(token.Attr)})
			}
		case xml.EndElement:
			depth--
		}
	}
	return events, nil
}

// ParseRequest parses a client's message, which must be a single Request.
func ParseRequest(doc []byte) (Request, error) {
	var req Request
	found := false
	err := eachRoot(doc, func(d *xml.Decoder, root xml.StartElement) error {
		if root.Name.Local != "Request" || found {
			return fmt.Errorf("<%s> is not the one Request that a frame holds", root.Name.Local)
		}
		found = true
		var body struct {
			Method string `xml:"Method"`
			ID     string `xml:"RequestID"`
			Data   struct {
				Fields []struct {
					XMLName xml.Name
					Value   string `xml:",chardata"`
				} `xml:",any"`
			} `xml:"Data"`
		}
		if err := d.DecodeElement(&body, &root); err != nil {
			return err
		}
		req.Method, req.ID = strings.TrimSpace(body.Method), strings.TrimSpace(body.ID)
		for _, f := range body.Data.Fields {
			req.Data = append(req.Data, Attr{Name: f.XMLName.Local, Value: f.Value})
		}
		return nil
	})
	return req, err
}

// eachRoot calls f for each root element of a document, in order. It fails if there is none.
func eachRoot(doc []byte, f func(*xml.Decoder, xml.StartElement) error) error {
	d := newDecoder(sanitize(decode(doc)))
	roots := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			if roots == 0 {
				return errors.New("not XML: no element in it")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("broken XML: %w", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			roots++
			if err := f(d, token); err != nil {
				return fmt.Errorf("broken XML: %w", err)
			}
		case xml.CharData:
			if len(bytes.TrimSpace(token)) > 0 {
				return errors.New("broken XML: text outside of an element")
			}
		}
	}
}

// newDecoder returns a decoder of a sanitized document.
func newDecoder(doc []byte) *xml.Decoder { return xml.NewDecoder(bytes.NewReader(doc)) }

// attributes converts an element's attributes. Of several with one name, which XML forbids, it
// keeps the first.
func attributes(list []xml.Attr) Attrs {
	attrs := make(Attrs, 0, len(list))
	seen := make(map[string]bool, len(list))
	for _, a := range list {
		name := a.Name.Local
		if a.Name.Space != "" {
			name = a.Name.Space + ":" + name
		}
		if !seen[name] {
			seen[name] = true
			attrs = append(attrs, Attr{Name: name, Value: a.Value})
		}
	}
	return attrs
}

// XML renders the request as the vendor's clients send it.
func (r Request) XML() []byte {
	var b bytes.Buffer
	b.WriteString("<Request><ProtocolVersion>2</ProtocolVersion>")
	element(&b, "Method", r.Method)
	element(&b, "RequestID", r.ID)
	b.WriteString("<Data>")
	for _, f := range r.Data {
		element(&b, f.Name, f.Value)
	}
	b.WriteString("</Data></Request>")
	return b.Bytes()
}

// XML renders the response as the vendor's server sends it, including the final line feed.
func (r Response) XML() []byte {
	var b bytes.Buffer
	b.WriteString("<Response>")
	element(&b, "Code", r.Code)
	element(&b, "RequestID", r.RequestID)
	element(&b, "Details", r.Details)
	switch {
	case r.Version != "":
		b.WriteString("<Data>")
		element(&b, "Version", r.Version)
		b.WriteString("</Data>")
	case len(r.Clients) > 0:
		b.WriteString("<Data>")
		for _, c := range r.Clients {
			b.WriteString("<Client")
			attribute(&b, "id", c.ID)
			attribute(&b, "ip", c.IP)
			attribute(&b, "type", c.Type)
			attribute(&b, "GUID", c.GUID)
			attribute(&b, "Connected", c.Connected)
			attribute(&b, "PhoneNumber", c.PhoneNumber)
			b.WriteString("/>")
		}
		b.WriteString("</Data>")
	default:
		b.WriteString("<Data/>")
	}
	b.WriteString("</Response>\n")
	return b.Bytes()
}

// XML renders the event as the vendor's server sends it over ws; over wss a NUL byte follows.
func (e Event) XML() []byte {
	var b bytes.Buffer
	b.WriteString("<Event")
	for _, a := range e.Attrs {
		attribute(&b, a.Name, a.Value)
	}
	b.WriteString("/>")
	return b.Bytes()
}

func element(b *bytes.Buffer, name, value string) {
	for _, part := range [...]string{"<", name, ">", escape(value), "</", name, ">"} {
		b.WriteString(part)
	}
}

func attribute(b *bytes.Buffer, name, value string) {
	for _, part := range [...]string{" ", name, `="`, escape(value), `"`} {
		b.WriteString(part)
	}
}

var escaper = strings.NewReplacer(
	"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;",
	"\t", "&#9;", "\n", "&#10;", "\r", "&#13;",
)

// escape escapes a value as the vendor's server does (&quot;, where encoding/xml writes &#34;) and
// replaces characters that XML forbids with U+FFFD.
func escape(s string) string {
	if isPlainValue(s) && !strings.ContainsAny(s, `>"'`) {
		return s
	}
	s = strings.ToValidUTF8(s, replacement)
	s = strings.Map(func(r rune) rune {
		if !allowed(r) {
			return '\uFFFD'
		}
		return r
	}, s)
	return escaper.Replace(s)
}
