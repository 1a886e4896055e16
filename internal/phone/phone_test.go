package phone

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"pzbridge/internal/telephony"
)

func plan(t testing.TB, region string) *Plan { return planOf(t, region, 6) }

func planOf(t testing.TB, region string, internalDigits int) *Plan {
	t.Helper()
	p, err := New(Options{Region: region, InternalDigits: internalDigits})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOptionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		opts Options
		says string
	}{
		{Options{"RU", 6}, ""},
		{Options{"kz", 0}, ""},
		{Options{"us", MaxInternalDigits}, ""},
		{Options{"XX", 6}, `there is no region "XX"`},
		{Options{"", 6}, `there is no region ""`},
		{Options{"001", 6}, `there is no region "001"`},
		{Options{"RUS", 6}, `there is no region "RUS"`},
		{Options{"RU", MaxInternalDigits + 1}, "InternalDigits"},
		{Options{"RU", -1}, "InternalDigits"},
	} {
		_, err := New(c.opts)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v", c.opts, err)
		}
	}
}

func TestExtensionsAreShortAndDigitsOnly(t *testing.T) {
	for _, c := range []struct {
		number    string
		digits    int
		extension string
	}{
		{"101", 6, "101"},
		{" 101\u00a0", 6, "101"},
		{"123456", 6, "123456"},
		{"1234567", 6, ""},
		{"1234567", 7, "1234567"},
		{"101", 0, ""},
		{"", 6, ""},
		{" ", 6, ""},
		{"+101", 6, ""},
		{"1-01", 6, ""},
		{"*72", 6, ""},
		{"101a", 6, ""},
		{"иван", 6, ""},
		{"١٠١", 6, ""},
	} {
		p := planOf(t, "RU", c.digits)
		if got := p.IsInternal(c.number); got != (c.extension != "") {
			t.Errorf("%q, up to %d digits: internal is %v", c.number, c.digits, got)
		}
		if got := p.Extension(c.number); got != c.extension {
			t.Errorf("%q, up to %d digits: extension %q", c.number, c.digits, got)
		}
	}
}

func TestExtensionsAreFoundInTheNamesOfChannels(t *testing.T) {
	p := plan(t, "RU")
	for number, want := range map[string]string{
		"SIP/101":                "101",
		"sip/101":                "101",
		"PJSIP/101-0000002f":     "101",
		"IAX2/101-00010000":      "101",
		"Local/101@from-inside":  "101",
		"Local/101@x-0000002f;1": "101",
		"SIP/1234567-0000002f":   "",
		"SIP/101-002f":           "",
		"SIP/101-0000002F":       "",
		"SIP/ivan":               "",
		"SIP/trunk/101":          "",
		"SIP/":                   "",
		"/101":                   "",
		"DAHDI/1-1":              "",
		"DAHDI/1":                "",
		"sip:101@host":           "",
		"101@host":               "",
		"SIP/910-1234567a":       "910",
	} {
		if got := p.Extension(number); got != want {
			t.Errorf("%s: %q", number, got)
		}
		if e164, ok := p.E164(number); ok {
			t.Errorf("%s has become %s", number, e164)
		}
	}
}

// numbers are ways of writing numbers, by region, with their E.164 form; it is empty for what has
// none.
var numbers = map[string]map[string]string{
	"RU": {
		"83430112233": "+73430112233", "73430112233": "+73430112233", "3430112233": "+73430112233",
		"+7 (343) 011-22-33": "+73430112233", "*73430112233": "+73430112233",
		"8 (343) 011-22-33": "+73430112233", "8-343-011-22-33": "+73430112233", "+7.343.011.22.33": "+73430112233",
		"+7\u00a0343\u00a0011\u201122\u201133": "+73430112233", "tel:+73430112233": "+73430112233",
		" +73430112233 ": "+73430112233", "++73430112233": "+73430112233", "８３４３０１１２２３３": "+73430112233",
		"89101234567": "+79101234567", "79101234567": "+79101234567", "9101234567": "+79101234567",
		"88001234567": "+78001234567",
		"87011234567": "+77011234567", "+77011234567": "+77011234567", "7011234567": "+77011234567",
		"810 49 30 1234567": "+49301234567", "8~10 49 30 1234567": "+49301234567",
		"8 (495) 123-45-67 доб. 12": "+74951234567", "8 (495) 123-45-67 доб.12": "+74951234567",
		"+74951234567;ext=12": "+74951234567", "+74951234567,,12": "+74951234567",
		"84951234567 ext 12":                "+74951234567",
		"tel:+74951234567;ext=12":           "+74951234567",
		"8101202555123":                     "",
		"375291234567":                      "+375291234567",
		"375 (29) 123-45-67":                "+375291234567",
		"(375) 29 123-45-67":                "+375291234567",
		"375291234567 доб. 12":              "+375291234567",
		"493012345678":                      "+493012345678",
		"00493012345678":                    "+493012345678",
		"00 49 30 12345678":                 "+493012345678",
		"00 7 343 011 22 33":                "+73430112233",
		"101":                               "",
		"112":                               "",
		"2233":                              "",
		"0112233":                           "",
		"0112233 доб. 1234":                 "",
		"8 8343 011 22 33":                  "",
		"sip:101@host":                      "",
		"Anonymous":                         "",
		"":                                  "",
		"9+73430112233":                     "",
		"73430112233#":                      "",
		"+83430112233":                      "",
		"+7343011223":                       "",
		"+734301122334":                     "",
		"75000000000":                       "",
		"+7 000 0000000":                    "",
		"000000000000":                      "",
		"81050021234":                       "+50021234", // as long as a number of Russia
		"8106834002":                        "+6834002",
		"+3430112233":                       "",
		"+9101234567":                       "",
		"7+3430112233":                      "",
		"+ +73430112233":                    "",
		"+00493012345678":                   "",
		"3212345678":                        "",
		"3212345678 доб. 12":                "",
		"+32 12345678 доб. 12":              "+3212345678",
		strings.Repeat("7", 300):            "",
		"+73430112233" + blanks(300):        "",
		"49301234567 " + blanks(maxNumber):  "",
		"\xff+73430112233":                  "+73430112233",
		"w9w00447w911123":                   "",
		"SIP/trunk/79001112233":             "+79001112233",
		"+7 343 011-22-33, +7 343 011-22-3": "",
	},
	"KZ": {
		"87011234567": "+77011234567", "77011234567": "+77011234567", "7011234567": "+77011234567",
		"8 (727) 258-12-34": "+77272581234", "7272581234": "+77272581234", "+77272581234": "+77272581234",
		"83430112233": "+73430112233", "73430112233": "+73430112233", "+73430112233": "+73430112233",
		"810 49 30 1234567": "+49301234567", "375291234567": "+375291234567", "88001234567": "+78001234567",
		"00493012345678": "+493012345678", "77290000000": "", "101": "",
	},
	"BY": {
		"80291234567": "+375291234567", "8 029 123-45-67": "+375291234567", "291234567": "+375291234567",
		"375291234567": "+375291234567", "+375 29 123-45-67": "+375291234567",
		"8 017 218-84-31": "+375172188431", "810 49 30 1234567": "+49301234567",
		"73430112233": "+73430112233", "+7 (343) 011-22-33": "+73430112233", "83430112233": "",
		"89101234567": "", "00493012345678": "+493012345678", "101": "", "88101234167": "",
	},
	"UA": {
		"0501234567": "+380501234567", "(050) 123-45-67": "+380501234567", "501234567": "+380501234567",
		"380501234567": "+380501234567", "+380 50 123 45 67": "+380501234567", "80501234567": "",
		"0 44 123 45 67": "+380441234567", "00 49 30 1234567": "+49301234567", "73430112233": "+73430112233",
		"+73430112233": "+73430112233", "0800501234": "+380800501234", "101": "",
	},
	"DE": {
		"73430112233": "+4973430112233", "+73430112233": "+73430112233", "030 12345678": "+493012345678",
		"0049 30 12345678": "+493012345678",
	},
	"US": {
		"2025550123": "+12025550123", "12025550123": "+12025550123", "(202) 555-0123": "+12025550123",
		"+1 202 555 0123": "+12025550123", "1-800-FLOWERS": "+18003569377", "202-555-0123 x12": "+12025550123",
		"011 49 30 1234567": "+49301234567", "5550123": "", "911": "", "73430112233": "+73430112233",
		"+7 (343) 011-22-33": "+73430112233", "375291234567": "+375291234567", "0049 30 1234567": "+49301234567",
		"83430112233": "", "89101234567": "", "101": "",
	},
}

func blanks(n int) string { return strings.Repeat(" ", n) }

func TestNumbersInE164(t *testing.T) {
	for region, list := range numbers {
		p := plan(t, region)
		for range 2 { // the second time from the cache
			for number, want := range list {
				if got, ok := p.E164(number); got != want || ok != (want != "") {
					t.Errorf("%s: %q is %q, %v; want %q", region, number, got, ok, want)
				}
			}
		}
	}
}

// With no extensions, a short number is parsed, and is still no valid one.
func TestAnExtensionIsNeverParsed(t *testing.T) {
	for _, number := range []string{"2233", "5511234"} {
		if e164, ok := planOf(t, "IS", 7).E164(number); ok {
			t.Errorf("%s has become %s", number, e164)
		}
	}
	if e164, ok := planOf(t, "IS", 6).E164("5511234"); e164 != "+3545511234" || !ok {
		t.Errorf("a number of seven digits is %q", e164)
	}
	if e164, ok := planOf(t, "RU", 0).E164("112"); ok {
		t.Errorf("112 has become %s", e164)
	}
}

func TestClientsNumbersArePassedOn(t *testing.T) {
	p := plan(t, "RU")
	for number, want := range map[string]string{
		"8 (343) 011-22-33": "+73430112233",
		"375291234567":      "+375291234567",
		"8 8343 011 22 33":  "88343011 2233",
		"8101202555123":     "8101202555123",
		"011-22-33":         "0112233",
		"011-22-33 доб. 12": "0112233",
		"0112233;ext=12":    "0112233",
		"73430112233#":      "73430112233",
		"9+73430112233":     "973430112233",
		"2233":              "2233",
		"101":               "101",
		"*72":               "72",
		"Anonymous":         "",
		"sip:101@host":      "",
		"101@pbx":           "",
		"SIP/101":           "",
		"":                  "",
		"+":                 "",
		"--":                "",
	} {
		if got := p.Client(number); got != strings.ReplaceAll(want, " ", "") {
			t.Errorf("%q is %q", number, got)
		}
	}
}

func TestSidesOfACall(t *testing.T) {
	const (
		in, out, none = string(telephony.Incoming), string(telephony.Outgoing), ""
		client        = "+73430112233"
	)
	p := plan(t, "RU")
	for _, c := range []struct {
		name, direction, from, to string
		want                      Sides
	}{
		{"a question where to go", in, "83430112233", "", Sides{Client: client}},
		{"a call from a client", in, "83430112233", "101", Sides{Client: client, Extension: "101"}},
		{"it goes to a channel", in, "83430112233", "SIP/101", Sides{Client: client, Extension: "101"}},
		{"it goes to a group", in, "83430112233", "sales", Sides{Client: client}},
		{"it goes to the line", in, "83430112233", "+73432723033", Sides{Client: client}},
		{"it goes to a mobile telephone", in, "83430112233", "+79101234567", Sides{Client: client}},
		{"the client is unknown", in, "Anonymous", "101", Sides{Extension: "101"}},
		{"the client has a SIP address", in, "sip:5@host", "101", Sides{Extension: "101"}},
		{"the client's number is not valid", in, "0112233", "101", Sides{Client: "0112233", Extension: "101"}},
		{"nothing is known", in, "", "", Sides{}},
		{"a colleague calls", in, "102", "101", Sides{Extension: "101", Internal: true}},
		{"a colleague calls a group", in, "102", "sales", Sides{Internal: true}},
		{"a colleague's channel calls", in, "SIP/102-0000002f", "101", Sides{Extension: "101", Internal: true}},

		{"a call to a client", out, "101", "89101234567", Sides{Client: "+79101234567", Extension: "101"}},
		{"from a mobile telephone", out, "+79001112233", "83430112233", Sides{Client: client}},
		{"from a mobile telephone to a colleague", out, "+79001112233", "101", Sides{Internal: true}},
		{"to a colleague", out, "101", "102", Sides{Extension: "101", Internal: true}},

		{"an SMS", none, "101", "89101234567", Sides{Client: "+79101234567", Extension: "101"}},
		{"an SMS from the line", none, "+73432723033", "89101234567", Sides{Client: "+79101234567"}},
		{"an SMS to a colleague", none, "101", "102", Sides{Extension: "101", Internal: true}},
		{"to an extension, direction unknown", none, "83430112233", "101", Sides{Client: client, Extension: "101"}},
	} {
		if got := p.Split(c.direction, c.from, c.to); got != c.want {
			t.Errorf("%s (%s, %q to %q): %+v", c.name, c.direction, c.from, c.to, got)
		}
	}
}

func TestThereAreNoInternalCallsWithoutExtensions(t *testing.T) {
	got := planOf(t, "RU", 0).Split(string(telephony.Incoming), "102", "101")
	if want := (Sides{Client: "102"}); got != want {
		t.Errorf("%+v", got)
	}
}

func TestOnePlanServesSeveralGoroutines(t *testing.T) {
	p := plan(t, "RU")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 3 * maxGeneration {
				n := (i*7 + g) % maxGeneration
				number, want := fmt.Sprintf("8910123%04d", n), fmt.Sprintf("+7910123%04d", n)
				if i%8 == 0 {
					number, want = fmt.Sprintf("+1 202 555 %04d", n), fmt.Sprintf("+1202555%04d", n)
				}
				if got, _ := p.E164(number); got != want {
					t.Errorf("%s is %q", number, got)
					return
				}
			}
		})
	}
	wg.Wait()
}

// E164 of a number is its own E.164 form, all forms of a number have one key, and nothing panics.
func FuzzE164(f *testing.F) {
	for _, list := range numbers {
		for number := range list {
			f.Add(number)
		}
	}
	plans := []*Plan{planOf(f, "RU", 0)}
	for region := range numbers {
		plans = append(plans, plan(f, region))
	}
	f.Fuzz(func(t *testing.T, number string) {
		for _, p := range plans {
			e164, ok := p.E164(number)
			if ok != (e164 != "") || ok && p.Client(number) != e164 {
				t.Fatalf("%s: %q is %q, and for a client %q", p.region, number, e164, p.Client(number))
			}
			if ok && strings.Trim(e164[1:], "0123456789") != "" || len(e164) > maxKey {
				t.Fatalf("%s: %q is %q", p.region, number, e164)
			}
			if again, _ := p.E164(e164); again != e164 {
				t.Fatalf("%s: %q is %q, and that is %q", p.region, number, e164, again)
			}
			if ok && p.Key(number) != p.Key(e164) {
				t.Fatalf("%s: %q has the key %q, and %q has %q", p.region, number, p.Key(number), e164, p.Key(e164))
			}
			if key := p.Key(number); len(key) > maxKey || strings.Trim(key, "0123456789") != "" {
				t.Fatalf("%s: %q has the key %q", p.region, number, key)
			}
			if key, whole, err := p.Query(e164); ok && (err != nil || !whole || key != p.Key(number)) {
				t.Fatalf("%s: %q is not found: %q, %v, %v", p.region, e164, key, whole, err)
			}
			// What underCode7 decides is what the library does.
			if fast, known := p.underCode7(number); known && len(number) <= maxNumber && fast != p.parse(number) {
				t.Fatalf("%s: %q is %q, and for the library %q", p.region, number, fast, p.parse(number))
			}
			for _, direction := range []string{"incoming", "outgoing", ""} {
				p.Split(direction, number, e164)
			}
		}
	})
}

// A number that the cache has not seen, in the usual forms and in one that only the library reads,
// and one that it has.
func BenchmarkE164(b *testing.B) {
	for name, format := range map[string]string{
		"fresh, 8":        "8910%07d",
		"fresh, +7":       "+7910%07d",
		"fresh, foreign":  "+49151%08d",
		"fresh, no E.164": "8 8343 %07d",
	} {
		b.Run(name, func(b *testing.B) {
			p, list := plan(b, "RU"), make([]string, 4*maxGeneration)
			for i := range list {
				list[i] = fmt.Sprintf(format, i)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p.E164(list[i%len(list)])
			}
		})
	}
	for _, number := range []string{
		"89101234567", "+7 (343) 011-22-33", "+493012345678", "8 8343 0112233", "101", "SIP/101",
	} {
		b.Run("again, "+number, func(b *testing.B) {
			p := plan(b, "RU")
			b.ReportAllocs()
			for b.Loop() {
				p.E164(number)
			}
		})
	}
	b.Run("the library alone", func(b *testing.B) {
		p := plan(b, "RU")
		b.ReportAllocs()
		for b.Loop() {
			p.read("89101234567")
		}
	})
}
