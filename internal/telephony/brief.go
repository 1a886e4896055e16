package telephony

import "strings"

// maxBrief is how many characters of a value people are shown. What the exchange sends as a number
// or as a call's ID may be a novel, and a page or a line that holds it can no longer be read.
const maxBrief = 64

// maxText is how many characters of a text that another program has said, such as why it refuses,
// are shown.
const maxText = 1000

// Brief is a value as people are shown it. Programs get it whole.
func Brief(s string) string { return shorten(s, maxBrief) }

// BriefText is Brief for a text that people are to read.
func BriefText(s string) string { return shorten(s, maxText) }

func shorten(s string, most int) string {
	n := 0
	for i := range s {
		if n++; n > most {
			return strings.Clone(s[:i]) + "…"
		}
	}
	return s
}
