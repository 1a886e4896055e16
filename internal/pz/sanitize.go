package pz

import (
	"bytes"
	"errors"
	"strconv"
	"unicode/utf8"
)

const replacement = "\uFFFD"

// sanitize makes a document readable for an XML parser that follows the letter, so that no call is
// lost for its caller's name: old connectors send bytes that XML forbids, references to them (&#1;),
// bare ampersands, and less-than signs in values. What cannot be kept becomes U+FFFD; a bare
// ampersand or less-than sign becomes the reference that it should have been. A clean document is
// returned as it is.
func sanitize(doc []byte) []byte {
	if clean(doc) {
		return doc
	}
	out := make([]byte, 0, len(doc)+16)
	var at place
	for len(doc) > 0 {
		if at.step(doc) && doc[0] == '<' {
			out, doc = append(out, "&lt;"...), doc[1:]
			continue
		}
		if doc[0] == '&' && at.until == "" {
			n, ok := reference(doc)
			switch {
			case n == 0:
				out, doc = append(out, "&amp;"...), doc[1:]
			case ok:
				out, doc = append(out, doc[:n]...), doc[n:]
			default:
				out, doc = append(out, replacement...), doc[n:]
			}
			continue
		}
		r, n := utf8.DecodeRune(doc)
		if r == utf8.RuneError && n == 1 || !allowed(r) {
			out = append(out, replacement...)
		} else {
			out = append(out, doc[:n]...)
		}
		doc = doc[n:]
	}
	return out
}

// clean says that a document is plain ASCII text without references, and without less-than signs in values, which nearly every one is.
func clean(doc []byte) bool {
	var at place
	for i, b := range doc {
		if b == '&' || b >= utf8.RuneSelf || b < ' ' && !allowed(rune(b)) || at.step(doc[i:]) && b == '<' {
			return false
		}
	}
	return true
}

// place is where in a document a byte stands: outside of tags, in a tag, in a value there, or in what is passed over.
type place struct {
	inTag bool
	quote byte   // that ends the value; 0 outside of one
	until string // that ends a comment or a CDATA section; empty outside of one
}

func (p *place) outside() bool { return !p.inTag && p.quote == 0 && p.until == "" }

// passed are what has neither tags nor values, and what ends it.
var passed = []struct{ begin, end string }{{"<!--", "-->"}, {"<![CDATA[", "]]>"}}

// step takes the place to the first byte of the rest of a document, and says whether that stands in a value, or is a less-than sign that begins nothing.
func (p *place) step(rest []byte) (inText bool) {
	b := rest[0]
	switch {
	case p.until != "":
		if bytes.HasPrefix(rest, []byte(p.until)) {
			p.until = ""
		}
		return false
	case p.quote != 0:
		if b == p.quote {
			p.quote = 0
			return false
		}
		return true
	case p.inTag && (b == '"' || b == '\''):
		p.quote = b
	case p.inTag && b == '>':
		p.inTag = false
	case b == '<' && !p.inTag:
		for _, other := range passed {
			if bytes.HasPrefix(rest, []byte(other.begin)) {
				p.until = other.end
				return false
			}
		}
		if len(rest) > 1 && (rest[1] == '!' || rest[1] == '?') {
			return false
		}
		p.inTag = len(rest) > 1 && (rest[1] == '/' || beginsName(rest[1]))
		return !p.inTag
	}
	return false
}

// beginsName says whether an element's name may begin with a byte. It may be a part of a letter that is not ASCII.
func beginsName(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b == '_' || b == ':' || b >= utf8.RuneSelf
}

// allowed is XML 1.0's production 2, Char.
func allowed(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' ||
		r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= 0x10FFFF
}

// reference measures the reference at the start of doc, which begins with an ampersand, and says whether an XML document may
// hold it. Its length is 0 when what follows the ampersand is no reference.
func reference(doc []byte) (n int, ok bool) {
	const longest = 12 // of a character reference with some leading zeros
	end := bytes.IndexByte(doc[:min(len(doc), longest)], ';')
	if end < 0 {
		return 0, false
	}
	name, n := string(doc[1:end]), end+1
	switch name {
	case "amp", "lt", "gt", "quot", "apos":
		return n, true
	}
	if len(name) < 2 || name[0] != '#' {
		return 0, false
	}
	digits, base := name[1:], 10
	if digits[0] == 'x' {
		digits, base = digits[1:], 16
	}
	code, err := strconv.ParseUint(digits, base, 32)
	switch {
	case errors.Is(err, strconv.ErrRange): // a number, but of no character
		return n, false
	case err != nil:
		return 0, false
	}
	return n, code <= utf8.MaxRune && allowed(rune(code))
}
