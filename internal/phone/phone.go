// Package phone decides what a telephone number is: an extension of the exchange or the number of a
// client, and in the latter case its E.164 form, which is the same for all ways of writing it.
//
// It is the only package that imports phonenumbers, a port of Google's libphonenumber, so that one
// set of rules says for every CRM and for every search what counts as a number.
package phone

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/nyaruka/phonenumbers"
)

// MaxInternalDigits is the maximum of Options.InternalDigits. It is below the ten digits that a
// number in Russia has without its country code, and which must never count as an extension.
const MaxInternalDigits = 9

// Options describe the numbers of one company.
type Options struct {
	// Region is the country to which numbers without a country code belong: two letters of ISO
	// 3166, in either case.
	Region string
	// InternalDigits is the maximum number of digits of an extension, from 0 to MaxInternalDigits.
	// With 0 there are no extensions.
	InternalDigits int
}

// Plan reads the numbers of one company. It is safe for concurrent use and must not be copied.
type Plan struct {
	region         string
	internalDigits int

	sharesCode7 bool   // the country code of the region is 7
	ranges      ranges // of the numbers under +7
	cache       cache  // of all other numbers
}

// New makes a Plan. It fails if there is no such region, or if InternalDigits is out of range.
func New(opts Options) (*Plan, error) {
	region := strings.ToUpper(opts.Region)
	if !phonenumbers.GetSupportedRegions()[region] {
		return nil, fmt.Errorf("there is no region %q: "+
			"use the two letters of a country in ISO 3166, such as RU, KZ, BY or US", opts.Region)
	}
	if opts.InternalDigits < 0 || opts.InternalDigits > MaxInternalDigits {
		return nil, errors.New("phone: Options.InternalDigits is out of range")
	}
	return &Plan{
		region:         region,
		internalDigits: opts.InternalDigits,
		sharesCode7:    phonenumbers.GetCountryCodeForRegion(region) == 7,
	}, nil
}

// InternalDigits returns the maximum number of digits of an extension.
func (p *Plan) InternalDigits() int { return p.internalDigits }

// IsInternal reports whether a number is an extension: one to InternalDigits digits, and nothing
// else but blanks at the ends. A number with a plus is never one, since a country code follows.
func (p *Plan) IsInternal(number string) bool {
	number = strings.TrimSpace(number)
	return number != "" && len(number) <= p.internalDigits && digits(number) == number
}

// technologies are the names of Asterisk's channel drivers whose channels are named after the
// telephone of one person. Those of trunk cards (DAHDI/1-1) are not among them: their digits are
// the number of a line.
var technologies = []string{"SIP", "PJSIP", "IAX2", "SCCP", "Local"}

// Extension returns the digits of the extension that a number is, or "" if it is none. It also
// finds them in the names that a PBX gives to an extension in its events: SIP/101,
// PJSIP/101-0000002f, Local/101@from-internal. A SIP address (sip:101@host) is no extension, since
// a stranger's has the same form.
func (p *Plan) Extension(number string) string {
	number = strings.TrimSpace(number)
	if p.IsInternal(number) {
		return number
	}
	technology, name, found := strings.Cut(number, "/")
	if !found || !containsFold(technologies, technology) {
		return ""
	}
	name, _, _ = strings.Cut(name, "@")
	if before, counter, found := strings.Cut(name, "-"); found && isCounter(counter) {
		name = before
	}
	if !p.IsInternal(name) {
		return ""
	}
	return name
}

func containsFold(list []string, s string) bool {
	for _, word := range list {
		if strings.EqualFold(word, s) {
			return true
		}
	}
	return false
}

// isCounter reports whether s is what Asterisk appends to the name of a channel: eight hexadecimal
// digits.
func isCounter(s string) bool {
	return len(s) == 8 && strings.Trim(s, "0123456789abcdef") == ""
}

// maxNumber is the maximum length, in bytes, of a text that is searched for a number. It is the
// library's. Longer texts are no numbers.
const maxNumber = 250

// E164 returns a number in the form of E.164, such as +73430112233, and whether it is a valid
// number that has such a form. An extension behind the number ("доб. 12", ";ext=12") is left
// out. For an extension of the exchange, and for what is no valid number, it returns "" and false.
func (p *Plan) E164(number string) (string, bool) {
	if len(number) > maxNumber || p.Extension(number) != "" {
		return "", false
	}
	if e164, known := p.underCode7(number); known {
		return e164, e164 != ""
	}
	e164, known := p.cache.get(number)
	if !known {
		e164 = p.parse(number)
		p.cache.put(number, e164)
	}
	return e164, e164 != ""
}

// parse returns the E.164 form of a number, or "" if it is not valid. A number may lack the plus:
// people write 375291234567, and exchanges send 00 in its place whatever the country's own prefix
// is. Both are tried only if the number is not valid as it stands. A number of fewer digits, or
// with a national prefix (0 or 8) in front, has no country code that could be found.
func (p *Plan) parse(number string) string {
	if e164 := p.valid(number); e164 != "" {
		return e164
	}
	number = withoutExtension(number)
	first := strings.IndexAny(number, "0123456789")
	if first < 0 || strings.ContainsAny(number[:first], "+＋") {
		return ""
	}
	number = number[first:]
	switch {
	case strings.HasPrefix(number, "00"):
		return p.valid("+" + number[2:])
	case number[0] == '0', number[0] == '8', len(digits(number)) < 11:
		return ""
	}
	return p.valid("+" + number)
}

// valid returns the E.164 form of a number as the library reads it, or "" if it is not valid. That
// a number is possible, which the library can tell too, would not do: by its length alone,
// 00493012345678 is a possible number in Russia.
//
// The form must be valid itself. The library makes some of which it then cuts off the first digit
// of the national number (88101234167 in Belarus); such a number would have two keys.
func (p *Plan) valid(number string) string {
	e164 := p.read(number)
	if e164 == number || e164 != "" && p.read(e164) == e164 {
		return e164
	}
	return ""
}

// read returns the E.164 form that the library gives to a valid number, or "" if it is not valid.
func (p *Plan) read(number string) string {
	n, err := phonenumbers.Parse(number, p.region)
	if err != nil || !phonenumbers.IsValidNumber(n) {
		return ""
	}
	return phonenumbers.Format(n, phonenumbers.E164)
}

// Client returns the number of a client in the form that is passed on: E.164 if it is valid,
// otherwise its digits as they came, since a guessed country code would make another number of
// them. It returns "" for a text without digits, and for one with letters (Anonymous,
// sip:101@host), whose digits are a part of a name.
func (p *Plan) Client(number string) string {
	if e164, ok := p.E164(number); ok {
		return e164
	}
	number = withoutExtension(number)
	if strings.ContainsFunc(number, unicode.IsLetter) {
		return ""
	}
	return digits(number)
}

// Sides says who takes part in a call or an SMS.
type Sides struct {
	// Client is the number of the client, as Plan.Client returns it. It is empty for an internal
	// call, and if the number is unknown.
	Client string
	// Extension is the extension of the employee. It is empty if no employee is known yet, or if
	// that side is something other than an extension, such as a mobile telephone, a group or the
	// line.
	Extension string
	// Internal means that no client takes part.
	Internal bool
}

// Split finds the employee and the client among the two numbers of an event. The direction is that
// of the event: "incoming" (the employee is to), "outgoing" (the employee is from), or "" for an
// SMS and for a call whose direction is unknown. In the last case the employee is the side that is
// an extension, and from if neither or both are.
//
// A call is internal if the client's side is an extension. The other side belongs to the company in
// any case, so it need not be an extension too: it may be a group, the line or a mobile telephone.
func (p *Plan) Split(direction, from, to string) Sides {
	employee, client := p.Extension(from), to
	swapped := direction == "incoming" ||
		direction != "outgoing" && employee == "" && p.Extension(to) != ""
	if swapped {
		employee, client = p.Extension(to), from
	}
	if p.Extension(client) != "" {
		return Sides{Extension: employee, Internal: true}
	}
	return Sides{Client: p.Client(client), Extension: employee}
}

// withoutExtension cuts off an extension behind a number ("доб. 12", ";ext=12").
func withoutExtension(number string) string {
	// Most texts are digits alone, or empty, and need not go through the library's expressions.
	if len(number) > maxNumber || strings.Trim(number, "+0123456789") == "" {
		return number
	}
	number, _ = phonenumbers.MaybeSeparateExtensionFromPhone(number)
	return number
}

// digits returns the ASCII digits of a text. It returns the text itself if there is nothing else in
// it, without an allocation.
func digits(s string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, s)
}
