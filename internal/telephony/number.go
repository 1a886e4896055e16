package telephony

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxNumber is the largest length of a phone number, in characters.
const maxNumber = 64

// numberMarks are the characters that a number may contain besides letters. / . _ : @ occur in the
// names that a PBX gives to extensions in its events: SIP/101, Local/101@from-internal. The
// separators of targets and options in a dial string (& , ; |) are excluded: a caller that may name
// an extension must not be able to write a dial plan.
const numberMarks = "0123456789 +-()*#/._:@"

// normalize maps every kind of space to one space and every kind of dash to one hyphen, and removes
// invisible format characters by returning -1, as strings.Map requires.
func normalize(r rune) rune {
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

// isForbidden reports whether no number may contain a character.
func isForbidden(r rune) bool { return !unicode.IsLetter(r) && !strings.ContainsRune(numberMarks, r) }

// CleanNumber normalizes a phone number, or a PBX's name of an extension, to the form that the
// exchange takes: word processors and web pages put in typographic spaces and dashes, which become
// plain ones, and invisible characters, which are removed. Spaces at the ends are removed too. The
// result has 1 to 64 characters. The error's text continues a sentence that begins with the name of
// the number ("transfer_to is empty …").
func CleanNumber(s string) (string, error) {
	s = strings.Trim(strings.Map(normalize, s), " ")
	switch {
	case s == "":
		return "", errors.New("is empty; it must be a phone number")
	case utf8.RuneCountInString(s) > maxNumber:
		return "", fmt.Errorf("is longer than %d characters", maxNumber)
	case strings.ContainsFunc(s, isForbidden):
		return "", errors.New("may hold digits, letters, spaces and + - ( ) * # / . _ : @ only")
	}
	return s, nil
}
