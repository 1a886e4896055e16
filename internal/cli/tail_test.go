package cli

import "testing"

// A caller's name neither begins a line nor does anything else to a terminal.
func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"Иван 7343":              "Иван 7343",
		"a\n10:00:00 delivered":  "a 10:00:00 delivered",
		"a\x1b[31mred\x07\u009b": "a [31mred  ",
		"abc\u202ecba\u2069":     "abc cba ",
		"a\u2028b":               "a b",
	} {
		if got := printable(s); got != want {
			t.Errorf("%q is printed as %q", s, got)
		}
	}
	if got := printableLines("a\nb\x1b\n"); got != "a\nb \n" {
		t.Errorf("lines are printed as %q", got)
	}
}
