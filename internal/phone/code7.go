package phone

import "sync/atomic"

// Numbers of Russia and Kazakhstan, in their usual forms, do not go through the library's parser.
// It takes 11 µs and over 60 allocations for a number, which is more than the rest of an event's
// way into the outbox, and most numbers here are of this kind. Whether such a number is valid still
// is the library's decision, so an update of its numbering plan needs no change here: it decides
// once for each range of 100,000 numbers.

// rangeDigits is how many digits of a national number under +7 decide whether it is valid: no range
// of the numbering plan is smaller. TestNumberingPlanHasNoSmallerRanges compares that with the
// library's data.
const rangeDigits = 5

// The states of a range.
const (
	rangeUnknown = iota // the library has not been asked
	rangeValid
	rangeInvalid

	rangeBits = 2
	rangeMask = 1<<rangeBits - 1
)

// ranges holds the state of each range under +7, sixteen in a word. The first numbers of two
// goroutines may both be decided by the library; the results are equal.
type ranges [100_000 * rangeBits / 32]atomic.Uint32

// underCode7 returns the E.164 form of a number under +7, or "" if it is not valid. It takes the
// forms +7, and in the countries that share that code also 7, 8 and none, each with ten digits
// behind it, and with blanks, hyphens and parentheses anywhere. For any other text known is false,
// and it decides nothing.
//
// The first of the ten digits is one with which numbers there begin. That excludes the
// international prefix, 810.
func (p *Plan) underCode7(number string) (e164 string, known bool) {
	const size = len("+73430112233")
	var (
		text [size]byte // +7 and the ten digits
		n    = 2
		plus bool
		lead byte // the digit before the ten; 0 if there is none
	)
	for i := range len(number) {
		switch c := number[i]; {
		case '0' <= c && c <= '9':
			if n == size {
				if lead != 0 {
					return "", false
				}
				lead = text[2]
				copy(text[2:], text[3:])
				n--
			}
			text[n] = c
			n++
		case c == '+' && n == 2 && !plus:
			plus = true
		case c != ' ' && c != '-' && c != '(' && c != ')':
			return "", false
		}
	}
	if n != size {
		return "", false
	}
	switch {
	case lead == '7' && (plus || p.sharesCode7):
	case lead == '8' && !plus && p.sharesCode7:
	case lead == 0 && !plus && p.sharesCode7 && text[2] != '8':
	default:
		return "", false
	}
	switch text[2] {
	case '3', '4', '7', '8', '9':
	default:
		return "", false
	}
	text[0], text[1] = '+', '7'
	if !p.rangeIsValid(text[:]) {
		return "", true
	}
	if number == string(text[:]) {
		return number, true
	}
	return string(text[:]), true
}

// rangeIsValid reports whether the numbers of the range of an E.164 number under +7 are valid. For
// the first number of a range it has the library decide about the first one of the range.
func (p *Plan) rangeIsValid(e164 []byte) bool {
	index := 0
	for _, c := range e164[2 : 2+rangeDigits] {
		index = index*10 + int(c-'0')
	}
	word, shift := &p.ranges[index*rangeBits/32], index*rangeBits%32
	state := word.Load() >> shift & rangeMask
	if state == rangeUnknown {
		first := string(e164[:2+rangeDigits]) + "00000"
		state = rangeInvalid
		if p.valid(first) == first {
			state = rangeValid
		}
		word.Or(state << shift)
	}
	return state == rangeValid
}
