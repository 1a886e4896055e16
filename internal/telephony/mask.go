package telephony

import "regexp"

// phoneNumber finds what may be a person's number in a text: seven digits or more in a row, or a
// number as people write it, with a plus or with a code in parentheses. A date has neither.
var phoneNumber = regexp.MustCompile(`\+\d(?:[ ()-]{0,2}\d){6,}|\d ?\(\d{3,5}\)(?:[ -]?\d){5,}|\d{7,}`)

// MaskNumbers replaces all but the ends of each telephone number in a text, for the log: people who
// may read that need not know who calls.
func MaskNumbers(text string) string {
	return phoneNumber.ReplaceAllStringFunc(text, func(number string) string {
		return number[:2] + "…" + number[len(number)-2:]
	})
}
