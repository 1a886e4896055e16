package phone

import (
	"errors"
	"slices"
	"strings"
	"unicode"
)

const (
	// maxKey is the maximum length of a key. The longest numbers that the library takes for valid,
	// those of Germany, have 17 digits.
	maxKey = 32
	// minSearch is the minimum number of digits by which the end of a number can be searched.
	minSearch = 4
)

// ErrTooFewDigits means that a text has too few digits to search for a number by them.
var ErrTooFewDigits = errors.New("type at least the last four digits of a number, or a whole extension")

// Key returns the key under which a number is found: its digits in reverse order, at most 32. They
// are those of the E.164 form if the number is valid, so all ways of writing a number have one key.
// Since they are reversed, a search by the last digits is a search by prefix, which an ordered
// index can do. The key of an extension is the same however the PBX names it. A text without digits
// has the key "".
func (p *Plan) Key(number string) string {
	if extension := p.Extension(number); extension != "" {
		return reverse(extension)
	}
	if e164, ok := p.E164(number); ok {
		return reverse(e164[1:])
	}
	number, _, _ = strings.Cut(number, "@") // the host of a SIP address
	return reverse(digits(withoutExtension(number)))
}

// Query returns the key to search for when a person types a number in any form. If whole is set,
// the key of a number that matches is equal to it; otherwise it begins with it. A valid number is
// whole, with or without its country code; anything else is the end of a number, also 2233, which
// may be an extension and the end of a client's number. Only an extension with fewer digits than
// four is whole. For any other text with fewer than four digits it fails with ErrTooFewDigits.
func (p *Plan) Query(text string) (key string, whole bool, err error) {
	// Copying from a spreadsheet or a telephone adds invisible characters.
	text = strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Cf, r) {
			return -1
		}
		return r
	}, text)
	key = p.Key(text)
	_, whole = p.E164(text)
	if len(key) >= minSearch {
		return key, whole, nil
	}
	if p.Extension(text) == "" {
		return "", false, ErrTooFewDigits
	}
	return key, true, nil
}

// reverse returns the last maxKey digits in reverse order.
func reverse(digits string) string {
	b := []byte(digits[max(0, len(digits)-maxKey):])
	slices.Reverse(b)
	return string(b)
}
