package pz

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
)

// declared are the encodings, by the names that an XML declaration gives them, in which servers of
// this part of the world may write. UTF-8 needs none.
var declared = map[string]encoding.Encoding{
	"windows-1251": charmap.Windows1251,
	"cp1251":       charmap.Windows1251,
	"windows-1252": charmap.Windows1252,
	"koi8-r":       charmap.KOI8R,
	"koi8-u":       charmap.KOI8U,
	"cp866":        charmap.CodePage866,
	"ibm866":       charmap.CodePage866,
	"iso-8859-1":   charmap.ISO8859_1,
	"iso-8859-5":   charmap.ISO8859_5,
}

// decode makes UTF-8 of a message, and takes a byte order mark and the XML declarations out of it:
// one may stand before each of several events, where XML allows none. A declared encoding is
// honoured up to the next declaration; without a known one, what is no UTF-8 is Windows-1251.
func decode(doc []byte) []byte {
	doc = bytes.TrimPrefix(doc, []byte(byteOrderMark))
	const begin, end = "<?xml", "?>"
	if !bytes.Contains(doc, []byte(begin)) {
		return decodeSection(doc, nil)
	}
	out := make([]byte, 0, len(doc))
	var at place
	var charset encoding.Encoding
	from := 0
	for i := 0; i < len(doc); i++ {
		if at.outside() && bytes.HasPrefix(doc[i:], []byte(begin)) {
			out = append(out, decodeSection(doc[from:i], charset)...)
			declaration, _, closed := bytes.Cut(doc[i:], []byte(end))
			charset = declared[declaredEncoding(string(declaration))]
			i += len(declaration) + len(end) - 1
			if from = i + 1; !closed {
				return out
			}
			continue
		}
		at.step(doc[i:])
	}
	return append(out, decodeSection(doc[from:], charset)...)
}

// declaredEncoding gives the encoding that an XML declaration names, in small letters; empty if it
// names none.
func declaredEncoding(declaration string) string {
	_, rest, found := strings.Cut(declaration, "encoding")
	rest = strings.TrimLeft(strings.TrimLeft(rest, " \t\r\n"), "=")
	rest = strings.TrimLeft(rest, " \t\r\n")
	if !found || rest == "" {
		return ""
	}
	name, _, closed := strings.Cut(rest[1:], rest[:1])
	if !closed || !strings.ContainsAny(rest[:1], `"'`) {
		return ""
	}
	return strings.ToLower(strings.TrimSpace(name))
}

// decodeSection makes UTF-8 of what stands in one encoding. Where that is not declared it looks at
// each value by itself, since one message may hold a number from the exchange in UTF-8 and a name
// from an old database.
func decodeSection(doc []byte, charset encoding.Encoding) []byte {
	if charset != nil {
		return decodeWith(charset, doc)
	}
	if utf8.Valid(doc) {
		return doc
	}
	const delimiters = `"'<>`
	out := make([]byte, 0, len(doc)+len(doc)/2)
	for len(doc) > 0 {
		n := bytes.IndexAny(doc, delimiters)
		if n < 0 {
			return append(out, toUTF8(doc)...)
		}
		out = append(append(out, toUTF8(doc[:n])...), doc[n])
		doc = doc[n+1:]
	}
	return out
}

// toUTF8 takes text that is no UTF-8 for Windows-1251, unless all of it but a character that was cut
// off at its end is UTF-8: some connectors cut values at a number of bytes.
func toUTF8(text []byte) []byte {
	if utf8.Valid(text) {
		return text
	}
	if whole := withoutCutRune(text); len(whole) < len(text) && utf8.Valid(whole) && utf8.RuneCount(whole) < len(whole) {
		return append(bytes.Clone(whole), replacement...)
	}
	return decodeWith(charmap.Windows1251, text)
}

// withoutCutRune takes the beginning of a character of which the rest is missing off a text's end.
func withoutCutRune(text []byte) []byte {
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if rest := text[len(text)-n:]; utf8.RuneStart(rest[0]) {
			if utf8.FullRune(rest) {
				return text
			}
			return text[:len(text)-n]
		}
	}
	return text
}

// decodeWith decodes single-byte text, which cannot fail: a byte without a meaning becomes U+FFFD.
func decodeWith(charset encoding.Encoding, text []byte) []byte {
	decoded, err := charset.NewDecoder().Bytes(text)
	if err != nil {
		return text
	}
	return decoded
}
