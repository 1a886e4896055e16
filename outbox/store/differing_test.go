package store

import (
	"slices"
	"testing"
	"time"
)

func TestWhatDiffersBetweenBridges(t *testing.T) {
	one := Bridge{Endpoints: map[string]string{"crm": "a", "sheet": "b"}}
	two := Bridge{Endpoints: map[string]string{"crm": "x", "sheet": "b", "new": "c", "also": "d"}}
	list := []Bridge{one, two}
	for name, c := range map[string]struct{ got, want []string }{
		"the first lacks":           {one.Lacking(list), []string{"also", "new"}},
		"the second lacks":          {two.Lacking(list), nil},
		"the first differs":         {one.Differing(list), []string{"crm"}},
		"the second differs":        {two.Differing(list), []string{"crm"}},
		"it differs in all":         {DifferingEndpoints(one, list), []string{"also", "crm", "new"}},
		"one that is alone lacks":   {two.Lacking(list[1:]), nil},
		"one that is alone differs": {two.Differing(list[1:]), nil},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s %q, want %q", name, c.got, c.want)
		}
	}
}

func TestSilentBridgeIsGone(t *testing.T) {
	now := time.Now()
	list := []Bridge{
		{Name: "silent", Seen: now.Add(-11 * time.Second)},
		{Name: "lives", Seen: now.Add(-9 * time.Second)},
	}
	if living := Living(list, now); len(living) != 1 || living[0].Name != "lives" {
		t.Errorf("%v live", living)
	}
}
