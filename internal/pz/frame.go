package pz

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"unicode/utf8"
)

// MaxMessage is the largest message, in bytes on the wire, that either side reads. What is longer is dropped whole.
const MaxMessage = 1 << 20

// Codec is one of the two forms in which XML stands in the payload of a text frame. A server speaks
// base64 over ws and the XML itself over wss; behind a proxy that adds or removes TLS it is the other
// way round. It is silent to a request in the form that it does not speak.
type Codec int

// The two codecs, and not knowing which.
const (
	UnknownCodec Codec = iota
	Base64             // over ws
	Plain              // over wss
)

// CodecFor is what a server is expected to speak at an address of a scheme: ws or wss.
func CodecFor(scheme string) Codec {
	if scheme == "wss" {
		return Plain
	}
	return Base64
}

// Other is the other one of the two.
func (c Codec) Other() Codec {
	if c == Plain {
		return Base64
	}
	return Plain
}

// String is the codec in a word, for people and for JSON.
func (c Codec) String() string {
	switch c {
	case Base64:
		return "base64"
	case Plain:
		return "xml"
	}
	return ""
}

// Pack makes a frame's payload of a document.
func (c Codec) Pack(xml []byte) []byte {
	if c == Plain {
		return xml
	}
	return base64.StdEncoding.AppendEncode(nil, xml)
}

// Unpack takes the document out of a frame's payload in either form, cut at the first NUL byte (an
// event over wss ends with one) and trimmed of white space. The first byte tells the forms apart,
// since "<" is no letter of base64. A payload without a document has no codec; some servers keep a line
// alive with one. The document may share memory with payload. It fails where the payload is in neither form.
func Unpack(payload []byte) (doc []byte, codec Codec, err error) {
	payload = trimFrame(payload)
	switch {
	case len(payload) == 0:
		return nil, UnknownCodec, nil
	case payload[0] == '<':
		return payload, Plain, nil
	}
	decoded, err := base64.StdEncoding.AppendDecode(nil, payload)
	if err != nil {
		return nil, UnknownCodec, fmt.Errorf("neither XML nor base64: %w", err)
	}
	doc = trimFrame(decoded)
	switch {
	case len(doc) == 0:
		return nil, UnknownCodec, nil
	case !beginsXML(doc): // many a word is base64 too
		return nil, UnknownCodec, errors.New("neither XML nor base64 of it")
	}
	return doc, Base64, nil
}

// beginsXML says whether a document begins with a tag, a comment or a declaration.
func beginsXML(doc []byte) bool {
	return len(doc) > 1 && doc[0] == '<' && (doc[1] == '?' || doc[1] == '!' || doc[1] < utf8.RuneSelf && beginsName(doc[1]))
}

// trimFrame cuts at the first NUL byte and takes away white space and a byte order mark.
func trimFrame(b []byte) []byte {
	b, _, _ = bytes.Cut(b, []byte{0})
	return bytes.TrimSpace(bytes.TrimPrefix(bytes.TrimSpace(b), []byte(byteOrderMark)))
}

const byteOrderMark = "\uFEFF"
