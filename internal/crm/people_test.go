package crm

import (
	"testing"

	"pzbridge/internal/phone"
)

func people(t *testing.T) *People {
	t.Helper()
	plan, err := phone.New(phone.Options{Region: "RU", InternalDigits: 4})
	if err != nil {
		t.Fatal(err)
	}
	return &People{
		Users:         map[string]string{"101": "anna", "102": "ivan@firm.ru"},
		Default:       "anna",
		DefaultByLine: map[string]string{"+73432723033": "103", "+73432000000": "director"},
		Plan:          plan,
	}
}

func TestPeopleAreFoundByTheirNames(t *testing.T) {
	for name, want := range map[string]Person{
		"101":                   {"101", "anna"},
		" anna ":                {"101", "anna"},
		"Anna@firm.megapbx.ru":  {"101", "anna"},
		"101@firm.megapbx.ru":   {"101", "anna"},
		"ivan@firm.ru":          {"102", "ivan@firm.ru"},
		"ivan@firm.ru@pzbridge": {}, // a domain is cut off at the first @
		"103":                   {"103", "103"},
		"":                      {},
		"0":                     {},
		"000":                   {},
		"maria":                 {},
		"79101234567":           {},
		"@":                     {},
	} {
		got, known := people(t).Named(name)
		if got != want || known != (want != Person{}) {
			t.Errorf("%q is %+v (%t), want %+v", name, got, known, want)
		}
	}
}

func TestDefaultUserDependsOnTheLine(t *testing.T) {
	for line, want := range map[string]Person{
		"":                  {"101", "anna"},
		"73430000001":       {"101", "anna"},
		"8 (343) 272-30-33": {"103", "103"},
		"+73432000000":      {"", "director"}, // who has no extension that is known
	} {
		if got, known := people(t).DefaultFor(line); got != want || !known {
			t.Errorf("on %q it is %+v (%t), want %+v", line, got, known, want)
		}
	}
	nobody := people(t)
	nobody.Default, nobody.DefaultByLine = "", nil
	if got, known := nobody.DefaultFor("73432723033"); known {
		t.Errorf("without a default user it is %+v", got)
	}
}
