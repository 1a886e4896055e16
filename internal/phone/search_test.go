package phone

import (
	"errors"
	"strings"
	"testing"
)

func TestKeysAreDigitsInReverse(t *testing.T) {
	p := plan(t, "RU")
	for number, want := range map[string]string{
		"+73430112233":                    "33221103437",
		"83430112233":                     "33221103437",
		"8 (343) 011-22-33 доб. 101":      "33221103437",
		"375291234567":                    "765432192573",
		"8 8343 011 22 33":                "332211034388",
		"011-22-33":                       "3322110",
		"011-22-33 доб. 12":               "3322110",
		"101":                             "101",
		"123":                             "321",
		"SIP/123-0000002f":                "321",
		"sip:12345678@host7":              "87654321",
		"*72":                             "27",
		"Anonymous":                       "",
		"":                                "",
		strings.Repeat("1", 400) + "2345": "5432" + strings.Repeat("1", maxKey-4),
	} {
		if got := p.Key(number); got != want {
			t.Errorf("%q has the key %q", number, got)
		}
	}
}

// finds reports whether a query finds a number, as a search in an index of keys would.
func finds(t *testing.T, p *Plan, query, number string) bool {
	t.Helper()
	key, whole, err := p.Query(query)
	if err != nil {
		t.Errorf("%q: %v", query, err)
		return false
	}
	if whole {
		return p.Key(number) == key
	}
	return strings.HasPrefix(p.Key(number), key)
}

func TestNumbersAreFound(t *testing.T) {
	p := plan(t, "RU")
	for query, c := range map[string]struct{ found, missed []string }{
		"+7 (343) 011-22-33":           {[]string{"+73430112233", "83430112233"}, []string{"+13430112233", "0112233"}},
		"83430112233":                  {[]string{"+73430112233", "3430112233"}, []string{"0112233", "88343011 2233"}},
		"3430112233":                   {[]string{"+73430112233", "8 343 0112233"}, []string{"+13430112233"}},
		"0112233":                      {[]string{"+73430112233", "011-22-33"}, []string{"+73430122233"}},
		"…22-33":                       {[]string{"+73430112233", "2233", "SIP/2233"}, []string{"22331"}},
		"2233":                         {[]string{"+73430112233", "2233", "SIP/2233"}, []string{"22331"}},
		"\u202a+7 343 011 22 33\u202c": {[]string{"+73430112233"}, []string{"+13430112233"}},
		"8 343 011-22-33\u202c":        {[]string{"+73430112233"}, []string{"+13430112233"}},
		"375291234567":                 {[]string{"+375291234567", "375 29 123 45 67"}, []string{"+79291234567"}},
		"29 123-45-67":                 {[]string{"+375291234567"}, nil},
		"8 8343 011 22 33":             {[]string{"88343 0112233"}, []string{"+73430112233"}},
		"101":                          {[]string{"101", "SIP/101"}, []string{"+73430110101", "1010", "5101"}},
		"\u200b101":                    {[]string{"101"}, []string{"+73430110101"}},
		"SIP/101":                      {[]string{"101"}, []string{"+73430110101"}},
		"12":                           {[]string{"12"}, []string{"+73430110012", "21"}},
		"112233":                       {[]string{"112233", "+73430112233"}, nil},
	} {
		for _, number := range c.found {
			if !finds(t, p, query, number) {
				t.Errorf("%q does not find %s", query, number)
			}
		}
		for _, number := range c.missed {
			if finds(t, p, query, number) {
				t.Errorf("%q finds %s", query, number)
			}
		}
	}
}

func TestTooFewDigitsFindNothing(t *testing.T) {
	for _, c := range []struct {
		query          string
		internalDigits int
	}{
		{"", 6}, {" ", 6}, {"+", 6}, {"Anonymous", 6}, {"+10", 6}, {"233-", 6}, {"*72", 6}, {"101", 2}, {"5", 0},
	} {
		if key, _, err := planOf(t, "RU", c.internalDigits).Query(c.query); !errors.Is(err, ErrTooFewDigits) {
			t.Errorf("%q, extensions of up to %d digits: %q, %v", c.query, c.internalDigits, key, err)
		}
	}
}
