package telephony

import (
	"strings"
	"testing"
)

func TestCleanNumber(t *testing.T) {
	for in, want := range map[string]string{
		"101":                          "101",
		"+7 (343) 011-22-33":           "+7 (343) 011-22-33",
		"*8101#":                       "*8101#",
		"иван":                         "иван",
		"SIP/101":                      "SIP/101",
		"PJSIP/101-0000000a":           "PJSIP/101-0000000a",
		"Local/101@from-internal/n":    "Local/101@from-internal/n",
		"sip:ivan_i.ivanov@pbx.local":  "sip:ivan_i.ivanov@pbx.local",
		"+7\u00a0343\u2009011\u202f22": "+7 343 011 22",
		"8\u2010800\u2011555\u201235\u201335\u2014\u2015\u2212": "8-800-555-35-35---",
		"\u3000101\u2007 ": "101",
		// Marks of direction and a blank of no width, as copied from a list of contacts.
		"\u202a101\u202c\u200b":            "101",
		"1\u00ad0\ufeff1":                  "101",
		strings.Repeat("1", 64) + "\u00a0": strings.Repeat("1", 64),
	} {
		if got, err := CleanNumber(in); got != want || err != nil {
			t.Errorf("%+q: %q, %v", in, got, err)
		}
	}
	for in, says := range map[string]string{
		"":                      "is empty",
		" \u00a0\u200b":         "is empty",
		strings.Repeat("1", 65): "longer than 64",
		"1\n":                   "may hold",
		"\t1":                   "may hold",
		"1\x00":                 "may hold",
		"1\u2028":               "may hold",
		"1\xff":                 "may hold",
		"1\ufffd":               "may hold",
		"SIP/101&SIP/102":       "may hold", // a list of whom to ring
		"101,30,gM(x)":          "may hold", // options of a dial plan
		"1|2":                   "may hold",
		"1;x":                   "may hold",
		"${EXTEN}":              "may hold",
		"<x>":                   "may hold",
		`"x"`:                   "may hold",
		"☎101":                  "may hold",
	} {
		if got, err := CleanNumber(in); got != "" || err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+q: %q, %v", in, got, err)
		}
	}
}
