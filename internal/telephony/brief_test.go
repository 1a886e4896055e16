package telephony

import (
	"strings"
	"testing"
)

func TestBrief(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "101": "101",
		strings.Repeat("ж", 64):      strings.Repeat("ж", 64),
		strings.Repeat("ж", 65):      strings.Repeat("ж", 64) + "…",
		strings.Repeat("1", 260<<10): strings.Repeat("1", 64) + "…",
	} {
		if got := Brief(s); got != want {
			t.Errorf("%d bytes become %q", len(s), got)
		}
	}
	if got := BriefText(strings.Repeat("ж", 1001)); got != strings.Repeat("ж", 1000)+"…" {
		t.Errorf("a text becomes %q", got)
	}
}
