package telephony

import "strings"

// maxBrief is the largest number of characters of a value that people are shown. What the exchange
// sends as a number or as a call's ID may be of any length, and a long one would make a page or a
// log line unreadable.
const maxBrief = 64

// maxText is the largest number of characters of a text from another program, such as the reason of
// a refusal, that people are shown.
const maxText = 1000

// Brief shortens a value to 64 characters, for people. Programs get the whole value.
func Brief(s string) string { return shorten(s, maxBrief) }

// BriefText shortens a text to 1000 characters, for people.
func BriefText(s string) string { return shorten(s, maxText) }

func shorten(s string, limit int) string {
	n := 0
	for i := range s {
		if n++; n > limit {
			return strings.Clone(s[:i]) + "…"
		}
	}
	return s
}
