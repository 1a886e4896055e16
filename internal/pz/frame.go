package pz

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"unicode/utf8"
)

// MaxMessage is the largest message that either side reads, in bytes on the wire. A longer one is
// dropped whole.
const MaxMessage = 1 << 20

// Codec is one of the two forms in which XML stands in the payload of a text frame. A server
// expects base64 over ws and plain XML over wss; behind a proxy that adds or removes TLS it is the
// other way round. It does not answer a request in the other form.
type Codec int

// The two codecs, and the zero value for a codec that is not known yet.
const (
	UnknownCodec Codec = iota
	Base64             // over ws
	Plain              // over wss
)

// CodecFor returns the codec that is expected at an address of a scheme, ws or wss.
func CodecFor(scheme string) Codec {
	if scheme == "wss" {
		return Plain
	}
	return Base64
}

// Other returns the other codec of the two.
func (c Codec) Other() Codec {
	if c == Plain {
		return Base64
	}
	return Plain
}

// String returns the codec's name, for people and for JSON; empty for UnknownCodec.
func (c Codec) String() string {
	switch c {
	case Base64:
		return "base64"
	case Plain:
		return "xml"
	}
	return ""
}

// Pack turns a document into a frame's payload.
func (c Codec) Pack(xml []byte) []byte {
	if c == Plain {
		return xml
	}
	return base64.StdEncoding.AppendEncode(nil, xml)
}

// Unpack extracts the document from a frame's payload in either form, cuts it at the first NUL byte
// (an event over wss ends with one) and trims white space. The first byte decides the form, since
// "<" is no letter of base64. A payload without a document gives UnknownCodec and no error: some
// servers send one to keep the connection alive. The document may share memory with payload. It
// fails if the payload is in neither form.
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
	case !beginsXML(doc): // a plain word such as "PING" is valid base64, too
		return nil, UnknownCodec, errors.New("neither XML nor base64 of it")
	}
	return doc, Base64, nil
}

// beginsXML reports whether a document begins with a tag, a comment or a declaration.
func beginsXML(doc []byte) bool {
	return len(doc) > 1 && doc[0] == '<' &&
		(doc[1] == '?' || doc[1] == '!' || doc[1] < utf8.RuneSelf && beginsName(doc[1]))
}

// trimFrame cuts at the first NUL byte and removes white space and a byte order mark around the
// rest.
func trimFrame(b []byte) []byte {
	b, _, _ = bytes.Cut(b, []byte{0})
	return bytes.TrimSpace(bytes.TrimPrefix(bytes.TrimSpace(b), []byte(byteOrderMark)))
}

const byteOrderMark = "\uFEFF"
