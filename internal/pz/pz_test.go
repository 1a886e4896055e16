package pz

import (
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// Either the query or the headers carry the full identity, unescaped: the headers where a value in
// the query would need escapes.
func TestHandshakeUsesQueryOrHeaders(t *testing.T) {
	full := Identity{
		Password:       "a~?>b?~x",
		ClientType:     "jsapi",
		GUID:           "{1F2E-33}",
		PhoneNumber:    "+7900",
		EventsMask:     65535,
		BroadcastGroup: "g",
		Protocol:       2,
	}
	query, header := full.Handshake()
	want := "CID=YX4/PmI/fng=&CT=jsapi&GID={1F2E-33}&PhoneNumber=+7900" +
		"&BroadcastEventsMask=65535&BroadcastGroup=g&PzProtocolVersion=2"
	if query != want || header != nil {
		t.Errorf("got %s and %v\nwant %s", query, header, want)
	}
	for _, odd := range []string{"my crm", "a&b", "a#b", "50%", "моя", "a\u00a0b"} {
		for _, change := range []func(*Identity){
			func(id *Identity) { id.ClientType = odd }, func(id *Identity) { id.GUID = odd },
			func(id *Identity) { id.PhoneNumber = odd }, func(id *Identity) { id.BroadcastGroup = odd },
		} {
			id := full
			change(&id)
			query, header := id.Handshake()
			if query != "" || len(header) != 7 {
				t.Fatalf("%q: got %s and %v", odd, query, header)
			}
			var headers Attrs
			for name, values := range header {
				headers = append(headers, Attr{name, values[0]})
			}
			got := ReadIntroduction(query, headers)
			got.Password = full.Password
			if got.Identity != id || got.Packed != PackPassword(full.Password) || !got.HasType {
				t.Errorf("%q: read as %+v", odd, got)
			}
		}
	}
}

func TestCheckIdentityText(t *testing.T) {
	for text, fits := range map[string]bool{
		"": true, "jsapi": true, "моя CRM": true,
		"a ": false, "\u00a0a": false, "a\rb": false, "a\x7f": false, "\xc8": false,
	} {
		if err := CheckIdentityText(text); (err == nil) != fits {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestErrorTextIsRedacted(t *testing.T) {
	id := Identity{Password: `pa"ss\word`, GUID: "g"}
	query, _ := id.Handshake()
	for text, want := range map[string]string{
		"got /?" + query:                                     "got /?(hidden)",
		`bad Content-Length "pa\"ss\\word"`:                  `bad Content-Length "(hidden)"`,
		`the client pa"ss\word is unknown`:                   "the client (hidden) is unknown",
		`malformed HTTP status code "pa"`:                    ErrNoHTTP.Error(),
		"x509: malformed validity":                           "x509: malformed validity",
		"got cGEic3Ncd29yZA==, and CID=cGEic3Ncd29yZA%3D%3D": "got (hidden), and CID=(hidden)",
	} {
		if got := id.Redact(errors.New(text)).Error(); got != want {
			t.Errorf("%s is shown as %s", text, got)
		}
	}
}

// The payload alone decides which form is unpacked.
func TestUnpack(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	for _, c := range []struct {
		name, payload, want string
		codec               Codec
		bad                 bool
	}{
		{"base64", b64([]byte("<a/>")), "<a/>", Base64, false},
		{"base64 with a line end in it", b64([]byte("<a/>\n")), "<a/>", Base64, false},
		{"base64 with a NUL in it", b64([]byte("<a/>\x00noise")), "<a/>", Base64, false},
		{"base64 with a line end and a NUL after it", b64([]byte("<a/>")) + "\n\x00", "<a/>", Base64, false},
		{"base64 of a byte order mark", b64([]byte("\ufeff<a/>")), "<a/>", Base64, false},
		{"base64, cut off", "PGEvP", "", UnknownCodec, true},
		{"xml", "<a/>", "<a/>", Plain, false},
		{"xml with a NUL", "<a/>\x00", "<a/>", Plain, false},
		{"xml with a line end", " <a/>\n", "<a/>", Plain, false},
		{"xml with a byte order mark", "\ufeff <a/>", "<a/>", Plain, false},
		{"nothing", "", "", UnknownCodec, false},
		{"a NUL alone", "\n\x00", "", UnknownCodec, false},
		{"neither", "Hello!", "", UnknownCodec, true},
		{"a word that is base64", "PING", "", UnknownCodec, true},
		{"base64 of a word", b64([]byte("PING")), "", UnknownCodec, true},
		{"base64 of a NUL", b64([]byte("\x00")), "", UnknownCodec, false},
	} {
		got, codec, err := Unpack([]byte(c.payload))
		if (err != nil) != c.bad || string(got) != c.want || codec != c.codec {
			t.Errorf("%s: got %q, %v, %v", c.name, got, codec, err)
		}
	}
}

func TestParseServerMessage(t *testing.T) {
	from := func(s string) []Event { return []Event{{Attrs{{"type", "1"}, {"from", s}}}} }
	for _, c := range []struct {
		name, doc string
		events    []Event
		responses []Response
		wrong     string // part of the error
	}{
		{name: "an event", doc: `<Event type="1" from="7"/>`, events: from("7")},
		{name: "with an end tag", doc: `<Event type="1" from="7"></Event>`, events: from("7")},
		{
			name:   "entities and references",
			doc:    `<Event type="1" from="&lt;&#1048;&#x412;&gt; &amp; &quot;x&quot;"/>`,
			events: from(`<ИВ> & "x"`),
		},
		{
			name:   "a bare ampersand",
			doc:    `<Event type="1" from="Ivanov & Co &nbsp;"/>`,
			events: from("Ivanov & Co &nbsp;"),
		},
		{name: "Windows-1251", doc: "<Event type=\"1\" from=\"\xc8\xe2\xe0\xed 7\"/>", events: from("Иван 7")},
		{
			name:   "Windows-1251 beside UTF-8",
			doc:    "<Event type=\"1\" from=\"\xc8\xe2\xe0\xed\" to=\"Пётр\"/>",
			events: []Event{{Attrs{{"type", "1"}, {"from", "Иван"}, {"to", "Пётр"}}}},
		},
		{
			name:   "Windows-1251 that could be UTF-8, declared",
			doc:    "<?xml version='1.0' encoding='Windows-1251'?><Event type=\"1\" from=\"\xd0\xb0\"/>",
			events: from("Р°"),
		},
		{
			name:   "KOI8-R, declared",
			doc:    "<?xml version=\"1.0\" encoding = \"koi8-r\" ?><Event type=\"1\" from=\"\xe9\xd7\xc1\xce\"/>",
			events: from("Иван"),
		},
		{
			name:   "UTF-8 declared, Windows-1251 sent",
			doc:    "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Event type=\"1\" from=\"\xc8\xe2\xe0\xed\"/>",
			events: from("Иван"),
		},
		{
			name: "one declared and one not",
			doc: "<?xml encoding=\"koi8-r\"?><Event type=\"1\" from=\"\xe9\"/><?xml version=\"1.0\"?>" +
				"<Event type=\"1\" from=\"\xc8\"/>",
			events: append(from("И"), from("И")...),
		},
		{name: "UTF-8 that was cut off", doc: "<Event type=\"1\" from=\"Ива\xd0\"/>", events: from("Ива\uFFFD")},
		{
			name:      "Windows-1251 in a text",
			doc:       "<Response><Code>2</Code><RequestID>5</RequestID><Details>\xed\xe5\xf2</Details></Response>",
			responses: []Response{{Code: "2", RequestID: "5", Details: "нет"}},
		},
		{
			name: "an event within a response",
			doc: `<Response><Code>0</Code><RequestID>5</RequestID>` +
				`<Data><Event type="1" from="7"/></Data></Response>`,
			events:    from("7"),
			responses: []Response{{Code: "0", RequestID: "5"}},
		},
		{
			name: "events at any depth",
			doc: `<Response><Code>0</Code><RequestID>5</RequestID><Data>` +
				`<Events><Event type="1" from="7"><Event type="1" from="8"/></Event>` +
				`</Events><Version>1 </Version></Data></Response><Event type="1" from="9"/>`,
			events:    append(append(from("7"), from("8")...), from("9")...),
			responses: []Response{{Code: "0", RequestID: "5", Version: "1"}},
		},
		{
			name: "a response with an event, then broken",
			doc: `<Response><Code>0</Code><RequestID>5</RequestID><Data><Event type="1" from="7"/></Data>` +
				`</Response><Event type="1" from=8/>`,
			events:    from("7"),
			responses: []Response{{Code: "0", RequestID: "5"}},
			wrong:     "broken XML",
		},
		{
			name: "a response that does not end, then good",
			doc: `<Response><Code>0</Code><RequestID>4</RequestID><Event type="1" from="7"/>` +
				`<Response><Code>0</Code><RequestID>5</RequestID></Response>`,
			events:    from("7"),
			responses: []Response{{Code: "0", RequestID: "5"}},
			wrong:     "broken XML",
		},
		{
			name:   "an event within something else",
			doc:    `<Notify><Data><Event type="1" from="&amp;"/></Data></Notify>`,
			events: from("&"),
		},
		{
			name:      "a field that is named Event",
			doc:       `<Response><Code>0</Code><RequestID>5</RequestID><Data><Event>128</Event></Data></Response>`,
			responses: []Response{{Code: "0", RequestID: "5"}},
		},
		{
			name:   "a reference that XML forbids",
			doc:    `<Event type="1" from="a&#1;b&#0;c&#xFFFF;d&#99999999;"/>`,
			events: from("a\uFFFDb\uFFFDc\uFFFDd\uFFFD"),
		},
		{
			name:   "a character that XML forbids",
			doc:    "<Event type=\"1\" from=\"a\x01b\uFFFE\"/>",
			events: from("a\uFFFDb\uFFFD"),
		},
		{
			name:   "a declared encoding",
			doc:    `<?xml version="1.0" encoding="windows-1251"?><Event type="1" from="7"/>`,
			events: from("7"),
		},
		{
			name:   "less-than signs in a value",
			doc:    `<Event type="1" from='Ivan <101> "x"'></Event><!-- don't --><Event type="1" from="<"/>`,
			events: append(from(`Ivan <101> "x"`), from("<")...),
		},
		{name: "a byte order mark", doc: "\ufeff<Event type=\"1\" from=\"7\"/>", events: from("7")},
		{
			name: "a declaration for each event",
			doc: `<?xml version="1.0" encoding="windows-1251"?><Event type="1" from="7"/>` +
				`<?xml version="1.0" encoding="windows-1251"?><Event type="1" from="8"/>`,
			events: append(from("7"), from("8")...),
		},
		{name: "one attribute twice", doc: `<Event type="1" from="7" from="8"/>`, events: from("7")},
		{
			name:   "two roots",
			doc:    `<Event type="1" from="7"/> <Event type="1" from="8"/>`,
			events: append(from("7"), from("8")...),
		},
		{
			name:   "good, then broken",
			doc:    `<Event type="1" from="7"/><Event type=`,
			events: from("7"),
			wrong:  "broken XML",
		},
		{
			name:   "broken, then good",
			doc:    `<Event type="1" from="OOO "Romashka""/>` + "\n" + `<Event type="1" from="7"/>`,
			events: from("7"),
			wrong:  "broken XML",
		},
		{
			name: "a quote that is not closed, then good",
			doc: `<Event type="1" from="7/><Response><Code>0</Code><RequestID>5</RequestID></Response>` +
				`<Event type="1" from="8"/>`,
			events:    from("8"),
			responses: []Response{{Code: "0", RequestID: "5"}},
			wrong:     "broken XML",
		},
		{
			name:   "a comment with a quote",
			doc:    `<!-- a < b <c "d --><Event type="1" from="7"/><!-- <x " -->`,
			events: from("7"),
		},
		{
			name:   "a CDATA section with a quote",
			doc:    `<Event type="1" from="7"><![CDATA[<a " & b]]></Event>`,
			events: from("7"),
		},
		{
			name:      "a less-than sign in a text",
			doc:       `<Response><Code>2</Code><RequestID>5</RequestID><Details>a < b <</Details></Response>`,
			responses: []Response{{Code: "2", RequestID: "5", Details: "a < b <"}},
		},
		{
			name: "a CDATA section in a text",
			doc: `<Response><Code>2</Code><RequestID>5</RequestID>` +
				`<Details><![CDATA[no <b class="x & "y" line]]></Details></Response>`,
			responses: []Response{{Code: "2", RequestID: "5", Details: `no <b class="x & "y" line`}},
		},
		{name: "a declaration in a value", doc: `<Event type="1" from="<?xml?>"/>`, events: from("<?xml?>")},
		{
			name:   "declarations without end",
			doc:    strings.Repeat("<?xml?>", 50_000) + `<Event type="1" from="7"/>`,
			events: from("7"),
		},
		{
			name:      "a response",
			doc:       "<Response><Code>2</Code><RequestID> 5 </RequestID><Details>no</Details><Data/></Response>\n",
			responses: []Response{{Code: "2", RequestID: "5", Details: "no"}},
		},
		{name: "another XML", doc: `<?xml version="1.1"?><Event type="1" from="7"/>`, events: from("7")},
		{
			name:   "an event beside something else",
			doc:    `<Ping><x/></Ping><Event type="1" from="7"/>`,
			events: from("7"),
			wrong:  "neither an Event",
		},
		{name: "something else", doc: `<Ping/>`, wrong: "neither an Event nor a Response"},
		{name: "no XML", doc: `hello`, wrong: "text outside"},
		{name: "nothing", wrong: "no element"},
		{name: "an open element", doc: `<Event type="1">`, wrong: "broken XML"},
	} {
		events, responses, err := ParseServerMessage([]byte(c.doc))
		if !reflect.DeepEqual(events, c.events) || !reflect.DeepEqual(responses, c.responses) {
			t.Errorf("%s: got %v, %v", c.name, events, responses)
		}
		if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: the error is %v", c.name, err)
		}
	}
}

// withAttrs returns an event with n attributes.
func withAttrs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ` a%d=""`, i)
	}
	return "<Event" + b.String() + "/>"
}

// Events as servers write them, with any values that need no escaping, are parsed without the XML
// parser; all others with it.
func TestPlainEventsBypassTheXMLParser(t *testing.T) {
	for doc, want := range map[string]bool{
		`<Event type="4" callID="18446744073709551615" from="Иван (дом)" to=" " line=""` +
			` record="http://x/1.mp3?a=b"/>`: true,

		`<Event/>`:                         true,
		`<Event />`:                        false,
		`<Event type="1"></Event>`:         false,
		`<Event type="1" from="a&amp;b"/>`: false,
		`<Event type="1"  from="7"/>`:      false,
		`<Event type='1'/>`:                false,
		`<Event type="1" type="2"/>`:       false,
		`<Event type="1"/><Event/>`:        false,
		`<Events type="1"/>`:               false,
		`<Event type="1"`:                  false,
		`<Event type="`:                    false,
		`<Event type=`:                     false,
		withAttrs(32):                      true,
		withAttrs(33):                      false,
		"<Event type=\"\xc8\"/>":           false,
		"<Event type=\"a\nb\"/>":           false,
		`<Event a:b="1"/>`:                 false,
		`<Event 1="1"/>`:                   false,
		`<Event ="1"/>`:                    false,
	} {
		got, ok := plainEvent([]byte(doc))
		if ok != want {
			t.Errorf("%s: %v", doc, ok)
		}
		if byXML, _, err := parseXML([]byte(doc)); ok && (err != nil || !reflect.DeepEqual(byXML, []Event{got})) {
			t.Errorf("%s: %v, and to an XML parser %v, %v", doc, got, byXML, err)
		}
	}
}

func TestRequestKeepsEmptyAndMissingApart(t *testing.T) {
	for _, data := range []Attrs{
		{{"CallID", "5"}, {"To", ""}},
		{{"CallID", "5"}},
		nil,
		{{"From", `<&"'>`}, {"To", "Иван"}},
	} {
		want := Request{Method: MethodTransfer, ID: "7", Data: data}
		got, err := ParseRequest(want.XML())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v", want.XML(), got, err)
		}
	}
	want := `<Request><ProtocolVersion>2</ProtocolVersion><Method>Transfer</Method><RequestID>18</RequestID>` +
		`<Data><CallID>5</CallID><To></To></Data></Request>`
	got := Request{Method: MethodTransfer, ID: "18", Data: Attrs{{"CallID", "5"}, {"To", ""}}}.XML()
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestValuesAreTrimmed(t *testing.T) {
	a := Attrs{{"x", " "}, {"y", ""}, {"z", " 7 "}}
	if a.Get("x") != "" || a.Get("y") != "" || a.Get("none") != "" || a.Get("z") != "7" {
		t.Errorf("got %q %q %q %q", a.Get("x"), a.Get("y"), a.Get("none"), a.Get("z"))
	}
}

func TestParseGenerate(t *testing.T) {
	for line, want := range map[string]string{
		`generate incoming 7343`:      `Event=1 From=7343`,
		`Generate Incoming 7343 2`:    `Event=1 From=7343 Line=2`,
		`generate transfer 1 2 3 * 5`: `Event=2 From=1 To=2 Line=3 ClientGUID=* CallID=5`,
		`generate transans 1 2`:       `Event=32 From=1 To=2`,
		`generate outcoming 1 2 * 5`:  `Event=8 From=1 To=2 ClientGUID=* CallID=5`,
		`generate outans 1 2`:         `Event=16 From=1 To=2`,
		`generate history 1 2 100 200 50 in`: `Event=4 From=1 To=2` +
			` Start=100 End=200 Duration=50 Direction=0`,
		`generate history 1 "2 3" 100 200 50 out http://x/1.mp3 4 5`: `Event=4 From=1 To=2 3` +
			` Start=100 End=200 Duration=50 Direction=1 Record=http://x/1.mp3 Line=4 CallID=5`,
		`sms 1 2 * 5 0J/R`: `Event=128 From=1 To=2 ClientGUID=* CallID=5 Smstext=0J/R`,

		`generate`:                                 ``,
		`generate nothing 1`:                       ``,
		`generate transfer 1`:                      ``,
		`generate incoming 1 2 3`:                  ``,
		`generate history 1 2 100 200 50 sideways`: ``,
	} {
		words, err := SplitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		fields, err := ParseGenerate(words)
		var got []string
		for _, f := range fields {
			got = append(got, f.Name+"="+f.Value)
		}
		if strings.Join(got, " ") != want || (err != nil) != (want == "") {
			t.Errorf("%s: got %v, %v", line, got, err)
		}
	}
}

// Every message is parsed or refused, and a value that was parsed survives another round trip.
func FuzzParseServerMessage(f *testing.F) {
	for _, seed := range []string{
		`<Event type="1" callID="5" from="a &amp; b &#1; &"/>`, "<Event from=\"\xc8\xe2\"/>\x00",
		"<Response><Code>0</Code><RequestID>1</RequestID><Details></Details>" +
			"<Data><Version>x</Version></Data></Response>\n",
		`<!DOCTYPE x [<!ENTITY a "b">]><Event from="&a;"/>`, `<Event a:b="c" xmlns="d"/>`,
		`<Event type="2" callID="5" from="Иван" to=" " line=""/>`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		events, _, _ := ParseServerMessage(doc)
		if plain, ok := plainEvent(doc); ok {
			if got, _, err := parseXML(doc); err != nil || !reflect.DeepEqual(got, []Event{plain}) {
				t.Errorf("%q is plainly %v, and to an XML parser %v, %v", doc, plain, got, err)
			}
		}
		for _, e := range events {
			for _, a := range e.Attrs {
				if _, err := xml.Marshal(a.Value); err != nil {
					t.Errorf("%q: %v", a.Value, err)
				}
				again, _, err := ParseServerMessage(Event{Attrs{{"from", a.Value}}}.XML())
				if err != nil || len(again) != 1 || again[0].Attrs[0].Value != a.Value {
					t.Errorf("%q was written and read as %v, %v", a.Value, again, err)
				}
			}
		}
	})
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte("PGEvPg=="))
	f.Add([]byte("<a/>\x00"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		doc, codec, err := Unpack(payload)
		if err != nil || codec == UnknownCodec || !beginsXML(doc) {
			return
		}
		for _, codec := range []Codec{codec, codec.Other()} {
			again, read, err := Unpack(codec.Pack(doc))
			if err != nil || string(again) != string(doc) || read != codec {
				t.Errorf("%q was packed and unpacked as %q, %v, %v", doc, again, read, err)
			}
		}
	})
}

func TestParseSMSText(t *testing.T) {
	for packed, want := range map[string]string{
		"0J/RgNC40LLQtdGC": "Привет", "z/Do4uXy": "Привет", "": "", "???": "",
	} {
		if got := ParseSMSText(packed); got != want {
			t.Errorf("%s: got %q", packed, got)
		}
	}
}
