package config

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// listNames matches the variables that hold a list. Their values are often written over several
// lines, and each part is trimmed.
var listNames = regexp.MustCompile(
	`^(RETRY_SCHEDULE|RECORDINGS_(FROM|MAP)|ENDPOINT_[0-9]+_(EVENTS|HEADERS|USERS|DEFAULT_USER_BY_LINE))$`)

// quotes are the pairs of quotation marks that shells need and word processors insert.
var quotes = [][2]string{{`"`, `"`}, {"'", "'"}, {"`", "`"}, {"“", "”"}, {"„", "“"}, {"‘", "’"}, {"«", "»"}}

// valueFault describes stray characters in a value (line ends, invisible characters, quotes)
// without showing the value; it returns "" if there are none. Windows editors, docker run
// --env-file and copying from a web page add such characters. They are invisible, and make a
// password wrong.
func valueFault(name, value string) string {
	const windowsHint = ": the file that it comes from has Windows line ends, which docker run --env-file keeps; " +
		"save it with Unix line ends"
	isList := listNames.MatchString(name)
	switch {
	case !utf8.ValidString(value):
		return "is not UTF-8: save the file that it comes from in that encoding"
	case strings.HasSuffix(value, "\r") && !isList:
		return "ends with a carriage return" + windowsHint
	case strings.HasSuffix(value, "\n") && !isList:
		return "ends with a line feed: remove it; echo adds one, echo -n and printf do not"
	}
	for _, r := range value {
		switch {
		case isList && unicode.IsSpace(r):
		case unicode.IsControl(r):
			return fmt.Sprintf("holds the control character U+%04X: remove it, best by typing the value", r)
		case unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp):
			return fmt.Sprintf("holds the invisible character U+%04X: "+
				"remove it, best by typing the value", r)
		}
	}
	for _, pair := range quotes {
		if len(value) > len(pair[0]) && strings.HasPrefix(value, pair[0]) && strings.HasSuffix(value, pair[1]) {
			return "stands between quotes, which count as a part of it: remove them; docker run --env-file keeps quotes"
		}
	}
	return ""
}
