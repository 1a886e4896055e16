package config

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// lists matches the variables whose value is often written over several lines, and whose parts are
// trimmed.
var lists = regexp.MustCompile(`^(RETRY_SCHEDULE|ENDPOINT_[0-9]+_(EVENTS|HEADERS))$`)

// quotes are the pairs between which a value is put for a shell or by a word processor.
var quotes = [][2]string{{`"`, `"`}, {"'", "'"}, {"`", "`"}, {"“", "”"}, {"„", "“"}, {"‘", "’"}, {"«", "»"}}

// foreign says what stands in a value that is none of it, without showing the value; empty if there
// is nothing. Windows editors, docker run --env-file and whoever copies from a page add such
// things, nobody sees them, and a password with one is a wrong password.
func foreign(name, value string) string {
	const fromWindows = ": the file that it comes from has Windows line ends, which docker run --env-file keeps; " +
		"save it with Unix line ends"
	isList := lists.MatchString(name)
	switch {
	case !utf8.ValidString(value):
		return "is not UTF-8: save the file that it comes from in that encoding"
	case strings.HasSuffix(value, "\r") && !isList:
		return "ends with a carriage return" + fromWindows
	case strings.HasSuffix(value, "\n") && !isList:
		return "ends with a line feed: remove it; echo adds one, echo -n and printf do not"
	}
	for _, r := range value {
		switch {
		case isList && unicode.IsSpace(r):
		case unicode.IsControl(r):
			return fmt.Sprintf("holds the control character U+%04X: remove it; to type the value is the surest way", r)
		case unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp):
			return fmt.Sprintf("holds the invisible character U+%04X: remove it; to type the value is the surest way", r)
		}
	}
	for _, pair := range quotes {
		if len(value) > len(pair[0]) && strings.HasPrefix(value, pair[0]) && strings.HasSuffix(value, pair[1]) {
			return "stands between quotes, which count as a part of it: remove them; docker run --env-file keeps quotes"
		}
	}
	return ""
}
