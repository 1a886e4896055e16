package pz

import (
	"slices"
	"strings"
)

// plainEvent parses a document that is one empty Event element in the simplest notation, in which
// all known servers write nearly every event: one space before each attribute, double quotes, no
// reference in a value. It returns false for anything else, which the XML parser then reads. In a
// profile of the whole bridge the XML parser took as long as storing the event.
func plainEvent(doc []byte) (Event, bool) {
	rest, isEvent := strings.CutPrefix(string(doc), "<Event")
	if !isEvent {
		return Event{}, false
	}
	const maxAttrs = 32 // each name is compared with all before it
	attrs := make(Attrs, 0, 10)
	for rest != "/>" {
		var a Attr
		var ok bool
		a, rest, ok = plainAttr(rest)
		repeated := func(other Attr) bool { return other.Name == a.Name }
		if !ok || len(attrs) == maxAttrs || slices.ContainsFunc(attrs, repeated) {
			return Event{}, false
		}
		attrs = append(attrs, a)
	}
	return Event{Attrs: attrs}, true
}

// plainAttr cuts an attribute and the space before it off the start of a text.
func plainAttr(text string) (a Attr, rest string, ok bool) {
	equals := strings.IndexByte(text, '=')
	if equals < 2 || text[0] != ' ' || !isPlainName(text[1:equals]) || equals+1 == len(text) || text[equals+1] != '"' {
		return Attr{}, "", false
	}
	value, rest, closed := strings.Cut(text[equals+2:], `"`)
	if !closed || !isPlainValue(value) {
		return Attr{}, "", false
	}
	return Attr{Name: text[1:equals], Value: value}, rest, true
}

func isPlainName(name string) bool {
	for i := range len(name) {
		c := name[i]
		isLetter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !isLetter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// isPlainValue reports whether a value stands for itself: allowed characters only, no references,
// and no line ends or tabs, which XML normalises to blanks.
func isPlainValue(value string) bool {
	for _, r := range value {
		if r < ' ' || r == '&' || r == '<' || r == '\uFFFD' || !allowed(r) {
			return false
		}
	}
	return true
}
