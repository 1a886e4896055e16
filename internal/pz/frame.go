package pz

import (
	"bytes"
	"encoding/base64"
	"fmt"
)

// MaxMessage is the largest message, in bytes on the wire, that either side reads. What is longer is dropped whole.
const MaxMessage = 1 << 20

// Codec packs XML into the payload of a text frame and takes it out again. Which one is spoken depends on the address:
// base64 of the XML over ws, the XML itself over wss.
type Codec int

// The two codecs.
const (
	Base64 Codec = iota // over ws
	Plain               // over wss
)

// Pack makes a frame's payload of a document.
func (c Codec) Pack(xml []byte) []byte {
	if c == Plain {
		return xml
	}
	return base64.StdEncoding.AppendEncode(nil, xml)
}

// Unpack takes the document out of a frame's payload: decoded, cut at the first NUL byte (an event over wss ends with one) and
// trimmed of white space. The result may share memory with payload.
func (c Codec) Unpack(payload []byte) ([]byte, error) {
	doc := payload
	if c == Base64 {
		payload, _, _ = bytes.Cut(payload, []byte{0})
		decoded, err := base64.StdEncoding.AppendDecode(nil, bytes.TrimSpace(payload))
		if err != nil {
			return nil, fmt.Errorf("not base64: %w", err)
		}
		doc = decoded
	}
	doc, _, _ = bytes.Cut(doc, []byte{0})
	return bytes.TrimSpace(doc), nil
}
