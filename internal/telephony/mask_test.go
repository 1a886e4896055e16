package telephony

import "testing"

func TestNumbersAreMasked(t *testing.T) {
	for text, want := range map[string]string{
		"+73430112233":                           "+7…33",
		"83430112233 calls":                      "83…33 calls",
		"to +7 (343) 011-22-33: busy":            "to +7…33: busy",
		"8 (343) 011-22-33":                      "8 …33",
		`From="+49 30 1234567" To="101"`:         `From="+4…67" To="101"`,
		"it says 2026-11-23 06:25:53":            "it says 2026-11-23 06:25:53",
		"dial 192.168.1.15:10150: refused":       "dial 192.168.1.15:10150: refused",
		"HTTP 503 after 15000 ms, extension 101": "HTTP 503 after 15000 ms, extension 101",
	} {
		if got := MaskNumbers(text); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}
