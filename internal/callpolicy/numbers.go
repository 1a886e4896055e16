package callpolicy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Numbers is a list of the numbers that may be used. Its zero value has none.
type Numbers struct{ list []func(number string) bool }

// internalWord stands in a list for internal extensions.
const internalWord = "internal"

// ParseNumbers reads a list such as "+7*,89?????????,internal": patterns, in which * is any
// characters and ? is one, and the word internal, separated by commas. Blanks, hyphens and brackets
// count neither in a pattern nor in a number.
func ParseNumbers(s string) (Numbers, error) {
	var n Numbers
	for pattern := range strings.SplitSeq(s, ",") {
		pattern = strings.TrimSpace(pattern)
		switch {
		case pattern == "":
			return Numbers{}, errors.New("must be a list such as +7*,internal, without an empty part")
		case strings.EqualFold(pattern, internalWord):
			n.list = append(n.list, isInternal)
		case isSlip(pattern):
			return Numbers{}, fmt.Errorf("%q is no pattern: "+
				"write patterns such as +7*, * for all numbers, and the word internal, separated by commas", pattern)
		case strings.ContainsFunc(pattern, isForeign):
			return Numbers{}, fmt.Errorf("%q can match no number: "+
				"write patterns such as +7* and the word internal, separated by commas", pattern)
		default:
			expression := regexp.QuoteMeta(compact(pattern))
			expression = strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(expression)
			matches := regexp.MustCompile("^" + expression + "$").MatchString
			n.list = append(n.list, func(number string) bool { return matches(compact(number)) })
		}
	}
	return n, nil
}

// isSlip says whether a pattern is a word that means a kind of numbers to whoever wrote it, and as a
// pattern would match the extension of that name alone.
func isSlip(pattern string) bool {
	word := strings.ToLower(pattern)
	return slices.Contains([]string{"all", "any", "everything", "none", "extern", "external"}, word) ||
		len(word) > 3 && strings.HasPrefix(word, internalWord[:4]) && !strings.ContainsFunc(word, unicode.IsDigit)
}

// isForeign says whether a character stands in no number.
func isForeign(r rune) bool { return unicode.IsControl(r) || strings.ContainsRune(`;|&<>"'`, r) }

// match says whether the list has a number.
func (n Numbers) match(number string) bool {
	return slices.ContainsFunc(n.list, func(has func(string) bool) bool { return has(number) })
}

// compact takes out of a number what people put between its digits.
func compact(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" -()", r) {
			return -1
		}
		return r
	}, s)
}

// maxInternal is how many digits an internal extension has at most.
const maxInternal = 6

// channel matches what a PBX adds to the name of an extension for one call, a counter in hexadecimal
// digits: PJSIP/101-0000002f. It follows the extension at once, so it hides no number behind a trunk.
var channel = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9]*/[^/]+)-0000[0-9a-f]{4}$`)

// isInternal says whether a number is an extension: at most six digits and nothing else, or a name,
// which begins with a letter and has no more digits than that either. The digits of a name count in
// all, wherever they stand: SIP/trunk/79001112233 is no extension, and neither is what a PBX dials
// with pauses.
func isInternal(number string) bool {
	if m := channel.FindStringSubmatch(number); m != nil {
		number = m[1]
	}
	number = compact(number)
	digits := strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return r
		}
		return -1
	}, number)
	if number == "" || len(digits) > maxInternal {
		return false
	}
	return digits == number || unicode.IsLetter([]rune(number)[0])
}
