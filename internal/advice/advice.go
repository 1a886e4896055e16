// Package advice holds what a person reads about an error: what to do, in English, and the whole
// sentence in Russian. It is a room of its own since several faces show the same errors: the log,
// the commands, the API and the dashboard. The rooms that fail name the error by a code, and do not
// know how the bridge is configured; this one knows, and nothing else.
package advice

import (
	"regexp"
	"strconv"
	"strings"

	"pzbridge/internal/telephony"
)

// entry is what people read about a code. The values of the cause stand in place of {1} and {2}. A
// part in square brackets is left out if a value in it is missing.
type entry struct {
	// do follows the error's text, with the punctuation in between; empty if there is nothing to do
	// that the text does not say.
	do      string
	russian string // the whole sentence
}

// English returns the text of an error, and what to do about it: the outermost advice counts, since
// an error that wraps another one knows more about the situation.
func English(err error) string {
	text := err.Error()
	for _, c := range telephony.Causes(err) {
		if do := entries[c.Code].do; do != "" {
			return text + fill(do, c.Args)
		}
	}
	return text
}

// EnglishText is English for a text that was kept with its cause.
func EnglishText(text string, c telephony.Cause) string {
	return text + fill(entries[c.Code].do, c.Args)
}

// Russian returns the sentence of the outermost cause of an error; the text of an error without a
// cause stays in English.
func Russian(err error) string { return RussianText(err.Error(), telephony.CauseOf(err)) }

// RussianText is Russian for a text that was kept with its cause.
func RussianText(text string, c telephony.Cause) string {
	if e, ok := entries[c.Code]; ok {
		return fill(e.russian, c.Args)
	}
	return text
}

var (
	optional = regexp.MustCompile(`\[[^\]]*\]`)
	place    = regexp.MustCompile(`\{\d\}`)
)

// fill puts values into their places.
func fill(text string, args []string) string {
	text = optional.ReplaceAllStringFunc(text, func(part string) string {
		for _, p := range place.FindAllString(part, -1) {
			if position(p) > len(args) {
				return ""
			}
		}
		return strings.Trim(part, "[]")
	})
	return place.ReplaceAllStringFunc(text, func(p string) string {
		if n := position(p); n <= len(args) {
			return args[n-1]
		}
		return ""
	})
}

// position returns the number in a place.
func position(place string) int {
	n, _ := strconv.Atoi(strings.Trim(place, "{}")) // place matches one digit only
	return n
}
