package phone

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp/syntax"
	"testing"

	"github.com/nyaruka/phonenumbers"
)

// Every pattern of the library for numbers under +7 ends with at least as many digits of any value
// as a range has. Otherwise a part of a range could be valid.
func TestNumberingPlanHasNoSmallerRanges(t *testing.T) {
	metadata, err := phonenumbers.MetadataCollection()
	if err != nil {
		t.Fatal(err)
	}
	patterns := map[string]bool{}
	for _, region := range metadata.GetMetadata() {
		if region.GetCountryCode() != 7 {
			continue
		}
		if re, err := syntax.Parse(region.GetLeadingDigits(), syntax.Perl); err != nil || longest(re) > rangeDigits {
			t.Errorf("%s is recognized by more than %d digits: %s (%v)",
				region.GetId(), rangeDigits, region.GetLeadingDigits(), err)
		}
		for _, kind := range []*phonenumbers.PhoneNumberDesc{
			region.GetGeneralDesc(), region.GetFixedLine(), region.GetMobile(), region.GetTollFree(),
			region.GetPremiumRate(), region.GetSharedCost(), region.GetPersonalNumber(), region.GetVoip(),
			region.GetPager(), region.GetUan(), region.GetVoicemail(),
		} {
			if pattern := kind.GetNationalNumberPattern(); pattern != "" && pattern != "NA" {
				patterns[pattern] = true
			}
		}
	}
	if len(patterns) < 10 {
		t.Errorf("only %d patterns were found", len(patterns))
	}
	for pattern := range patterns {
		re, err := syntax.Parse(pattern, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		if n := anyDigitsAtEnd(re); n < 10-rangeDigits {
			t.Errorf("it ends with %d digits of any value: %s", n, pattern)
		}
	}
}

// longest returns the maximum number of characters that a pattern without * and + matches.
func longest(re *syntax.Regexp) (n int) {
	switch re.Op {
	case syntax.OpEmptyMatch:
		return 0
	case syntax.OpLiteral:
		return len(re.Rune)
	case syntax.OpCharClass:
		return 1
	case syntax.OpCapture, syntax.OpQuest:
		return longest(re.Sub[0])
	case syntax.OpRepeat:
		return max(re.Max, re.Min) * longest(re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			n += longest(sub)
		}
		return n
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			n = max(n, longest(sub))
		}
		return n
	}
	return 1 << 20
}

// anyDigitsAtEnd returns how many digits of any value there are at the end of what a pattern
// matches, in each of its alternatives.
func anyDigitsAtEnd(re *syntax.Regexp) int {
	switch re.Op {
	case syntax.OpCharClass:
		if re.String() == "[0-9]" || re.String() == `\d` {
			return 1
		}
	case syntax.OpRepeat:
		if re.Min == re.Max && anyDigitsAtEnd(re.Sub[0]) == 1 {
			return re.Min
		}
	case syntax.OpCapture:
		return anyDigitsAtEnd(re.Sub[0])
	case syntax.OpConcat:
		return anyDigitsAtEnd(re.Sub[len(re.Sub)-1])
	case syntax.OpAlternate:
		n := 1 << 20
		for _, sub := range re.Sub {
			n = min(n, anyDigitsAtEnd(sub))
		}
		return n
	}
	return 0
}

// Of each code of three digits under +7 one range is chosen at random. For its first and its last
// number and one between, in each form, what underCode7 decides is what the library does. With
// PZBRIDGE_SLOW=1 all ranges are compared.
func TestFormsUnderCode7AreThoseOfTheLibrary(t *testing.T) {
	step := 100
	switch {
	case os.Getenv("PZBRIDGE_SLOW") != "":
		step = 1
	case testing.Short():
		step = 1000
	}
	forms := []string{
		"+7%s", "7%s", "8%s", "%s", "+7 (%.3[1]s) %.3[2]s-%.2[3]s-%.2[4]s", "8 (%.3[1]s)%.3[2]s-%.2[3]s-%.2[4]s",
	}
	for _, region := range []string{"RU", "KZ", "US"} {
		p, decided := plan(t, region), 0
		for code := 0; code < 100_000; code += step {
			prefix := code
			if step > 1 {
				prefix += rand.IntN(step)
			}
			for _, rest := range []int{0, 99_999, rand.IntN(100_000)} {
				n := fmt.Sprintf("%05d%05d", prefix, rest)
				for i, form := range forms {
					number := fmt.Sprintf(form, n)
					if i >= 4 {
						number = fmt.Sprintf(form, n, n[3:], n[6:], n[8:])
					}
					got, known := p.underCode7(number)
					if !known {
						continue
					}
					decided++
					if want := p.parse(number); got != want {
						t.Fatalf("%s: %q is %q, and for the library %q", region, number, got, want)
					}
				}
			}
		}
		if minimum := 3 * 100_000 / step / 2; decided < minimum {
			t.Errorf("%s: only %d numbers were decided", region, decided)
		}
	}
}

// A number in a form that is decided without the library makes no garbage but its result.
func TestUsualFormsAllocateTheirResultOnly(t *testing.T) {
	p := plan(t, "RU")
	for number, want := range map[string]float64{
		"+79101234567": 0, "89101234567": 1, "+7 (910) 123-45-67": 1, "101": 0, "SIP/101": 0,
	} {
		if _, known := p.underCode7(number); known != (len(number) > 10) {
			t.Errorf("%s: decided is %v", number, known)
		}
		if got := testing.AllocsPerRun(100, func() { p.E164(number) }); got > want {
			t.Errorf("%s: %v allocations", number, got)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	var c cache
	number := func(i int) string { return fmt.Sprint(i) }
	for i := range 10 * maxGeneration {
		c.put(number(i), "+"+number(i))
		if _, known := c.get(number(0)); !known {
			t.Fatalf("what is used all the time is gone after %d others", i)
		}
		if n := len(c.young) + len(c.older); n > 2*maxGeneration {
			t.Fatalf("%d entries", n)
		}
	}
	for i := 9*maxGeneration + 1; i < 10*maxGeneration; i++ {
		if e164, known := c.get(number(i)); e164 != "+"+number(i) || !known {
			t.Fatalf("%d is %q, %v", i, e164, known)
		}
	}
	if _, known := c.get(number(1)); known {
		t.Error("the first one is kept")
	}
}
