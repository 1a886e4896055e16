package callpolicy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"pzbridge/internal/phone"
)

// Numbers is a set of telephone numbers, given by patterns. The zero value is empty.
type Numbers struct{ list []func(number string) bool }

// internalWord is the word in a list that matches every internal extension.
const internalWord = "internal"

// ParseNumbers parses a list such as "+7*,89?????????,internal", separated by commas: patterns, in
// which * stands for any characters and ? for one character, and the word internal, in any case,
// whose meaning depends on the plan. Spaces, hyphens and parentheses are ignored, in patterns and
// in numbers. It fails for an empty part, and for a part that can match no number or is probably a
// misspelt word.
func ParseNumbers(s string, plan *phone.Plan) (Numbers, error) {
	var n Numbers
	for pattern := range strings.SplitSeq(s, ",") {
		pattern = strings.TrimSpace(pattern)
		switch {
		case pattern == "":
			return Numbers{}, errors.New("must be a list such as +7*,internal, without an empty part")
		case strings.EqualFold(pattern, internalWord):
			n.list = append(n.list, func(number string) bool { return isInternal(number, plan) })
		case isMisspelt(pattern):
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

// isMisspelt reports whether a pattern is a word such as "all" or "intern", which its author meant
// for a kind of numbers. As a pattern it would match only the extension of that name.
func isMisspelt(pattern string) bool {
	word := strings.ToLower(pattern)
	return slices.Contains([]string{"all", "any", "everything", "none", "extern", "external"}, word) ||
		len(word) > 3 && strings.HasPrefix(word, internalWord[:4]) && !strings.ContainsFunc(word, unicode.IsDigit)
}

// isForeign reports whether a character cannot be part of a number.
func isForeign(r rune) bool { return unicode.IsControl(r) || strings.ContainsRune(`;|&<>"'`, r) }

// match reports whether a number is in the set.
func (n Numbers) match(number string) bool {
	return slices.ContainsFunc(n.list, func(has func(string) bool) bool { return has(number) })
}

// compact removes the separators that people write between digits.
func compact(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" -()", r) {
			return -1
		}
		return r
	}, s)
}

// channel matches the name of a channel of one call: an extension to which the PBX adds a counter
// in hexadecimal digits, such as PJSIP/101-0000002f. The pattern allows one slash only, so a trunk
// with a number behind it does not match.
var channel = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9]*/[^/]+)-0000[0-9a-f]{4}$`)

// isInternal reports whether a number is an extension: one by the plan, or a name that starts with
// a letter and has at most as many digits, counted over the whole name. So neither
// SIP/trunk/79001112233 is an extension, nor a number with letters for pauses between its digits.
// If the plan has no extensions, no name is one either.
func isInternal(number string, plan *phone.Plan) bool {
	if m := channel.FindStringSubmatch(number); m != nil {
		number = m[1]
	}
	number = compact(number)
	if plan.IsInternal(number) {
		return true
	}
	digits := 0
	for _, r := range number {
		if unicode.IsDigit(r) {
			digits++
		}
	}
	first, _ := utf8.DecodeRuneInString(number)
	return unicode.IsLetter(first) && digits <= plan.InternalDigits() && plan.InternalDigits() > 0
}
