package store

import (
	"testing"

	"pzbridge/internal/telephony"
)

// TestFilterLetsThroughTypesAndPrefixes checks that a filter lets through the types that it names,
// and those that begin with a prefix of whole words.
func TestFilterLetsThroughTypesAndPrefixes(t *testing.T) {
	f, err := ParseFilter("call.completed, sms.*")
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[telephony.EventType]bool{
		"call.completed": true,
		"call.incoming":  false,
		"sms.sent":       true,
		"sms.status":     true,
		"pz.event":       false,
		"sms":            false,
	} {
		if got := f.Match(kind); got != want {
			t.Errorf("%s: got %v", kind, got)
		}
	}
	if _, err := ParseFilter("call.completed,call"); err == nil {
		t.Error("half a type is taken for one")
	}
}
