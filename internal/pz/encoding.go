package pz

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
)

// declaredCharsets maps the encoding names of XML declarations to the encodings that servers in the
// region use. UTF-8 needs no entry.
var declaredCharsets = map[string]encoding.Encoding{
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

// decode converts a message to UTF-8 and removes a byte order mark and the XML declarations. One
// message may hold a declaration before each of several events, which XML forbids. A declared
// encoding applies up to the next declaration; without a known one, bytes that are not UTF-8 are
// read as Windows-1251.
func decode(doc []byte) []byte {
	doc = bytes.TrimPrefix(doc, []byte(byteOrderMark))
	const opening, closing = "<?xml", "?>"
	if !bytes.Contains(doc, []byte(opening)) {
		return decodeSection(doc, nil)
	}
	out := make([]byte, 0, len(doc))
	var state scanState
	var charset encoding.Encoding
	from := 0
	for i := 0; i < len(doc); i++ {
		if state.outside() && bytes.HasPrefix(doc[i:], []byte(opening)) {
			out = append(out, decodeSection(doc[from:i], charset)...)
			declaration, _, closed := bytes.Cut(doc[i:], []byte(closing))
			charset = declaredCharsets[declaredEncoding(string(declaration))]
			i += len(declaration) + len(closing) - 1
			if from = i + 1; !closed {
				return out
			}
			continue
		}
		state.step(doc[i:])
	}
	return append(out, decodeSection(doc[from:], charset)...)
}

// declaredEncoding returns the encoding that an XML declaration names, in lower case; empty if it
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

// decodeSection converts a section in one encoding to UTF-8. Without a declared encoding it
// converts each value by itself: one message may hold a number from the exchange in UTF-8 and a
// name from an old database in Windows-1251.
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

// toUTF8 reads text that is not UTF-8 as Windows-1251, with one exception: text that is UTF-8 but
// for a truncated last character stays UTF-8, since some connectors cut values at a number of
// bytes.
func toUTF8(text []byte) []byte {
	if utf8.Valid(text) {
		return text
	}
	intact := withoutCutRune(text)
	if len(intact) < len(text) && utf8.Valid(intact) && utf8.RuneCount(intact) < len(intact) {
		return append(bytes.Clone(intact), replacement...)
	}
	return decodeWith(charmap.Windows1251, text)
}

// withoutCutRune returns the text without a truncated character at its end.
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

// decodeWith decodes single-byte text, which cannot fail: an unassigned byte becomes U+FFFD.
func decodeWith(charset encoding.Encoding, text []byte) []byte {
	decoded, err := charset.NewDecoder().Bytes(text)
	if err != nil {
		return text
	}
	return decoded
}
