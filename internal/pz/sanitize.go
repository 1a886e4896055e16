package pz

import (
	"bytes"
	"errors"
	"strconv"
	"unicode/utf8"
)

const replacement = "\uFFFD"

// sanitize repairs a document for a strict XML parser, so that no call is lost because of its
// caller's name: old connectors send bytes that XML forbids, references to them (&#1;), bare
// ampersands, and less-than signs in values. A forbidden character becomes U+FFFD; a bare ampersand
// or less-than sign becomes the proper reference. A clean document is returned unchanged.
func sanitize(doc []byte) []byte {
	if isClean(doc) {
		return doc
	}
	out := make([]byte, 0, len(doc)+16)
	var state scanState
	for len(doc) > 0 {
		if state.step(doc) && doc[0] == '<' {
			out, doc = append(out, "&lt;"...), doc[1:]
			continue
		}
		if doc[0] == '&' && state.until == "" {
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

// isClean reports whether a document is ASCII without references and without less-than signs in
// values, as nearly every one is.
func isClean(doc []byte) bool {
	var state scanState
	for i, b := range doc {
		if b == '&' || b >= utf8.RuneSelf || b < ' ' && !allowed(rune(b)) || state.step(doc[i:]) && b == '<' {
			return false
		}
	}
	return true
}

// scanState is the scanner's position in the structure of a document: outside of tags, in a tag, in
// an attribute's value, or in a comment or CDATA section.
type scanState struct {
	inTag bool
	quote byte   // closes the value; 0 outside of a value
	until string // closes the comment or CDATA section; empty outside of one
}

func (p *scanState) outside() bool { return !p.inTag && p.quote == 0 && p.until == "" }

// skipped lists the sections without tags or values, by their delimiters.
var skipped = []struct{ opening, closing string }{{"<!--", "-->"}, {"<![CDATA[", "]]>"}}

// step advances the state over the first byte of rest. It reports whether that byte is character
// data of an attribute's value, or a less-than sign that begins no markup.
func (p *scanState) step(rest []byte) (inText bool) {
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
		for _, section := range skipped {
			if bytes.HasPrefix(rest, []byte(section.opening)) {
				p.until = section.closing
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

// beginsName reports whether a byte may begin an element's name; a byte beyond ASCII may be a part
// of a letter.
func beginsName(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b == '_' || b == ':' || b >= utf8.RuneSelf
}

// allowed reports whether a character is allowed in XML 1.0, by its production 2, Char.
func allowed(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' ||
		r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= 0x10FFFF
}

// reference returns the length of the reference at the start of doc, which begins with an
// ampersand, and whether XML allows it. The length is 0 if the ampersand begins no reference.
func reference(doc []byte) (n int, ok bool) {
	const maxLength = 12 // of a character reference with some leading zeros
	end := bytes.IndexByte(doc[:min(len(doc), maxLength)], ';')
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
	case errors.Is(err, strconv.ErrRange): // well-formed, but beyond all characters
		return n, false
	case err != nil:
		return 0, false
	}
	return n, code <= utf8.MaxRune && allowed(rune(code))
}
