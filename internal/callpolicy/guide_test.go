package callpolicy

import (
	"os"
	"regexp"
	"testing"
)

// The CALL_TO list that the guides recommend matches Russian numbers and no foreign ones, in every
// way of writing them.
func TestRecommendedListAllowsNoForeignNumbers(t *testing.T) {
	recommended := regexp.MustCompile(`CALL_TO=([^\s` + "`" + `]+,internal)`)
	lists := 0
	for _, path := range []string{"../../docs/operators.md", "../../docs/operators.ru.md", "../../.env.example"} {
		guide, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range recommended.FindAllStringSubmatch(string(guide), -1) {
			lists++
			list := numbers(t, m[1])
			for number, want := range map[string]bool{
				"+7 343 011-22-33": true, "73430112233": true, "8 (343) 011-22-33": true,
				"8 495 1234567": true, "89161234567": true,
				"101": true, "SIP/101": true, "PJSIP/101-0000002f": true,
				"8 10 500 21234": false, "8 10 290 22345": false, "8 10 682 21234": false,
				"810442079460000": false, "+44 20 7946 0000": false,
				"00442079460000": false, "8 809 123 45 67": false,
				"SIP/trunk/810442-07946000": false, "w/810442-07946000": false,
				"SIP/810442-07946000": false, "PJSIP/trunk/810442-00001234": false,
			} {
				if list.match(number) != want {
					t.Errorf("%s: %s has %s: %v", path, m[1], number, !want)
				}
			}
		}
	}
	if lists < 3 {
		t.Errorf("%d lists were found", lists)
	}
}

// A misspelt "internal" is an error, not a pattern.
func TestMisspeltWordsAreRefused(t *testing.T) {
	for list, fits := range map[string]bool{
		"Internal": true, "INTERNAL,+7*": true, "internall": false, "intenal": false, "all": false,
		"SIP/*": true, "ivan,petr": true, "*": true,
	} {
		if _, err := ParseNumbers(list, plan(t, 6)); (err == nil) != fits {
			t.Errorf("%s: %v", list, err)
		}
	}
}
