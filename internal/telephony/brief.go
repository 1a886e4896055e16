package telephony

import "strings"

// maxBrief is how many characters of a value people are shown. What the exchange sends as a number or as a call's ID may be a novel, and a page or a line that
// holds it can no longer be read.
const maxBrief = 64

// Brief is a value as people are shown it. Programs get it whole.
func Brief(s string) string {
	n := 0
	for i := range s {
		if n++; n > maxBrief {
			return strings.Clone(s[:i]) + "…"
		}
	}
	return s
}
