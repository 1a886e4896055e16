package telephony

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxNumber is how long a phone number may be, in characters.
const maxNumber = 64

// numberMarks are what a number may hold beside letters. With / . _ : @ an extension can be named
// as a PBX names it in its events: SIP/101, Local/101@from-internal. What separates several targets
// or options in a dial string (& , ; |) is none of them: whoever may name an extension is not to
// write a dial plan.
const numberMarks = "0123456789 +-()*#/._:@"

// plain is a character as it is typed: blanks of any width and dashes of any length are one each,
// and -1 stands for those that nobody sees.
func plain(r rune) rune {
	switch {
	case unicode.Is(unicode.Zs, r):
		return ' '
	case unicode.Is(unicode.Dash, r):
		return '-'
	case unicode.Is(unicode.Cf, r):
		return -1
	}
	return r
}

// isForeign says whether a character stands in no number.
func isForeign(r rune) bool { return !unicode.IsLetter(r) && !strings.ContainsRune(numberMarks, r) }

// CleanNumber gives a phone number, or a PBX's name of an extension, as it is sent to the exchange:
// what word processors and web pages make of blanks and hyphens is plain again, characters that
// nobody sees are gone, and so are blanks at the ends. The error says what is wrong with it, in
// words that go on from its name.
func CleanNumber(s string) (string, error) {
	s = strings.Trim(strings.Map(plain, s), " ")
	switch {
	case s == "":
		return "", errors.New("is empty; it must be a phone number")
	case utf8.RuneCountInString(s) > maxNumber:
		return "", fmt.Errorf("is longer than %d characters", maxNumber)
	case strings.ContainsFunc(s, isForeign):
		return "", errors.New("may hold digits, letters, spaces and + - ( ) * # / . _ : @ only")
	}
	return s, nil
}
